"""Which model the weights in a file belong to, as the file itself says: the header of safetensors,
or an entry beside the weights.

Names and shapes do not tell all quantizers apart: codes by angle are saved like nearest ones.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open

from taming.checkpoint.formats import is_safetensors, read_content
from taming.config import load_config, plain
from taming.config_files import as_stage
from taming.errors import UserError

NAME = "taming_model"  # of the entry


def header_of(model: Mapping[str, Any]) -> dict[str, str]:
    """The header of a file with the weights of a config's `model` section."""
    return {NAME: json.dumps(as_stage(plain(model)))}


def header_text(path: Path) -> str | None:
    """What a file says of its model, as it is there, and not trusted; None of other files."""
    try:
        if is_safetensors(path):
            with safe_open(path, "pt") as file:
                return (file.metadata() or {}).get(NAME)
        if not zipfile.is_zipfile(path):  # of torch before 1.6, which would be read as a whole
            return None
    except (SafetensorError, OSError):  # what is wrong with it is said where it is read
        return None
    content = read_content(path)
    text = content.get(NAME) if isinstance(content, Mapping) else None
    return text if isinstance(text, str) else None


def section_in_header(path: Path) -> dict[str, Any] | None:
    """The `model` section that a file's header has; None of other files.

    It is trusted as little as the configs of others' runs.

    Raises:
        UserError: for what is no such section, and for names that are not trusted.
    """
    text = header_text(path)
    if text is None:
        return None
    try:
        section = json.loads(text)
    except (ValueError, RecursionError):
        section = None
    if not is_section(section):
        raise UserError(
            f"the header of {path} has '{NAME}', which names no model; name its YAML with --base"
        )
    with TemporaryDirectory() as folder:  # all checks of strangers' configs are those of files
        copy = Path(folder, f"the header of {path.name}")
        copy.write_text(json.dumps({"model": section}), encoding="utf-8")
        try:
            config = load_config([], stored=[copy], used=["model"])
        except UserError as error:
            raise UserError(str(error).replace(f"{folder}{os.sep}", "")) from None
    checked: Any = OmegaConf.to_container(config.model)
    return dict(checked)


def is_section(value: Any) -> bool:
    """Whether a header's content has what a `model` section has."""
    if not isinstance(value, dict) or not isinstance(value.get("target"), str):
        return False
    return isinstance(value.get("params", {}), dict)
