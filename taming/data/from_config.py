"""The datasets that the `data` section of a config names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from taming.config import instantiate_from_config
from taming.errors import UserError

SPLITS = ("train", "validation", "test")


def dataset_of(config: Mapping[str, Any], split: str) -> Any:
    """The dataset of `data.params.<split>`.

    Raises:
        UserError: if the config names no such dataset, and for what is wrong with its files.
    """
    sections = config.get("data", {}).get("params", {})
    if not sections.get(split):
        named = [name for name in SPLITS if sections.get(name)]
        advice = f"give --split {' or '.join(named)}" if named else "give a config with data"
        raise UserError(f"the config has no data.params.{split}; {advice}")
    return instantiate_from_config(sections[split], key=f"data.params.{split}")
