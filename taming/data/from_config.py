"""The datasets that the `data` section of a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taming.config import instantiate_from_config, plain
from taming.errors import UserError

Config = Mapping[str, Any]
SPLITS = ("train", "validation", "test")


def section_of(config: Config, split: str, source: str = "the config") -> Any:
    """The section `data.params.<split>` of a config from `source`; UserError without one."""
    sections = config.get("data", {}).get("params", {})
    if not sections.get(split):
        named = [name for name in SPLITS if sections.get(name)]
        advice = f"give --split {' or '.join(named)}" if named else "give a config with data"
        raise UserError(f"{source} has no data.params.{split}; {advice}")
    return plain(sections[split])


def dataset_of(config: Config, split: str) -> Any:
    """The dataset of `data.params.<split>`.

    Raises:
        UserError: if the config names no such dataset, and for what is wrong with its files.
    """
    section = section_of(config, split)
    return instantiate_from_config(section, f"data.params.{split}", "dataset")
