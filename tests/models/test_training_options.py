"""Options of training: each does what it says, and changes nothing else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taming.models import training_options
from taming.models.training_options import SharedWays, TrainingWays
from taming.models.vqgan import GumbelVQ, VQModel
from taming.modules.diffusionmodules.model import Level, Middle
from tests.kit.first_stages import loader
from tests.kit.models import (
    GAN_LOSS,
    cosine_config,
    ddconfig,
    first_stage_config,
    tiny_model,
    transformer_config,
)
from tests.kit.training import fit, noted_compilations, tiny_trainer

IMAGES = torch.rand(8, 16, 16, 3, generator=torch.Generator().manual_seed(3)) * 2 - 1


class Rows(pl.Callback):
    """What was logged for each batch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Tensor]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        training = trainer.callback_metrics.items()
        self.rows.append({k: v.clone() for k, v in training if k.startswith("train/")})


def make(loss: dict[str, Any] | None = None, **options: Any) -> VQModel:
    torch.manual_seed(0)
    lossconfig = {**GAN_LOSS, "params": {**GAN_LOSS["params"], **(loss or {})}}
    config = first_stage_config(lossconfig=lossconfig, **options)
    model = VQModel(**config["params"])
    model.learning_rate = 1e-3
    return model


def trained(model: VQModel, folder: Path, steps: int = 3) -> list[dict[str, Tensor]]:
    rows = Rows()
    fit(model, {"image": IMAGES}, folder, steps, callbacks=[rows])
    return rows.rows


def judged(model: VQModel) -> list[Tensor]:
    """The images that the discriminator gets in training, as they come."""
    seen: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        if module.training:
            seen.append(arguments[0].detach().clone())

    model.discriminator.register_forward_pre_hook(note)
    return seen


@pytest.mark.parametrize("reuse", [False, True])
def test_the_discriminator_sees_the_reconstruction_of_this_step(
    tmp_path: Path, reuse: bool
) -> None:
    model = make(reuse_reconstruction=reuse)
    seen, passes = judged(model), []
    model.encoder.register_forward_hook(lambda module, *_: passes.append(module.training))
    trained(model, tmp_path, steps=2)
    assert len(seen) == 6 and sum(passes) == (2 if reuse else 4)
    for of_generator, real, fake in (seen[:3], seen[3:]):
        assert torch.equal(of_generator, fake) is reuse
        assert not torch.equal(real, fake)


def test_a_discriminator_without_weight_is_left_out(tmp_path: Path) -> None:
    schedule = cosine_config(lr_min=0.5, max_decay_steps=2)
    idle = {"disc_start": 2, "skip_idle_discriminator": True}
    skipping = make(idle, scheduler_config=schedule)
    faithful = make({"disc_start": 2}, scheduler_config=schedule)
    before = {name: value.clone() for name, value in skipping.discriminator.state_dict().items()}
    seen = judged(skipping)
    rows, expected = trained(skipping, tmp_path, 2), trained(faithful, tmp_path, 2)
    assert not seen
    assert "train/g_loss" in expected[0] and "train/disc_loss" in expected[0]
    for row, full in zip(rows, expected, strict=True):
        assert row and row.items() <= full.items()
        assert full.keys() - row.keys() == {
            *("train/d_weight", "train/g_loss"),
            *("train/discloss", "train/disc_loss", "train/logits_real", "train/logits_fake"),
        }
    for name, value in skipping.discriminator.state_dict().items():
        assert torch.equal(value, before[name]), name
    weights = faithful.state_dict()
    for name, value in skipping.state_dict().items():
        if not name.startswith("loss."):
            assert torch.equal(value, weights[name]), name  # the generator does not notice
    autoencoder, discriminator = skipping.trainer.optimizers
    assert autoencoder.state and not discriminator.state
    # The rate falls all the same.
    assert discriminator.param_groups[0]["lr"] == autoencoder.param_groups[0]["lr"] < 1e-3


def test_a_discriminator_with_weight_is_trained(tmp_path: Path) -> None:
    model = make({"disc_start": 2, "skip_idle_discriminator": True})
    seen = judged(model)
    rows = trained(model, tmp_path, 3)
    assert len(seen) == 3 and rows[2]["train/d_weight"] > 0 and rows[2]["train/disc_loss"] > 0
    assert model.trainer.optimizers[1].state
    never = make({"disc_factor": 0.0, "disc_start": 0, "skip_idle_discriminator": True})
    seen = judged(never)
    trained(never, tmp_path, 1)
    assert not seen


def test_while_it_warms_up_the_generator_alone_leaves_it_out(tmp_path: Path) -> None:
    options = {"disc_start": 0, "disc_warmup_steps": 5, "skip_idle_discriminator": True}
    model = make(options)
    seen = judged(model)
    rows = trained(model, tmp_path, 1)
    assert len(seen) == 2 and "train/disc_loss" in rows[0] and "train/g_loss" not in rows[0]


def test_activations_are_made_again(tmp_path: Path) -> None:
    kept = {}
    for checkpoints in (False, True):
        model = make(checkpoint_activations=checkpoints)
        model.ways.prepare(model)
        kept[checkpoints] = sum(kept_bytes(model))
    assert kept[True] < kept[False] / 2
    plain, again = make(), make(checkpoint_activations=True)
    for row, other in zip(trained(plain, tmp_path), trained(again, tmp_path), strict=True):
        assert row == other
    with torch.no_grad():  # nothing is kept, and nothing to make again
        assert again(IMAGES[:1].permute(0, 3, 1, 2))[0].shape == (1, 3, 16, 16)


def kept_bytes(model: VQModel) -> Iterator[int]:
    sizes: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        sizes.append(tensor.nbytes)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        model(IMAGES[:2].permute(0, 3, 1, 2))
    yield from sizes


def test_channels_lie_side_by_side(tmp_path: Path) -> None:
    model, plain = make(channels_last=True), make()
    layouts: list[bool] = []

    def note(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        layouts.append(arguments[0].is_contiguous(memory_format=torch.channels_last))

    model.encoder.conv_in.register_forward_pre_hook(note)
    model.decoder.conv_out.register_forward_pre_hook(note)
    rows, expected = trained(model, tmp_path), trained(plain, tmp_path)
    assert layouts and all(layouts)
    weight = model.encoder.down[0].block[0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert (
        not plain.encoder.down[0]
        .block[0]
        .conv1.weight.is_contiguous(memory_format=torch.channels_last)
    )
    for name, value in rows[0].items():
        torch.testing.assert_close(value, expected[0][name], rtol=1e-3, atol=1e-4)


def test_a_discriminator_that_is_differentiated_twice_is_not_compiled() -> None:
    for weight, compiled in ((0.0, True), (1.0, False)):
        model = make({"r1_weight": weight}, compile=True)
        model.ways.prepare(model)
        assert (model.discriminator._compiled_call_impl is not None) is compiled


def test_blocks_and_the_losses_networks_are_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled = noted_compilations(monkeypatch)
    model = make(compile=True)
    trained(model, tmp_path, 1)
    blocks = [module for module in model.modules() if isinstance(module, Level | Middle)]
    ends = [model.encoder.activated, model.decoder.activated]
    assert len(blocks) == 6 and {*blocks, model.discriminator, *ends} == set(compiled)
    compiled.clear()
    trained(make(), tmp_path, 1)
    assert not compiled


def test_blocks_that_have_kernels_of_their_own_are_not_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compiled = noted_compilations(monkeypatch)
    monkeypatch.setattr(training_options, "runs_triton", lambda _, task: task == "normalization")
    for channels_last in (True, False):
        model = make(compile=True, channels_last=channels_last)
        model.ways.prepare(model)
        blocks = [module for module in compiled if isinstance(module, Level | Middle)]
        assert bool(blocks) is not channels_last and model.discriminator in compiled


def test_no_block_is_left_out_of_compilation(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch compiles one function eight times at most, unless it is told otherwise."""
    real = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f, **options: real(f, **{**options, "backend": "eager"})
    )
    widths = {"ch": 8, "norm_groups": 8, "ch_mult": [1, 2, 3, 4, 5]}
    model = make(ddconfig={**ddconfig(), **widths}, compile=True)
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=8):
        model.ways.prepare(model)
        model(IMAGES[:1].movedim(3, 1))
    blocks = [module for module in model.modules() if isinstance(module, Level)]
    assert len({str(block) for block in blocks}) > 8


@pytest.mark.slow
def test_compiled_training_follows_the_plain_one(tmp_path: Path) -> None:
    rows, expected = trained(make(compile=True), tmp_path), trained(make(), tmp_path)
    for name, value in rows[0].items():
        torch.testing.assert_close(value, expected[0][name], rtol=1e-3, atol=1e-4)


def test_adam_in_one_kernel_trains_alike(tmp_path: Path) -> None:
    model = make(fused_optimizer=True, channels_last=True)
    for one, fused in ((model, True), (make(), None)):
        for optimizer in one.configure_optimizers()[0]:
            assert {group["fused"] for group in optimizer.param_groups} == {fused}
    rows = trained(model, tmp_path)
    torch.testing.assert_close(
        rows[2]["train/aeloss"], trained(make(), tmp_path)[2]["train/aeloss"], rtol=0.05, atol=0
    )


CODES = {"codes": torch.arange(16).view(1, 4, 4), "condition_codes": torch.zeros(1, 1).long()}
BATCHES = {"first stage": {"image": IMAGES[:2]}, "transformer": CODES}


def of_kind(kind: str, **options: Any) -> Any:
    if kind == "transformer":
        return tiny_model(transformer_config(**options))
    return make(channels_last=bool(options), **options)


@pytest.mark.parametrize("scaled", [False, True], ids=["fp32", "scaled"])
@pytest.mark.parametrize("fused", [True, False], ids=["on", "off"])
@pytest.mark.parametrize("kind", BATCHES)
def test_a_run_that_goes_on_steps_as_its_config_says(
    kind: str, fused: bool, scaled: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not as its checkpoint says, with averages in another layout and steps on another device."""

    def trainer(steps: int) -> pl.Trainer:
        scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
        plugin = MixedPrecision("16-mixed", "cpu", scaler)
        off = torch.autocast("cpu", enabled=False)
        plugin.autocast_context_manager = lambda: off  # type: ignore[method-assign]
        return tiny_trainer(tmp_path, max_steps=steps, plugins=[plugin] if scaled else None)

    options: dict[str, Any] = {"fused_optimizer": True}
    before, after = (
        of_kind(kind, **{} if fused else options),
        of_kind(kind, **options if fused else {}),
    )
    before.learning_rate = after.learning_rate = 1e-3
    first, second = trainer(1), trainer(3)
    first.fit(before, loader(BATCHES[kind], 1))
    first.save_checkpoint(tmp_path / "last.ckpt")
    adam, calls = importlib.import_module("torch.optim.adam"), []
    kernel = adam._fused_adam
    monkeypatch.setattr(adam, "_fused_adam", lambda *a, **k: (calls.append(1), kernel(*a, **k)))
    second.fit(after, loader(BATCHES[kind], 4), ckpt_path=tmp_path / "last.ckpt")
    assert second.global_step == 3 and bool(calls) is fused
    for optimizer in second.optimizers:
        states = optimizer.state.values()
        assert states and {float(state["step"]) for state in states} == {3}
        for parameter, state in optimizer.state.items():
            assert not fused or state["exp_avg"].stride() == parameter.stride()


def test_counts_of_steps_are_where_the_kernel_looks_for_them() -> None:
    """On the device in one kernel, else in the memory of the processor; here without a GPU."""
    with FakeTensorMode():
        parameter = nn.Parameter(torch.zeros(2, device="cuda"))
        for fused, device in ((True, "cuda"), (None, "cpu"), (True, "cuda")):
            optimizer = torch.optim.AdamW([parameter], fused=None)
            optimizer.defaults["fused"] = fused
            other = torch.device("cpu" if fused else "cuda")
            optimizer.state[parameter] = {"step": torch.tensor(1.0, device=other)}
            SharedWays().prepare_states([optimizer])
            assert optimizer.state[parameter]["step"].device.type == device
            assert optimizer.param_groups[0]["fused"] is fused


def test_every_first_stage_has_the_options() -> None:
    config = first_stage_config()["params"]
    schedule = {"target": "taming.lr_scheduler.LambdaWarmUpCosineScheduler"}
    schedule["params"] = cosine_config()["params"]
    model = GumbelVQ(**config, temperature_scheduler_config=schedule, channels_last=True)
    assert model.ways == TrainingWays(channels_last=True)
    with pytest.raises(TypeError, match="reuse"):
        VQModel(**config, reuse=True)
