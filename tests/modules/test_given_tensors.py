"""What first stages say of tensors from Python that are no images, or no indices of theirs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.modules.transformer.kmeans import KMeans
from tests.kit.models import DALLE, DEPTH, build, first_stage_config, transformer_config

STAGES: dict[str, Any] = {
    "VQModel": first_stage_config(),
    "interface": first_stage_config("taming.models.latent_diffusion.VQModelInterface"),
    "dalle": DALLE,
    "depth": DEPTH,
    "transformer": transformer_config(first_stage_config=first_stage_config()),
}


def stage(name: str) -> Any:
    if name == "KMeans":
        colors = KMeans(ncluster=12)
        colors.initialize(torch.rand(64, 3))
        return colors
    return build(STAGES[name]).eval()


@pytest.mark.parametrize("name", [*STAGES, "KMeans"])
def test_a_sentence_for_what_cannot_be_encoded_or_decoded(name: str) -> None:
    model = stage(name)
    channels = 1 if name == "depth" else 3
    x = torch.rand(2, channels, 16, 16)
    floats = rf"images are a tensor \[B, {channels}, H, W\] of floats in \[-1, 1\], not "
    for given, message in (
        (x[0], rf"a tensor \[{channels}, 16, 16\] of float32: x\[None\] is a batch of one"),
        (x.permute(0, 2, 3, 1), r"permute\(0, 3, 1, 2\) puts the channels first"),
        ((x * 255).to(torch.uint8), r"of uint8: of bytes, x / 127.5 - 1"),
        (x.numpy(), r"an array .*: torch.from_numpy\(x\)"),
        (None, "None"),
        (torch.rand(2, 2, 16, 16), r"a tensor \[2, 2, 16, 16\]"),
        (x[:0], r"a tensor \[0, "),
        (x[..., :0], "a tensor"),
    ):
        with pytest.raises(UserError, match=floats + f".*{message}|{floats}{message}"):
            model.encode_to_indices(given)
    indices = model.encode_to_indices(x)
    assert model.decode_indices(indices).shape == x.shape
    count = 16 if name == "dalle" else 12
    whole = rf"indices are a tensor \[B, h, w\] of integers from 0 to {count - 1}"
    for wrong, message in (
        (indices.float(), ", not a tensor .* of float32"),
        (indices.numpy(), ", not an array"),
        (indices[:0], r", not a tensor \[0,"),
        (indices > 3, ", not a tensor .* of bool"),
        (torch.full_like(indices, count), f"; these are from {count} to {count}"),
        (indices - count, "; these are from -"),
    ):
        with pytest.raises(UserError, match=whole + message):
            model.decode_indices(wrong)


def test_images_have_at_least_a_code() -> None:
    model = build(first_stage_config())
    with pytest.raises(UserError, match=r"\[1, 3, 1, 16\] of float32, with H and W from 2 on"):
        model.encode_to_indices(torch.rand(1, 3, 1, 16))
    assert model.encode_to_indices(torch.rand(1, 3, 2, 4)).shape == (1, 1, 2)


def test_encoders_of_others_are_not_measured() -> None:
    class Patches(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x.mean((2, 3), keepdim=True).repeat(1, 4, 1, 1)[:, :8]

    model = build(first_stage_config())
    model.encoder = Patches()
    model.encode_to_indices(torch.rand(1, 2, 1, 1))
    with pytest.raises(UserError, match=r"a tensor \[B, C, H, W\] of floats"):
        model.encode_to_indices(np.zeros((1, 3, 2, 2)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"temperature": 0}, "temperature is 0; it must be above 0 .sample=False"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"top_k": 0}, "top_k is 0; it must be at least 1"),
        ({"top_p": 0.0}, "top_p is 0.0; it must be above 0"),
        ({"top_p": -1.0}, "top_p is -1.0"),
        ({"steps": -1}, "steps is -1; it must be 0 or more"),
        ({"c": torch.tensor([[99]])}, "c: a tensor .* from 0 to 22 .* from 99 to 99"),
        ({"c": torch.tensor([[-1]])}, "c: .* from -1 to -1"),
        ({"c": torch.tensor([1])}, r"c: .*, not a tensor \[1\] of int64"),
        ({"x": torch.zeros(1, 0)}, r"x: .*, not a tensor \[1, 0\] of float32"),
    ],
)
def test_a_sentence_for_what_cannot_be_continued(changes: Any, message: str) -> None:
    whole = {"x": torch.zeros(1, 0).long(), "c": torch.tensor([[1]]), "steps": 2, "sample": True}
    model = build(transformer_config()).eval()
    assert model.sample(**whole).shape == (1, 2)
    with pytest.raises(UserError, match=message):
        model.sample(**{**whole, **changes})
