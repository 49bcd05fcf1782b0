"""The Inception of all evaluators against torch-fidelity's and clean-fid's networks."""

from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
import torchvision
from cleanfid import inception_pytorch
from cleanfid.fid import get_files_features
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

from taming.evaluation.metrics.extractor_files import INCEPTION, SPATIAL
from taming.evaluation.metrics.features import Extraction, Extractor, make_extractors
from taming.evaluation.metrics.resizes import CLEAN
from tests.kit.extractor import write_inception_weights
from tests.kit.images import read_images, scene_folder

LAYERS = ("64", "192", "768", "2048", "logits_unbiased", "logits")


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception_weights(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return scene_folder(tmp_path_factory.mktemp("images") / "scenes", 3)


def test_features_are_torch_fidelitys_to_the_bit(weights: Path, folder: Path) -> None:
    """So that its numbers are, of a forward pass that serves other evaluators as well."""
    theirs = FeatureExtractorInceptionV3(INCEPTION, list(LAYERS), str(weights))
    maps: list[Tensor] = []
    theirs.Mixed_6d.branch1x1.register_forward_hook(lambda *call: maps.append(call[2]))
    images = read_images(folder)
    expected = dict(zip(LAYERS, theirs(images), strict=True))
    found = Extractor(layers=(*LAYERS, SPATIAL), weights=weights)(images)
    for layer in LAYERS:
        assert torch.equal(found[layer], expected[layer]), layer
    # The first 7 channels of the branch, by rows, columns and then channels, as TensorFlow has it.
    assert maps[0].shape == (3, 192, 17, 17)
    spatial = maps[0].numpy().transpose(0, 2, 3, 1)[..., :7].reshape(3, -1)
    np.testing.assert_array_equal(found[SPATIAL].numpy(), spatial)
    assert spatial.shape == (3, 2023) and spatial.std() > 0
    few = Extractor(layers=("logits", "192"), weights=weights)(images[:1])  # logits by themselves
    assert torch.equal(few["192"], expected["192"][:1])
    torch.testing.assert_close(few["logits"], expected["logits"][:1])


def test_nothing_behind_the_last_layer_is_computed(weights: Path, folder: Path) -> None:
    extractor = Extractor(layers=[SPATIAL], weights=weights)
    with patch.object(extractor.module.Mixed_7a, "forward", side_effect=AssertionError):
        assert extractor(read_images(folder)[:1])[SPATIAL].shape == (1, 2023)


def clean_network(weights: Path) -> nn.Module:
    """clean-fid's own network with our weights, without its download."""
    plain = torch.load(weights, weights_only=True)
    build = torchvision.models.inception_v3
    with (
        patch.object(inception_pytorch, "load_state_dict_from_url", return_value=plain),
        patch.object(torchvision.models, "inception_v3", lambda *_, pretrained, **kw: build(**kw)),
    ):
        return inception_pytorch.InceptionV3(resize_input=False, normalize_input=False).eval()


def test_features_are_clean_fids(weights: Path, folder: Path) -> None:
    network = clean_network(weights)

    def model(images: Tensor) -> Tensor:
        return network((images - 128) / 128)[0].flatten(1)  # as its TorchScript module does it

    files = sorted(map(str, folder.iterdir()))
    expected = get_files_features(
        files, model, num_workers=0, device=torch.device("cpu"), verbose=False
    )
    by_tensorflow, clean = make_extractors(
        [Extraction(INCEPTION, ("2048",), weights, resize) for resize in (None, CLEAN)]
    )
    assert clean.module is by_tensorflow.module  # in memory once
    images = read_images(folder)
    found = clean(images)["2048"].numpy()
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5 * expected.max())
    other = by_tensorflow(images)["2048"].numpy()
    assert np.abs(other - expected).max() > 100 * np.abs(found - expected).max()
    assert clean.describe()["resize"] == "pillow-bicubic-float 299"
    assert by_tensorflow.describe()["resize"] == "tf1-bilinear 299"


def test_images_of_the_networks_size_are_not_resized(weights: Path) -> None:
    """As torch-fidelity's resize to the same size changes nothing."""
    images = torch.randint(0, 256, (1, 3, 299, 299), dtype=torch.uint8)
    theirs = FeatureExtractorInceptionV3(INCEPTION, ["192"], str(weights))(images)[0]
    found = Extractor(layers=["192"], weights=weights)
    assert torch.equal(found(images)["192"], theirs)
    assert torch.equal(found.of_resized(images.float())["192"], theirs)
