"""What only a CUDA device can show: `make test-gpu`, or pytest -m gpu."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch

from taming.checkpoint import read_checkpoint
from taming.config import instantiate_from_config
from taming.lightning_internals import scaler_of
from taming.modules.transformer.mingpt import GPT, sample_with_past
from taming.training.cli import main as main_command
from tests.kit.first_stages import batches
from tests.kit.training import small_vqgan, write_config
from tests.models.test_stability import make
from tests.models.test_vqgan import golden_vqmodel
from tests.support import fill_by_name, load_golden

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed"])
def test_first_stage_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    monkeypatch.chdir(tmp_path)
    base = write_config(tmp_path, small_vqgan())
    flags = ["--gpus", "0,", "--max_steps", "4", "--precision", precision]
    main(["--base", base, "-t", *flags, "--gradient_clip_val", "1.0"])
    [last] = tmp_path.glob("logs/*/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(last)
    assert checkpoint["global_step"] == 4
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())


@pytest.mark.parametrize("fused", [False, True])
def test_float16_has_one_scale_and_clips_without_it(tmp_path: Path, fused: bool) -> None:
    """Updates are those of fp32 up to rounding: a clipped scaled gradient would be near 0."""
    weights = {}
    for precision in ("32-true", "16-mixed"):
        model = make(fused_optimizer=fused)
        model.gradient_clip_val, model.accumulate_grad_batches = 0.25, 2
        before = model.decoder.conv_out.weight.detach().clone()
        trainer = gpu_trainer(tmp_path, precision=precision, max_steps=2)
        trainer.fit(model, batches(4))
        weights[precision] = model.decoder.conv_out.weight.detach().cpu() - before
    scaler = scaler_of(trainer)
    assert scaler is not None and scaler.state_dict()["_growth_tracker"] == 2
    step, exact = weights["16-mixed"], weights["32-true"]
    assert torch.nn.functional.cosine_similarity(step.flatten(), exact.flatten(), dim=0) > 0.9


def gpu_trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    return pl.Trainer(accelerator="gpu", devices=1, default_root_dir=folder, **quiet, **options)


@torch.no_grad()
def test_forward_passes_equal_the_golden_numbers() -> None:
    model, golden = golden_vqmodel()
    model, x = model.cuda(), golden["x"].cuda()
    torch.testing.assert_close(model(x)[0].cpu(), golden["rec"], atol=1e-3, rtol=1e-3)
    agree = (model.encode(x)[2][2].cpu() == golden["indices"]).float().mean()
    assert agree > 0.99


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_sampling_equals_the_cpu(dtype: torch.dtype) -> None:
    golden, spec = load_golden("gpt")
    gpt: Any = fill_by_name(GPT(**spec["gpt"])).eval().cuda()
    tokens = sample_with_past(golden["greedy.c"].cuda(), gpt, 20, sample_logits=False)
    assert torch.equal(tokens.cpu(), golden["greedy.out"])
    with torch.autocast("cuda", dtype):
        logits, _ = gpt(golden["gpt.idx"].cuda())
    torch.testing.assert_close(logits.float().cpu(), golden["gpt.logits"], atol=0.1, rtol=0.1)


def test_compiled_decoder_and_encoder_agree_with_eager() -> None:
    _, spec = load_golden("vqmodel")
    model = instantiate_from_config(spec["model"]).eval().cuda()
    x = torch.rand(2, 3, 32, 32, device="cuda") * 2 - 1
    with torch.no_grad():
        expected = model.decoder(model.post_quant_conv(model.encode(x)[0]))
        compiled = torch.compile(model.decoder)(model.post_quant_conv(model.encode(x)[0]))
    torch.testing.assert_close(compiled, expected, atol=1e-3, rtol=1e-3)
