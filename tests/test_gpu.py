"""What only a CUDA device can show: `make test-gpu`, or pytest -m gpu.

Products and convolutions are exact here, without TF32 (tests/conftest.py), so that tolerances are
those of the CPU's tests; reduced precision is asked for where it is meant.
"""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import pytorch_lightning as pl
import torch

from taming.checkpoint import read_checkpoint
from taming.checkpoint.saving import Snapshots
from taming.checkpoint.shards import filled, has_shards
from taming.config import instantiate_from_config
from taming.distributed import disconnect
from taming.lightning_internals import scaler_of
from taming.modules.diffusionmodules.layers import fuses
from taming.modules.diffusionmodules.model import Decoder, Encoder
from taming.modules.discriminator.vit import ViT
from taming.modules.gpu_kernels import _works, runs_triton
from taming.modules.transformer.gpt import Block
from taming.modules.transformer.mingpt import GPT, sample_with_past
from taming.modules.transformer.own_methods import one_pass_logits
from taming.modules.transformer.token_choice import sample_token
from taming.modules.vqvae.codebook import nearest_code
from taming.sampling import sample_images
from taming.sampling.requests import Request
from taming.sampling.settings import SampleSettings
from taming.training.callbacks import ImageLogger
from taming.training.cli import main as main_command
from tests.kit.first_stages import batches
from tests.kit.models import TRANSFORMER, build
from tests.kit.training import small_vqgan, write_config, write_transformer
from tests.models.test_stability import make
from tests.models.test_vqgan import golden_vqmodel
from tests.support import assert_close, fill_by_name, load_golden

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
GPU = ("--gpus", "0,")
GENERATOR = ("train/aeloss", "train/rec_loss", "train/quant_loss")
NAMES = (*GENERATOR, "train/disc_loss")


def train(folder: Path, base: str, *flags: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """What was logged at each of four steps, and the last checkpoint."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        main(["--base", base, "-t", "--max_steps", "4", *flags])
    [table] = folder.glob("logs/*/csv/*/metrics.csv")
    rows = [row for row in csv.DictReader(table.open()) if row.get("train/aeloss")]
    [last] = folder.glob("logs/*/checkpoints/last.ckpt")
    return [{name: float(row[name]) for name in NAMES} for row in rows], read_checkpoint(last)


def train_first_stage(folder: Path, *flags: str) -> tuple[list[dict[str, float]], dict[str, Any]]:
    base = write_config(folder, small_vqgan())
    return train(folder, base, "--gradient_clip_val", "1.0", *flags)


@pytest.fixture(scope="module")
def on_the_cpu(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return train_first_stage(tmp_path_factory.mktemp("cpu"))


@pytest.mark.parametrize(
    ("precision", "tolerance", "steps"),
    # On a CPU, bf16 moves the losses by 0.5 % in four steps, and another layout of memory by 1e-5.
    # The scaler of fp16 leaves out steps until its factor is small enough.
    [("32", 1e-3, 4), ("bf16-mixed", 2e-2, 4), ("16-mixed", 1e-2, 1)],
)
def test_first_stage_trains_as_on_a_cpu(
    tmp_path: Path, on_the_cpu: Any, precision: str, tolerance: float, steps: int
) -> None:
    expected, before = on_the_cpu
    numbers, checkpoint = train_first_stage(tmp_path, *GPU, "--precision", precision)
    assert checkpoint["global_step"] == 4 and len(numbers) == len(expected) == 4
    for name in GENERATOR:
        for row, other in list(zip(numbers, expected, strict=True))[:steps]:
            assert row[name] == pytest.approx(other[name], rel=tolerance), name
    for row, other in list(zip(numbers, expected, strict=True))[1:steps]:  # the game has begun
        assert row["train/disc_loss"] == pytest.approx(other["train/disc_loss"], rel=3 * tolerance)
    state = checkpoint["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    weight = "decoder.conv_out.weight"
    assert (state[weight] - before["state_dict"][weight]).abs().max() < 4 * 2 * 5e-5 * 4


def test_runs_are_equal_where_results_must_not_change(tmp_path: Path) -> None:
    """With pictures of samples, in which probabilities are added up."""
    states = []
    for name in ("first", "second"):
        (folder := tmp_path / name).mkdir()
        base = write_transformer(folder)
        model = "model.params.{}_config.params.{}".format
        changes = [model("first_stage", "ckpt_path=null"), model("transformer", "vocab_size=64")]
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(folder)
            flags = ["--max_steps", "4", "--deterministic", "true"]
            main(["--base", base, "-t", *GPU, *flags, *changes])
        assert list(folder.glob("logs/*/images/train/samples_half*.png"))
        [last] = folder.glob("logs/*/checkpoints/last.ckpt")
        states.append(read_checkpoint(last)["state_dict"])
    torch.use_deterministic_algorithms(False)
    first, second = states
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("fused", [False, True])
def test_float16_has_one_scale_and_clips_without_it(tmp_path: Path, fused: bool) -> None:
    """Two updates go as far as those of fp32: of clipped scaled gradients they go half as far, as
    these are near Adam's epsilon. On an H100 they go 0.987 times as far, with a cosine of 0.892.
    """
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
    step, exact = (weights[name].flatten() for name in ("16-mixed", "32-true"))
    assert step.norm() == pytest.approx(float(exact.norm()), rel=0.05)
    assert torch.nn.functional.cosine_similarity(step, exact, dim=0) > 0.7


def gpu_trainer(folder: Path, **options: Any) -> pl.Trainer:
    quiet = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar"), False)
    return pl.Trainer(accelerator="gpu", devices=1, default_root_dir=folder, **quiet, **options)


@torch.no_grad()
def test_forward_passes_equal_the_golden_numbers() -> None:
    model, golden = golden_vqmodel()
    model, x = model.cuda(), golden["x"].cuda()
    assert_close(model(x)[0].cpu(), golden["rec"])
    assert_close(model.encode(x)[2][2].cpu(), golden["indices"])


def golden_gpt() -> tuple[Any, dict[str, torch.Tensor]]:
    golden, spec = load_golden("gpt")
    return fill_by_name(GPT(**spec["gpt"])).eval().cuda(), golden


def test_greedy_sampling_equals_the_cpu() -> None:
    gpt, golden = golden_gpt()
    tokens = sample_with_past(golden["greedy.c"].cuda(), gpt, 20, sample_logits=False)
    assert torch.equal(tokens.cpu(), golden["greedy.out"])


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-4), (torch.bfloat16, 0.02)])
def test_logits_equal_the_golden_ones(dtype: torch.dtype, error: float) -> None:
    gpt, golden = golden_gpt()
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        logits, _ = gpt(golden["gpt.idx"].cuda())
    expected = golden["gpt.logits"]
    assert (logits.float().cpu() - expected).norm() < error * expected.norm()


def test_every_token_is_sampled_in_bf16() -> None:
    gpt, golden = golden_gpt()
    logits = one_pass_logits(gpt.bfloat16(), golden["greedy.c"].cuda(), 3)
    assert logits.dtype == torch.float32
    uniform = (torch.arange(4096, device="cuda") + 0.5) / 4096
    tokens = sample_token(torch.zeros(4096, 1024, device="cuda", dtype=torch.bfloat16), uniform)
    assert tokens.bincount(minlength=1024).tolist() == [4] * 1024


def test_samples_equal_the_cpus() -> None:
    """Every token has its random number, on any device."""
    model = build(TRANSFORMER).eval()
    torch.nn.init.normal_(model.transformer.pos_emb)
    requests = [Request(n, (n % 5,), n % 5) for n in range(10)]
    for settings in (SampleSettings(temperature=0.0), SampleSettings(1.0, 10, 0.9)):
        drawn = [
            torch.stack([s.indices for s in sample_images(moved, requests, settings, batch_size=4)])
            for device in ("cpu", "cuda")
            for moved in [model.to(device)]
        ]
        assert torch.equal(*drawn)


def test_compiled_decoder_and_encoder_agree_with_eager() -> None:
    _, spec = load_golden("vqmodel")
    model = instantiate_from_config(spec["model"]).eval().cuda()
    x = torch.rand(2, 3, 32, 32, device="cuda") * 2 - 1
    with torch.no_grad():
        expected, indices = model(x)[0], model.encode_to_indices(x)
        compiled = torch.compile(model, fullgraph=True)(x)[0]
        found = torch.compile(model.encode_to_indices, fullgraph=True)(x)
    torch.testing.assert_close(compiled, expected, atol=1e-4, rtol=1e-4)
    assert (found == indices).float().mean() > 0.99  # a tie may be decided otherwise


def test_nearest_codes_need_no_matrix_of_all_distances() -> None:
    """In fp32, whatever the precision of other products."""
    codes, latents = torch.randn(16_384, 8).cuda(), torch.randn(65_536, 8).cuda()
    torch.set_float32_matmul_precision("high")
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    indices = nearest_code(latents, codes)
    assert torch.cuda.max_memory_allocated() - before < 1e9
    assert torch.get_float32_matmul_precision() == "high"
    some = torch.arange(0, 65_536, 64, device="cuda")
    exact = torch.cdist(latents[some].double(), codes.double()).argmin(1)
    assert (indices[some] == exact).float().mean() > 0.999


class Shows(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3, 1, 1, device="cuda"))

    def log_images(self, batch: Any) -> dict[str, torch.Tensor]:
        return {"inputs": batch["image"] + torch.randn_like(batch["image"])}


def test_pictures_leave_the_random_numbers_as_they_are() -> None:
    model: Any = Shows()
    before = torch.cuda.get_rng_state()
    ImageLogger(1, max_images=1)._pictures(model, {"image": torch.zeros(1, 3, 4, 4).cuda()}, "val")
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_snapshots_hold_what_was_there() -> None:
    tensor = torch.randn(1000, device="cuda")
    expected, snapshots = tensor.cpu(), Snapshots()
    snapshot = snapshots.take({"weight": tensor})
    tensor.zero_()
    assert torch.equal(snapshot.content["weight"], expected)
    assert snapshot.buffers[0].is_pinned()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("inputs", "outputs"), [(1536, 4608), (1536, 16384), (6144, 1536)])
def test_few_rows_times_a_matrix_in_a_row(inputs: int, outputs: int, dtype: torch.dtype) -> None:
    """Of the published sizes; each kernel reads what the one before has just written."""
    assert runs_triton(torch.device("cuda"))
    from taming.modules.triton_kernels import few_rows

    torch.manual_seed(0)
    there, back = (torch.randn(*shape, device="cuda") for shape in ((outputs, inputs),) * 2)
    there, back = (there / inputs**0.5).to(dtype), (back.T.contiguous() / outputs**0.5).to(dtype)
    gain, shift = torch.randn(2, inputs, device="cuda", dtype=dtype).unbind()
    x = torch.randn(2, inputs, device="cuda", dtype=dtype)
    y, exact = x, x.double()
    for _ in range(6):
        y = few_rows(few_rows(y, there, norm=(gain, shift), gelu=True), back, other=x)
        normed = torch.nn.functional.layer_norm(exact, (inputs,), gain.double(), shift.double())
        hidden = torch.nn.functional.gelu(normed @ there.double().T)
        exact = hidden @ back.double().T + x.double()
    error = (y.double() - exact).norm() / exact.norm()
    assert error < (1e-4 if dtype == torch.float32 else 5e-2)


def test_attention_to_the_filled_part_of_a_cache() -> None:
    assert runs_triton(torch.device("cuda"))
    from taming.modules.triton_kernels import attend_to_cache

    torch.manual_seed(0)
    for batch in (1, 64):  # of which programs read much and little at once
        cache = torch.randn(2, batch, 24, 256, 64, device="cuda")
        for position in (0, 1, 127, 128, 129, 255):
            qkv = torch.randn(batch, 3 * 24 * 64, device="cuda")
            cache[:, :, :, position:] = torch.nan
            y = attend_to_cache(qkv, cache, torch.tensor([position], device="cuda"))
            query = qkv.view(batch, 3, 24, 1, 64)[:, 0]
            keys, values = cache[..., : position + 1, :]
            expected = torch.nn.functional.scaled_dot_product_attention(query, keys, values)
            torch.testing.assert_close(y, expected.reshape(y.shape), rtol=1e-4, atol=1e-5)
            cache = torch.randn_like(cache)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_kernels_of_channels_last_are_as_exact_as_torchs(dtype: torch.dtype) -> None:
    """Of encoder and decoder, forward and backward, against one without them in float32."""
    assert runs_triton(torch.device("cuda"), task="normalization")
    torch.manual_seed(0)
    sizes = {"ch": 64, "out_ch": 3, "ch_mult": (1, 2), "num_res_blocks": 1, "resolution": 48}
    sizes |= {"attn_resolutions": [24], "in_channels": 3, "z_channels": 16, "double_z": False}
    both = torch.nn.Sequential(Encoder(**sizes), Decoder(**sizes)).cuda()  # type: ignore[arg-type]
    x = torch.randn(3, 3, 48, 40, device="cuda", requires_grad=True)
    errors = {}
    for memory_format in (torch.contiguous_format, torch.channels_last):
        both.to(memory_format=memory_format)
        with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
            y = both(x.contiguous(memory_format=memory_format))
        assert fuses(y) is (memory_format == torch.channels_last)
        found = [y, *torch.autograd.grad(y.float().square().sum(), [x, *both.parameters()])]
        if not errors:
            exact = both(x)
            exact = [exact, *torch.autograd.grad(exact.square().sum(), [x, *both.parameters()])]
        errors[memory_format] = [
            float(((one - true).norm() / true.norm()).detach())
            for one, true in zip(found, exact, strict=True)
            if true.norm() > 1e-4 * exact[0].norm()
        ]
    theirs, ours = errors.values()
    assert len(ours) > 50 and max(ours) < 2 * max(theirs) + 1e-4
    assert sum(ours) < 1.3 * sum(theirs) + 1e-3


# ---------------------------------------------------------------------- runs with validation data


def run_with_validation(folder: Path, base: str, *changes: str) -> tuple[set[str], dict[str, Any]]:
    """The names of what is logged in two steps, and the last checkpoint.

    The first batch of such a run is one of validation, without gradients: what is made, moved or
    tried in it for the first time is what training uses.
    """
    with pytest.MonkeyPatch.context() as patch, mock.patch.dict(os.environ):
        patch.chdir(folder)
        main(
            ["--base", base, "-t", *GPU, "--max_steps", "2", "--val_check_interval", "2", *changes]
        )
        disconnect()
    [table] = folder.glob("logs/*/csv/*/metrics.csv")
    rows = list(csv.DictReader(table.open()))
    [last] = folder.glob("logs/*/checkpoints/last.ckpt")
    return {name for row in rows for name, value in row.items() if value}, read_checkpoint(last)


def test_a_run_with_channels_last_is_by_the_kernels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taming.modules.diffusionmodules import fused

    _works.cache_clear()
    modes: list[bool] = []
    own = fused.normalized

    def noted(*arguments: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return own(*arguments)

    monkeypatch.setattr(fused, "normalized", noted)
    base = write_config(tmp_path, small_vqgan())
    names, checkpoint = run_with_validation(tmp_path, base, "model.params.channels_last=true")
    assert {*modes} == {False, True} and modes.count(True) > 20
    assert "val/rec_loss" in names and checkpoint["global_step"] == 2


def dino_options(folder: Path) -> list[str]:
    torch.save(fill_by_name(ViT(128, 2, 4, 4)).state_dict(), folder / "dino.pth")
    loss = "model.params.lossconfig.params"
    params = f"{{path: {folder / 'dino.pth'}, width: 128, layers: [0, 1], size: 8}}"
    target = "taming.modules.discriminator.dino.DinoDiscriminator"
    patch = [f"{loss}.disc_ndf=64", f"{loss}.disc_num_layers=3"]  # the defaults
    return [*patch, f"{loss}.disc_config={{target: {target}, params: {params}}}"]


def test_a_run_with_averages_and_a_discriminator_on_frozen_features(tmp_path: Path) -> None:
    base, use_ema = write_config(tmp_path, small_vqgan()), "model.params.use_ema=true"
    first = "model.params.lossconfig.params.disc_start=0"
    options = [*dino_options(tmp_path), use_ema, first]
    names, checkpoint = run_with_validation(tmp_path, base, *options)
    assert {"val/rec_loss", "val_ema/rec_loss", "train/disc_loss"} <= names
    state = checkpoint["state_dict"]
    assert state["model_ema.num_updates"] == 2
    weight, average = state["encoder.conv_in.weight"], state["model_ema.encoderconv_inweight"]
    assert average.isfinite().all() and 0 < (weight - average).abs().max() < 1e-2
    heads = [name for name in state if "discriminator.heads" in name]
    assert heads and not any("features" in name for name in state)


@pytest.mark.filterwarnings("ignore")  # of torch, about one process
def test_a_run_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks are gathered in bfloat16, and kept in float32."""
    own, seen = Block.forward, set()

    def noted(block: Block, *arguments: Any, **options: Any) -> Any:
        seen.update(parameter.dtype for parameter in block.parameters())
        return own(block, *arguments, **options)

    monkeypatch.setattr(Block, "forward", noted)
    base = write_transformer(tmp_path)
    model = "model.params.{}_config.params.{}".format
    changes = [model("first_stage", "ckpt_path=null"), model("transformer", "vocab_size=64")]
    flags = ("--strategy", "fsdp2", "--precision", "bf16-mixed", "--gradient_clip_val", "1")
    names, checkpoint = run_with_validation(tmp_path, base, *flags, *changes)
    assert {"val/loss", "train/loss"} <= names and has_shards(checkpoint)
    assert checkpoint["global_step"] == 2 and seen == {torch.bfloat16}
    [last] = tmp_path.glob("logs/*/checkpoints/last.ckpt")
    state = filled(checkpoint, last)["state_dict"]
    weights = {n: t for n, t in state.items() if n.startswith("transformer.blocks.0.")}
    assert {tensor.dtype for tensor in weights.values()} <= {torch.float32, torch.bool}
    moved = state["transformer.blocks.0.ln1.weight"]  # from the ones that it began with
    assert moved.isfinite().all() and 0 < (moved - 1).abs().max() < 1e-3


def test_a_transformer_in_one_kernel_is_clipped_in_float16(tmp_path: Path) -> None:
    """And goes on so from a run that was not."""
    base = write_transformer(tmp_path)
    model = "model.params.{}_config.params.{}".format
    changes = [model("first_stage", "ckpt_path=null"), model("transformer", "vocab_size=64")]
    flags = ("--precision", "16-mixed", "--gradient_clip_val", "0.1")
    run_with_validation(tmp_path, base, *flags, *changes)
    [run] = tmp_path.glob("logs/*")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path)
        main(["-r", str(run), "-t", "--max_steps", "4", "model.params.fused_optimizer=true"])
    [last] = tmp_path.glob("logs/*/checkpoints/last.ckpt")
    checkpoint = read_checkpoint(last)
    assert checkpoint["global_step"] == 4
    [optimizer] = checkpoint["optimizer_states"]
    assert all(group["fused"] for group in optimizer["param_groups"])
    assert all(weight.isfinite().all() for weight in checkpoint["state_dict"].values())
