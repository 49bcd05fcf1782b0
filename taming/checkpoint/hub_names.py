"""Models of the Hugging Face Hub by name, as `hf:owner/name` or `hf:owner/name@revision`.

Weights as safetensors and configs are fetched, into the cache of `huggingface_hub`, and nothing
else of a repository. Nothing is executed from it.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from taming.checkpoint.hub import CONFIG, WEIGHTS
from taming.errors import UserError

PREFIX = "hf:"
_ENDINGS = (".safetensors", ".safetensors.index.json")
WANTED = (*(f"*{ending}" for ending in _ENDINGS), "*.yaml", "*.yml", CONFIG)
_BELOW = "*/*"  # parts of pipelines of several models
_PART = r"(?!.*(?:--|\.\.))[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?"
_NAME = re.compile(rf"({_PART}/{_PART})(?:@([^\s@]+))?", re.ASCII)
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN"
# Of the libraries that talk to servers, of which huggingface_hub has used several.
_TRANSPORTS = ("httpx", "httpx2", "httpcore", "requests", "urllib3")


@dataclass(frozen=True)
class HubName:
    """A repository on the hub, and its branch, tag or commit; None: its main branch."""

    repository: str
    revision: str | None = None

    @classmethod
    def parse(cls, text: str) -> HubName:
        """Of `owner/name[@revision]`, with or without `hf:`; UserError for anything else."""
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
    """The folder, in the cache, with the safetensors and configs of a repository.

    Without a network, or if `cached_only`, that is what was fetched before.

    Raises:
        UserError: if it is not there, needs a login, or cannot be fetched.
    """
    require_library()
    from huggingface_hub import snapshot_download

    with explained(name):
        folder = snapshot_download(
            name.repository,
            revision=name.revision,
            allow_patterns=list(WANTED),
            ignore_patterns=[_BELOW],
            local_files_only=cached_only,
            endpoint=endpoint(),
            tqdm_class=_NoBar,  # of the number of files; each large one has its own
        )
    return Path(folder)


def weights_in(folder: Path, name: HubName) -> Path:
    """The safetensors to use in a folder from `fetch`; UserError if there are none, or several.

    Other programs may have put weights of other formats into the same folder.
    """
    found = [folder / file for file in WEIGHTS if (folder / file).is_file()]
    found = [path for path in found if path.name.endswith(_ENDINGS)][:1]
    found = found or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    if found:
        names = ", ".join(path.name for path in found)
        raise UserError(f"{name} has several files with weights ({names}); load one from {folder}")
    raise UserError(
        f"{name} has no weights as safetensors at its top, and others are not fetched, as pickles "
        "may hold programs; ask its owner for a model.safetensors"
    )


def require_library() -> None:
    """Raise `UserError` without `huggingface_hub`."""
    if importlib.util.find_spec("huggingface_hub") is None:
        raise UserError(
            "models on the hub need huggingface_hub: pip install 'taming-transformers[hub]'"
        )


def endpoint() -> str | None:
    """The server's address in HF_ENDPOINT, also if that was set late; None: the usual one."""
    return os.environ.get("HF_ENDPOINT") or None


@contextmanager
def explained(name: HubName) -> Iterator[None]:
    """Raise what the hub's library does about a repository as `UserError`, but for bugs."""
    try:
        yield
    except Exception as error:
        if (message := _explanation(error, name)) is None:
            raise
        raise UserError(message) from None


def _explanation(error: Exception, name: HubName) -> str | None:
    """A sentence about what the hub's library has raised; None of what it has not."""
    from huggingface_hub import errors

    revision = name.revision or "main"
    sentences: tuple[tuple[type[Exception], str], ...] = (
        (
            errors.GatedRepoError,
            f"{name} is gated: accept its terms on its page on the hub, and {_LOGIN}",
        ),
        (
            errors.RepositoryNotFoundError,
            f"there is no {name} on the hub, or it is private; check the name, or {_LOGIN}",
        ),
        (
            errors.RevisionNotFoundError,
            f"{name}: there is no branch, tag or commit '{revision}'; choose one that its page on "
            "the hub lists",
        ),
        (errors.HFValidationError, f"'{name}' is no name on the hub ({error})"),
        (
            errors.LocalEntryNotFoundError,
            f"{name} is not in the cache, or not all of it, and the hub cannot be reached; connect "
            "to the network (HF_HUB_OFFLINE must not be set), and fetch it once",
        ),
        (
            errors.OfflineModeIsEnabled,
            f"{name} cannot be reached while HF_HUB_OFFLINE is set; unset it",
        ),
    )
    found = next((text for kind, text in sentences if isinstance(error, kind)), None)
    if found is None and isinstance(error, errors.HfHubHTTPError):
        return _refusal(error, name)
    if found is None and _is_of_network(error):
        reason = str(error) or type(error).__name__
        return f"{name}: the hub cannot be reached ({reason}); check the network, and try again"
    return found


def _refusal(error: Exception, name: HubName) -> str:
    """What the hub's server says that it does not do."""
    status = re.search(r"\b[45]\d\d\b", str(error))
    if status is not None and status[0] in ("401", "403"):
        return f"{name}: the hub refuses that ({status[0]}) without rights to it; {_LOGIN}"
    return f"{name}: the hub answers {status[0] if status else error}; try again later"


def _is_of_network(error: Exception) -> bool:
    """Also what a download that breaks off raises, which is no error of the system."""
    transport = type(error).__module__.partition(".")[0] in _TRANSPORTS
    return transport or (isinstance(error, OSError) and error.errno is None)
