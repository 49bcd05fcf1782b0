"""Where the weights of CLIP are, and whether they are what their names say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from taming.checkpoint import is_program, read_content, read_program
from taming.checkpoint.weight_sets import choose
from taming.downloads import file_hash
from taming.errors import UserError, absence
from taming.user_files import with_home

Facts = Mapping[str, Any]
CACHE = "~/.cache/clip"  # of open_clip and the original's CLIP
HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_IN_URL = re.compile(r"/([0-9a-f]{64})/")
_BLOB = re.compile(r"[0-9a-f]{64}")


def clip_weights(
    open_clip: Any, model: str | Path, tag: str, explicit: str | Path | None
) -> tuple[dict[str, Tensor], Facts]:
    """The tensors of a file, and what open_clip's table says of them: `mean`, `std`, `quick_gelu`.

    Args:
        model: a name of open_clip's, or a folder with a config.
        tag: of the published weights, or empty.
        explicit: the file that the user names.

    Raises:
        UserError: if there is no file, or one that is damaged or is no checkpoint.
    """
    tags: dict[str, Facts] = {}
    if isinstance(model, str):
        tags = {t: open_clip.get_pretrained_cfg(model, t) for t in _tags_of(open_clip, model)}
        if tag and tag not in tags:
            raise UserError(f"{model} has no weights '{tag}'; open_clip knows {', '.join(tags)}")
    if explicit is not None:
        path = with_home(Path(explicit))
        if not path.is_file():
            raise UserError(f"--clip_weights: {absence('file', path)}")
        known = next((t for t, facts in tags.items() if _is_named_by(path, facts)), tag)
    elif isinstance(model, Path):
        path, known = _in_folder(model), ""
    else:
        path, known = _cached(model, {tag: tags[tag]} if tag else tags)
    facts = tags.get(known, {})
    _check_hash(path, facts)
    # The original's files are programs of TorchScript, of which the tensors alone are read.
    content = read_program(path) if is_program(path) else read_content(path)
    return dict(choose(content, path).tensors), facts


def _tags_of(open_clip: Any, model: str) -> list[str]:
    tags: list[str] = open_clip.list_pretrained_tags_by_model(model)
    return tags


def _in_folder(folder: Path) -> Path:
    for name in HUB_FILES:
        if (folder / name).is_file():
            return folder / name
    raise UserError(f"{folder} has none of {', '.join(HUB_FILES)}; put the weights there")


def _cached(model: str, tags: Mapping[str, Facts]) -> tuple[Path, str]:
    """The first of the published files that is on this machine, and its tag."""
    for tag, facts in tags.items():
        for path in _places(facts):
            if path.is_file():
                return path, tag
    wanted = next((facts for facts in tags.values()), {})
    name = _repository(wanted)[0] or str(wanted.get("url", "")).rpartition("/")[2]
    raise UserError(
        f"there are no weights of CLIP's {model} on this machine: put "
        f"{HUB_FILES[0] if _repository(wanted)[0] else name} of {name or model} anywhere and name "
        f"it by --clip_weights, or put it into {CACHE} or the hub's cache, where open_clip would"
    )


def _places(facts: Facts) -> Iterator[Path]:
    """Where open_clip and the hub keep the files of an entry of open_clip's table."""
    if url := str(facts.get("url", "")):
        yield with_home(Path(CACHE)) / url.rpartition("/")[2]
    repository, file = _repository(facts)
    for name in (file,) if file else HUB_FILES:
        if repository and (found := _in_hub_cache(repository, name)):
            yield found


def _repository(facts: Facts) -> tuple[str, str]:
    """("owner/name", file or nothing) of "owner/name/file" or "owner/name/"."""
    repository, _, file = str(facts.get("hf_hub", "")).rpartition("/")
    return repository, file


def _in_hub_cache(repository: str, file: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file)
    return Path(found) if isinstance(found, str) else None


def _is_named_by(path: Path, facts: Facts) -> bool:
    """Whether a file has the name of the published one."""
    return path.name == str(facts.get("url", "")).rpartition("/")[2]


def known_hash(path: Path, facts: Facts) -> str:
    """The beginning of the SHA-256 that a file has to have, if its source is known; else empty.

    The hub's cache names files by it, open_clip's releases have it in their names, and the
    original's CLIP in its addresses.
    """
    blob = os.path.realpath(path).rpartition(os.sep)[2]
    if path.is_symlink() and _BLOB.fullmatch(blob):
        return blob
    if _is_named_by(path, facts) and (match := _IN_URL.search(str(facts["url"]))):
        return match[1]
    match = _NAMED_HASH.search(path.name)
    return match[1] if match else ""


def _check_hash(path: Path, facts: Facts) -> None:
    expected = known_hash(path, facts)
    if expected and not file_hash(path).startswith(expected):
        raise UserError(
            f"{path} is damaged, or another file than its name says (its SHA-256 does not start "
            f"with {expected[:16]}); fetch it again, or give another by --clip_weights"
        )
