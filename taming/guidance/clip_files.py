"""Where the weights of CLIP are, and whether they are what their names say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from taming.checkpoint import HubName, is_program, read_content, read_program
from taming.checkpoint.weight_sets import choose
from taming.downloads import file_hash
from taming.errors import UserError, absence
from taming.user_files import with_home

Facts = Mapping[str, Any]
CACHE = "~/.cache/clip"  # of open_clip and the original's CLIP
HUB, LOCAL = "hf-hub:", "local-dir:"  # before what is no name of an architecture
CONFIG = "open_clip_config.json"
HUB_FILES = (
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_NAMED_HASH = re.compile(r"-([0-9a-f]{8,64})\.\w+$")
_IN_URL = re.compile(r"/([0-9a-f]{64})/")
_BLOB = re.compile(r"[0-9a-f]{64}")


def clip_folder(name: str) -> Path | None:
    """The folder with a config that `name` is, or None if it is the name of an architecture.

    `hf-hub:owner/name`, as open_clip writes it, is one of the hub's cache, and `local-dir:FOLDER`
    the folder.

    Raises:
        UserError: if there is no such folder, or no config in it.
    """
    if name.startswith((HUB, "hf:")):
        return _in_cache_of_hub(HubName.parse(name.partition(":")[2]))
    folder = with_home(Path(name.removeprefix(LOCAL)))
    if (folder / CONFIG).is_file():
        return folder
    if folder.is_dir():
        raise UserError(
            f"{folder} has no {CONFIG}, which says what model it is; name the model by --clip, and "
            "a file of the folder by --clip_weights"
        )
    if name.startswith(LOCAL) or "/" in name or "\\" in name:
        raise UserError(f"--clip: {absence('folder', folder)}")
    return None


def _in_cache_of_hub(name: HubName) -> Path:
    config = _in_hub_cache(name.repository, CONFIG, name.revision)
    if config is None:
        raise UserError(
            f"{name} is not on this machine, and nothing is downloaded here; fetch it with `hf "
            f"download {name.repository}`"
        )
    return config.parent


class ClipWeights(NamedTuple):
    """The tensors of a file, and `mean`, `std` and `quick_gelu` of them by open_clip's table."""

    tensors: dict[str, Tensor]
    facts: Facts
    file: Path


def clip_weights(
    open_clip: Any, model: str | Path, tag: str, explicit: str | Path | None
) -> ClipWeights:
    """What a model is made of.

    Args:
        model: a name of open_clip's, or a folder with a config.
        tag: of the published weights, or empty.
        explicit: the file that the user names.

    Raises:
        UserError: if there is no file, or one that is damaged or is no checkpoint, or of which it
            is open what it computes.
    """
    tags: dict[str, Facts] = {}
    if isinstance(model, str):
        tags = {t: open_clip.get_pretrained_cfg(model, t) for t in _tags_of(open_clip, model)}
        if tag and tag not in tags:
            raise UserError(f"{model} has no weights '{tag}'; open_clip knows {', '.join(tags)}")
    facts: Facts = {}
    if explicit is not None:
        path = with_home(Path(explicit))
        if not path.is_file():
            raise UserError(f"--clip_weights: {absence('file', path)}")
        if isinstance(model, str):
            facts = _facts_of(path, model, tag, tags)
    elif isinstance(model, Path):
        path = _in_folder(model)
    else:
        path, known = _cached(model, {tag: tags[tag]} if tag else tags)
        facts = tags[known]
    _check_hash(path, facts)
    # The original's files are programs of TorchScript, of which the tensors alone are read.
    content = read_program(path) if is_program(path) else read_content(path)
    return ClipWeights(dict(choose(content, path).tensors), facts, path)


def _facts_of(path: Path, model: str, tag: str, tags: Mapping[str, Facts]) -> Facts:
    """What the table says of a file that the user names.

    Weights of one architecture may want other activations and images. Tensors do not tell, so that
    the file's name, its place in the hub's cache or its hash has to, or else the user.

    Raises:
        UserError: if they say nothing, and not all published weights want the same; and if the
            file is that of another tag.
    """
    named = [t for t, facts in tags.items() if _is_named_by(path, facts) or _is_cached(path, facts)]
    if tag:
        if named and tag not in named:
            raise UserError(
                f"{path} is of {model}:{named[0]} by its name, not of '{tag}'; give that --clip, "
                "or rename the file if it is neither"
            )
        return tags[tag]
    if not named and len(wants := {_wanted_by(facts) for facts in tags.values()}) > 1:
        digest = file_hash(path)
        named = [t for t, facts in tags.items() if digest.startswith(_hash_of(facts) or "-")]
        if not named:
            raise _unknown(path, model, tags)
    if named:
        return tags[named[0]]
    return dict(wants.pop()) if wants else {}


def _wanted_by(facts: Facts) -> tuple[tuple[str, Any], ...]:
    """What images and activations weights were trained with."""
    found = {key: tuple(facts[key]) for key in ("mean", "std") if key in facts}
    return (*found.items(), ("quick_gelu", bool(facts.get("quick_gelu"))))


def _unknown(path: Path, model: str, tags: Mapping[str, Facts]) -> UserError:
    return UserError(
        f"nothing says which weights of {model} are in {path}, and they differ in what they "
        f"compute; add the published ones that these are, or were trained as, as --clip "
        f"{model}:TAG: {', '.join(tags)}"
    )


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
    missing = f"there are no weights of CLIP's {model} on this machine"
    if not tags:
        raise UserError(f"{missing}, and open_clip knows none; name a file by --clip_weights")
    tag, facts = next(iter(tags.items()))
    raise UserError(
        f"{missing}: {_how_to_fetch(facts)}, or name a file of them by --clip_weights, with --clip "
        f"{model}:{tag}"
    )


def _how_to_fetch(facts: Facts) -> str:
    """What puts the weights of an entry of open_clip's table to where they are looked for."""
    repository, file = _repository(facts)
    if repository:
        return f"fetch them with `hf download {repository} {file or HUB_FILES[0]}`"
    return f"put {facts.get('url', 'them')} into {CACHE}"


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


def _in_hub_cache(repository: str, file: str, revision: str | None = None) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repository, file, revision=revision)
    return Path(found) if isinstance(found, str) else None


def _is_named_by(path: Path, facts: Facts) -> bool:
    """Whether a file has the name of the published one."""
    return path.name == str(facts.get("url", "")).rpartition("/")[2]


def _is_cached(path: Path, facts: Facts) -> bool:
    """Whether a file is in the folder that the hub's cache keeps for the published one."""
    repository, _ = _repository(facts)
    return bool(repository) and f"models--{repository.replace('/', '--')}" in path.absolute().parts


def _hash_of(facts: Facts) -> str:
    """The SHA-256 of the published file, or its beginning, as far as its address has it."""
    url = str(facts.get("url", ""))
    match = _IN_URL.search(url) or _NAMED_HASH.search(url)
    return match[1] if match else ""


def known_hash(path: Path, facts: Facts) -> str:
    """The beginning of the SHA-256 that a file has to have, if its source is known; else empty.

    The hub's cache names files by it, open_clip's releases have it in their names, and the
    original's CLIP in its addresses.
    """
    blob = os.path.realpath(path).rpartition(os.sep)[2]
    if path.is_symlink() and _BLOB.fullmatch(blob):
        return blob
    if _is_named_by(path, facts) and (digest := _hash_of(facts)):
        return digest
    match = _NAMED_HASH.search(path.name)
    return match[1] if match else ""


def _check_hash(path: Path, facts: Facts) -> None:
    expected = known_hash(path, facts)
    if expected and not file_hash(path).startswith(expected):
        raise UserError(
            f"{path} is damaged, or another file than its name says (its SHA-256 does not start "
            f"with {expected[:16]}); fetch it again, or give another by --clip_weights"
        )
