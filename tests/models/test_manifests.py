"""Every published model's state_dict: names, shapes and dtypes, both ways."""

from __future__ import annotations

import pytest
import torch

from taming.config import instantiate_from_config
from tests.support import GOLDEN, load_manifest

MANIFESTS = sorted(path.stem for path in (GOLDEN / "manifests").glob("*.json"))


def test_there_are_22() -> None:
    assert len(MANIFESTS) == 22


@pytest.mark.parametrize("name", MANIFESTS)
def test_state_dict_is_the_published_one(name: str) -> None:
    config, expected = load_manifest(name)
    config.pop("base_learning_rate", None)
    with torch.device("meta"):
        state = instantiate_from_config(config).state_dict()
    actual = {
        key: [list(value.shape), str(value.dtype).removeprefix("torch.")]
        for key, value in state.items()
    }
    assert actual == expected
