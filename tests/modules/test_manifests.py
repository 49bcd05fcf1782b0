"""Names, shapes and dtypes of every published first stage, both ways."""

import json

import pytest
import torch

from tests.modules.first_stage import FirstStage
from tests.support import GOLDEN, load_manifest

NAMES = sorted(
    path.stem
    for path in (GOLDEN / "manifests").glob("*.json")
    if "taming.models.vqgan" in json.loads(path.read_text())["model"]["target"]
)


@pytest.mark.parametrize("name", NAMES)
def test_state_dict_is_the_published_one(name):
    model, published = load_manifest(name)
    with torch.device("meta"):
        stage = FirstStage(model["params"], gumbel=model["target"].endswith("GumbelVQ"))
    published.pop("colorize", None)  # a buffer of the segmentation model itself
    ours = {
        key: [list(tensor.shape), str(tensor.dtype).removeprefix("torch.")]
        for key, tensor in stage.state_dict().items()
    }
    assert ours == published
    assert all(tensor.is_meta for tensor in stage.state_dict().values())


def test_manifests_of_all_kinds_are_there():
    assert len(NAMES) >= 10
