"""First stages as ONNX graphs that compute what the model does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.export.onnx import to_onnx
from taming.models.codes import decoded
from tests.kit.datasets import images
from tests.kit.models import build, ddconfig, first_stage_config
from tests.scripts.test_no_room import no_room

TEMPERATURE = {
    "target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler",
    "params": dict.fromkeys(
        ("warm_up_steps", "lr_min", "lr_max", "lr_start", "max_decay_steps"), 1
    ),
}


PLACE = "taming.modules.vqvae."
# Quantizers of a `quantizer_config`: where they are, and their arguments.
OTHERS: dict[str, dict[str, Any]] = {
    "cosine.CosineQuantizer": {"n_e": 12, "e_dim": 4},
    "fsq.FSQ": {"levels": [3, 4]},
    "lfq.LFQ": {"n_e": 16},
    "bsq.BSQ": {"n_e": 16},
    "ibq.IBQ": {"n_e": 12, "e_dim": 4},
    "simvq.SimVQ": {"n_e": 12, "e_dim": 4},
    "residual.ResidualQuantizer": {"n_codes": 6, "e_dim": 4, "levels": 2},
}


def first_stage(kind: str, **extra: Any) -> Any:
    if kind in OTHERS:
        chosen = {"target": PLACE + kind, "params": OTHERS[kind]}
        sizes = {"n_embed": None, "embed_dim": None}
        return first_stage("VQModel", quantizer_config=chosen, **sizes, **extra)
    network = {**ddconfig(), "attn_resolutions": [8]}
    if kind == "GumbelVQ":
        extra["temperature_scheduler_config"] = TEMPERATURE
    place = "multi_scale" if kind == "MultiScaleVQ" else "vqgan"
    config = first_stage_config(f"taming.models.{place}.{kind}", ddconfig=network, **extra)
    return build(config).eval()


def run(path: Path, name: str, value: Tensor) -> Tensor:
    onnxruntime = pytest.importorskip("onnxruntime")
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {name: value.numpy()})[0])


@torch.no_grad()
@pytest.mark.parametrize(
    "kind",
    [
        "remapped",
        *(
            pytest.param(k, marks=pytest.mark.slow)
            for k in ("VQModel", "EMAVQ", "GumbelVQ", "MultiScaleVQ", *OTHERS)
        ),
    ],
)
def test_graphs_equal_the_model(kind: str, tmp_path: Path) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package)
    if kind == "remapped":  # the codes in reverse, without the first
        np.save(tmp_path / "used.npy", np.arange(11, 0, -1))
        model = first_stage("VQModel", remap=str(tmp_path / "used.npy"))
        model.quantize.embedding.weight[0] = 1e3  # which no latent is near
    else:
        model = first_stage(kind)
    encoder, decoder = to_onnx(model, tmp_path, size=(16, 24))
    x = images(3, height=16, width=24).permute(0, 3, 1, 2).contiguous()  # a batch of another size
    indices = model.encode_to_indices(x)
    assert torch.equal(run(encoder, "images", x), indices)
    rebuilt = run(decoder, "indices", indices)
    expected = decoded(model, indices, (8, 12))
    torch.testing.assert_close(rebuilt, expected, atol=1e-4, rtol=1e-4)


def test_the_size_is_that_of_the_training_by_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[tuple[str, tuple[int, ...]]] = []

    def export(module: Any, example: tuple[Tensor], path: str, **options: Any) -> None:
        Path(path).write_bytes(b"a graph")
        written.append((Path(path).name.split(".")[1], tuple(example[0].shape)))
        batch = {0: torch.export.Dim.DYNAMIC}
        assert options["dynamic_shapes"] == (batch,) and not module.training

    monkeypatch.setattr(torch.onnx, "export", export)
    model = first_stage("VQModel")
    for size, (height, width) in ((None, (16, 16)), ((16, 24), (16, 24))):
        assert to_onnx(model, tmp_path / "new", size) == (
            tmp_path / "new" / "encoder.onnx",
            tmp_path / "new" / "decoder.onnx",
        )
        assert written[-2:] == [
            ("encoder", (2, 3, height, width)),
            ("decoder", (2, height // 2, width // 2)),
        ]
    with no_room(), pytest.raises(UserError, match=r"cannot write .*encoder.onnx \(File too large"):
        to_onnx(model, tmp_path / "full")
