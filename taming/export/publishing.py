"""A run as a repository of the Hugging Face Hub: its files, and uploading them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from torch import nn

from taming.atomic_files import write_text
from taming.checkpoint.hub import PUSHED
from taming.checkpoint.hub_names import (
    LOGIN,
    HubName,
    endpoint,
    explained,
    require_library,
    said_by_server,
)
from taming.config import without_checkpoint_paths
from taming.errors import UserError
from taming.export.weights import save_weights, weights_of

CONFIG, CARD = "config.yaml", "README.md"
# `${name:...}` in a config calls a function, which is off in configs of others.
_CALL = re.compile(r"\$\{[^}]*:")


def published_config(config: DictConfig) -> dict[str, Any]:
    """The sections of a run's config that others need: `model` without paths of checkpoints, and
    `data`, unless that calls functions, which could put what the environment holds into it."""
    sections = {"model": without_checkpoint_paths(config.model)}
    if "data" in config:
        data = OmegaConf.to_container(config, resolve=False)["data"]  # type: ignore[call-overload, index]
        if not any(isinstance(text, str) and _CALL.search(text) for _, text in _entries(data)):
            sections["data"] = data
    return sections


def own_paths(config: Mapping[str, Any]) -> list[str]:
    """`key=path` for the absolute paths in a config: folders of this machine."""
    return [
        f"{key}={value}"
        for key, value in _entries(config)
        if isinstance(value, str) and Path(value).is_absolute()
    ]


def _entries(node: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """All that is no dict or list in a config, by its key."""
    items = node.items() if isinstance(node, Mapping) else ()
    for key, value in enumerate(node) if isinstance(node, list) else items:
        yield from _entries(value, f"{place}.{key}".lstrip("."))
    if not isinstance(node, Mapping | list):
        yield place, node


def write_repository(
    folder: Path, model: nn.Module, config: Mapping[str, Any], card: str
) -> list[Path]:
    """Write `model.safetensors`, `config.yaml` and `README.md` into a new or empty folder.

    Raises:
        UserError: if there is anything in it.
    """
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise UserError(f"{folder} is there and not empty; give a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    save_weights(weights_of(model), folder / PUSHED, config["model"])
    write_text(folder / CONFIG, yaml.safe_dump(dict(config), sort_keys=False))
    write_text(folder / CARD, card)
    return [folder / name for name in (CARD, CONFIG, PUSHED)]


@dataclass(frozen=True)
class Place:
    """Where a repository is on the hub, and whether it was there before."""

    url: str
    existed: bool


def require_login(name: HubName) -> None:
    """Raise `UserError` without `huggingface_hub`, and where nobody is logged in to the usual hub.
    Servers of HF_ENDPOINT may ask for no login."""
    require_library()
    from huggingface_hub import get_token

    if endpoint() is None and get_token() is None:
        raise UserError(f"{name} is changed by those alone who are logged in; {LOGIN}")


def prepare(name: HubName, card: str, *, private: bool = False) -> Place:
    """Make a repository, if there is none, and its branch, before gigabytes are written for it.

    A revision that is not there becomes a branch. `private` holds for new repositories. Nothing is
    made or changed if the hub does not take the model card, as with a license that it does not
    know.

    Raises:
        UserError: for such a card, and without a login, a network, or rights to make it.
    """
    require_login(name)
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint())
    with explained(name):
        _check_card(name, card, api.endpoint)
        existed = api.repo_exists(name.repository)
        if not existed:
            api.create_repo(name.repository, private=private, exist_ok=True)
        if name.revision:
            api.create_branch(name.repository, branch=name.revision, exist_ok=True)
    return Place(f"{api.endpoint}/{name.repository}", existed)


def upload(folder: Path, name: HubName) -> None:
    """Upload a folder's files as one commit to a repository that is there, see `prepare`.

    Raises:
        UserError: without a login, rights, or a network.
    """
    from huggingface_hub import HfApi

    with explained(name):
        HfApi(endpoint=endpoint()).upload_folder(
            repo_id=name.repository,
            folder_path=folder,
            revision=name.revision,
            commit_message="Upload with taming push",
        )


def _check_card(name: HubName, card: str, server: str) -> None:
    """Refuse (`UserError`) a model card that the hub would, once the repository is made."""
    from huggingface_hub.errors import BadRequestError
    from huggingface_hub.utils import get_session, hf_raise_for_status

    question = {"content": card, "repoType": "model"}
    answer = get_session().post(f"{server}/api/validate-yaml", json=question)
    try:
        hf_raise_for_status(answer)
    except BadRequestError as error:
        reason = said_by_server(error.server_message or "")
        raise UserError(
            f"{name}: the hub does not take the model card ({reason}); give --license and --tags "
            "as it calls them"
        ) from None
