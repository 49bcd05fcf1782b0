"""Models of the Hugging Face Hub by name, as `hf:owner/name` or `hf:owner/name@revision`.

Weights as safetensors and configs are fetched, into the cache of `huggingface_hub`, and nothing
else of a repository. Nothing is executed from it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taming.checkpoint.formats import files_of_index
from taming.checkpoint.hub import CONFIG, preferred
from taming.errors import UserError, shortened
from taming.shipped import extra

PREFIX = "hf:"
_ENDINGS = (".safetensors", ".safetensors.index.json")
_CONFIGS = ("*.yaml", "*.yml", CONFIG)
_BELOW = "*/*"  # parts of pipelines of several models
_PART = r"(?![\w.-]*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]+))?", re.ASCII)
_MOST_REASON = 200  # characters of what the server says
_LATER = (408, 425, 429)  # statuses of servers that are busy, beside those from 500
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# Of the libraries that talk to servers, of which huggingface_hub has used several.
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, and its branch, tag or commit; None: its main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, name: str | Path) -> HubName:
        """Of `owner/name[@revision]`, with or without `hf:`; UserError for anything else.

        A `Path` of Windows has turned the slashes of a name, which has no others.
        """
        text = str(name).replace("\\", "/")
        match = _NAME.fullmatch(text.removeprefix(PREFIX))
        if match is None:
            raise UserError(
                f"'{text}' is no name on the hub; write hf:owner/name or hf:owner/name@revision"
            )
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return PREFIX + self.repository + (f"@{self.revision}" if self.revision else "")

    @property
    def folder(self) -> Path:
        """Where files that are made with the model go, as they do into the folder of a run."""
        return Path("logs", str(self).removeprefix(PREFIX).replace("/", "--"))


class _NoBar(tqdm):
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **{**options, "disable": True})


def is_hub_name(path: str | Path) -> bool:
    """Whether it is meant for one: it begins with `hf:`."""
    return str(path).startswith(PREFIX)


def fetch(name: HubName, *, cached_only: bool = False) -> Path:
    """The safetensors to use of a repository, beside its configs in a folder of the cache.

    Without a network, or if `cached_only`, that is what was fetched before. Weights that are not
    used are not fetched.

    Raises:
        UserError: if it is not there, has no safetensors or several, needs a login, or cannot be
            fetched.
    """
    require_library()
    from huggingface_hub import errors

    with explained(name, cached_only):
        if cached_only:
            return _from_cache(name)
        try:
            files = _files_of(name)
        except errors.RevisionNotFoundError:
            raise
        except Exception as error:
            if isinstance(error, OSError) or _is_of_network(error):
                return _from_cache(name, error)
            raise
        weights = _weights_among(files, name)
        if weights is None:
            raise UserError(
                f"{name} has no weights as safetensors at its top, and others are not fetched, as "
                "pickles may hold programs; ask its owner for a model.safetensors"
            )
        folder = _snapshot(name, (*_CONFIGS, weights, *_averages_of(weights)))
        if parts := _parts_of(folder / weights):  # of the same commit, whose name the folder has
            _snapshot(HubName(name.repository, folder.name), parts)
        return folder / weights


def _files_of(name: HubName) -> list[str]:
    """The files at the top of a repository."""
    from huggingface_hub import HfApi

    info = HfApi(endpoint=endpoint()).model_info(name.repository, revision=name.revision)
    files = [file.rfilename for file in info.siblings or ()]
    return [file for file in files if "/" not in file]


def _snapshot(name: HubName, wanted: Sequence[str], cached_only: bool = False) -> Path:
    """The folder, in the cache, with those files of a repository that fit a pattern."""
    from huggingface_hub import snapshot_download

    folder = snapshot_download(
        name.repository,
        revision=name.revision,
        allow_patterns=list(wanted),
        ignore_patterns=[_BELOW],
        local_files_only=cached_only,
        endpoint=endpoint(),
        tqdm_class=_NoBar,  # of the number of files; each large one has its own
    )
    return Path(folder)


def _from_cache(name: HubName, refusal: Exception | None = None) -> Path:
    """As `fetch`, of what was fetched before; `refusal` is what the hub says instead.

    A download that broke off has left configs, and no weights. Other programs may have put weights
    of other formats into the same folder.
    """
    from huggingface_hub import errors

    try:
        folder = _snapshot(name, _CONFIGS, cached_only=True)
        weights = _weights_among([path.name for path in folder.glob("*") if path.is_file()], name)
        if weights is None:
            raise errors.LocalEntryNotFoundError(f"{folder} has no weights")
    except errors.LocalEntryNotFoundError:
        if isinstance(refusal, errors.HfHubHTTPError):
            raise refusal from None
        raise
    return folder / weights


def _weights_among(files: Collection[str], name: HubName) -> str | None:
    """The safetensors, or their index, to use of a repository's files; UserError for several."""
    usual = [file for file in preferred(files) if file in files and file.endswith(_ENDINGS)][:1]
    found = usual or sorted(file for file in files if file.endswith(_ENDINGS[0]))
    if len(found) > 1:
        raise UserError(
            f"{name} has several files with weights ({', '.join(found)}); fetch one with `hf "
            f"download {name.repository} {found[0]}`, and load that file with its config as --base"
        )
    return found[0] if found else None


def _averages_of(weights: str) -> tuple[str, ...]:
    """The file with the average of weights that no index names."""
    stem, ending, rest = weights.partition(_ENDINGS[0])
    return () if rest else (f"{stem}_ema{ending}",)


def _parts_of(weights: Path) -> tuple[str, ...]:
    """The files that an index names; none of one that cannot be read, which loading says."""
    if not weights.name.endswith(_ENDINGS[1]):
        return ()
    try:
        return tuple(sorted(set(files_of_index(weights).values())))
    except (ValueError, RecursionError):
        return ()


def require_library() -> None:
    """Raise `UserError` without `huggingface_hub`."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(f"models on the hub need huggingface_hub: {extra('hub')}")


def endpoint() -> str | None:
    """The server's address in HF_ENDPOINT, also if that was set late; None: the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def explained(name: HubName, cached_only: bool = False) -> Iterator[None]:
    """Raise what the hub's library does about a repository as `UserError`, but for bugs.

    With `cached_only` the hub was not asked.
    """
    try:
        yield
    except Exception as error:
        if (message := _explanation(error, name, cached_only)) is None:
            raise
        raise UserError(message) from None


def _explanation(error: Exception, name: HubName, cached_only: bool) -> str | None:
    """A sentence about what the hub's library has raised; None of what it has not."""
    from huggingface_hub import errors

    revision = name.revision or "main"
    way = (
        "; load it with download=True, which fetches it"
        if cached_only
        else ", and the hub cannot be reached; connect to the network (HF_HUB_OFFLINE must not be "
        "set), and fetch it once"
    )
    sentences: tuple[tuple[type[Exception], str], ...] = (
        (
            errors.GatedRepoError,
            f"{name} is gated: accept its terms on its page on the hub, and {LOGIN}",
        ),
        (
            errors.RepositoryNotFoundError,
            f"there is no {name} on the hub, or it is private; check the name, or {LOGIN}",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name}: there is no branch, tag or commit '{revision}'; choose one that its page on "
            "the hub lists",
        ),
        (errors.HFValidationError, f"'{name}' is no name on the hub ({error})"),
        (
            errors.LocalEntryNotFoundError,
            f"{name} is not in the cache, or not all of it{way}",
        ),
        (
            errors.OfflineModeIsEnabled,
            f"{name} cannot be reached while HF_HUB_OFFLINE is set; unset it",
        ),
    )
    found = next((text for kind, text in sentences if isinstance(error, kind)), None)
    if found is None and isinstance(error, errors.HfHubHTTPError):
        return _refusal(name, error.response.status_code, error.server_message or "")
    if found is None and _is_of_network(error):
        reason = str(error) or type(error).__name__
        return f"{name}: the hub cannot be reached ({reason}); check the network, and try again"
    return found


def said_by_server(text: str) -> str:
    """A server's reason as a part of one sentence."""
    return shortened(" ".join(text.split()).rstrip("."), _MOST_REASON)


def _refusal(name: HubName, status: int, reason: str) -> str:
    """What the hub's server says that it does not do."""
    reason = said_by_server(reason)
    said = f"{status}: {reason}" if reason else str(status)
    if status in _LATER or status >= 500:
        return f"{name}: the hub answers {said}; try again later"
    if status == 401 or (status == 403 and not reason):
        return f"{name}: the hub refuses that ({said}) without rights to it; {LOGIN}"
    advice = f"mend that, or {LOGIN} as who may do it" if status == 403 else "mend that first"
    return f"{name}: the hub refuses that ({said}); {advice}"


def _is_of_network(error: Exception) -> bool:
    """Also what a download that breaks off raises, which is no error of the system."""
    transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
    return transport or (isinstance(error, OSError) and error.errno is None)
