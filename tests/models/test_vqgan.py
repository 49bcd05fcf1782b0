"""First stages against the golden numbers, through the real Trainer."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.vqgan import VQModel
from tests.support import assert_close, double_precision, fill_by_name, load_golden


def golden_vqmodel() -> tuple[VQModel, dict[str, Tensor]]:
    tensors, spec = load_golden("vqmodel")
    model = instantiate_from_config(spec["model"])
    fill_by_name(model)
    return model.eval(), tensors


@torch.no_grad()
def test_forward_passes_equal_the_golden_numbers() -> None:
    model, golden = golden_vqmodel()
    hidden = model.encoder(golden["x"])
    assert_close(hidden, golden["encoder"])
    assert_close(model.quant_conv(hidden), golden["prequant"])
    quant, loss, (_, _, indices) = model.encode(golden["x"])
    assert_close(quant, golden["quant"])
    assert_close(loss, golden["emb_loss"])
    assert_close(indices, golden["indices"])
    assert_close(model.decode(quant), golden["decode"])
    assert_close(model(golden["x"])[0], golden["rec"])
    entry = model.quantize.get_codebook_entry(indices, (2, 16, 16, 8))
    assert_close(entry, golden["codebook_entry"])


@torch.no_grad()
def test_indices_come_back_as_images() -> None:
    model, golden = golden_vqmodel()
    indices = model.encode_to_indices(golden["x"])
    assert indices.shape == (2, 16, 16)
    for given in (indices, indices.flatten(1)):
        assert_close(model.decode_indices(given), golden["rec"])
        assert_close(model.decode_code(given), golden["rec"])
    with pytest.raises(UserError, match="no square grid"):
        model.decode_indices(indices[:, :3].flatten(1)[:, :47])


@torch.no_grad()
def test_any_size_that_the_factor_divides() -> None:
    model, _ = golden_vqmodel()
    x = torch.rand(1, 3, 24, 40) * 2 - 1
    assert model.encode_to_indices(x).shape == (1, 12, 20)
    assert model(x)[0].shape == x.shape


class Recorder(pl.Callback):
    """What was logged for each batch, by the names that loggers get."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []
        self.steps: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.rows.append({k: float(v) for k, v in trainer.callback_metrics.items()})
        self.steps.append(trainer.global_step)


class Batches(torch.utils.data.Dataset):
    """Golden batches as items: the loader takes one at a time, unbatched."""

    def __init__(self, batches: Tensor) -> None:
        self.batches = batches

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"image": self.batches[index]}


def train(model: VQModel, batches: Tensor, folder: Path, **options: Any) -> Recorder:
    recorder = Recorder()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
        callbacks=[recorder],
        **{"max_steps": len(batches), **options},
    )
    trainer.fit(model, DataLoader(Batches(batches), batch_size=None))
    return recorder


def golden_training_model() -> tuple[VQModel, dict[str, Tensor], dict[str, Any]]:
    tensors, spec = load_golden("train_vqgan_hinge")
    model = instantiate_from_config(spec["model"])
    fill_by_name(model, seed=5)
    model.learning_rate = spec["learning_rate"]
    return model, tensors, spec


@pytest.fixture(params=[1, 2], ids=["1 thread", "2 threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Sums are split by threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def test_training_and_validation_equal_the_golden_run(tmp_path: Path, threads: None) -> None:
    model, golden, spec = golden_training_model()
    start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with double_precision():
        recorder = train(model.double(), golden["batches"], tmp_path)
        validated = validate(model, golden["batches"][:1], step=6)
    assert recorder.steps == [1, 2, 3, 4, 5, 6]  # a step is a batch
    for logged, expected in zip(recorder.rows, spec["logs"], strict=True):
        _check_logged(logged, expected, rel_tol=5e-4, abs_tol=5e-5)
    _check_logged(validated, spec["val_logs_batch0"], rel_tol=5e-4, abs_tol=5e-5)
    assert 0 < validated["val/codebook_usage"] <= 1 <= validated["val/codebook_perplexity"] <= 40
    state = model.state_dict()
    for name, norm in spec["final_norms"].items():
        assert math.isclose(float(state[name].double().norm()), norm, rel_tol=5e-4), name
    _check_final_values(start, state, golden)


def validate(model: VQModel, batches: Tensor, step: int) -> dict[str, float]:
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_progress_bar=False,
        enable_checkpointing=False,
    )
    trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed = step
    loader = DataLoader(Batches(batches), batch_size=None)
    [logged] = trainer.validate(model, loader, verbose=False)
    return dict(logged)


def _check_logged(logged: dict[str, float], expected: dict[str, float], **close: float) -> None:
    for name, value in expected.items():
        assert math.isclose(logged[name], value, **close), name


def _check_final_values(
    start: dict[str, Tensor], state: dict[str, Tensor], golden: dict[str, Tensor]
) -> None:
    """All that training moved has moved as in the golden run, to a hundredth of the way."""
    final = {n.removeprefix("final."): t for n, t in golden.items() if n.startswith("final.")}
    still = [name for name in final if (state[name] - start[name]).abs().max() < 1e-6]
    for name in final.keys() - still:
        way = (final[name] - start[name]).double().abs().mean()
        assert (state[name] - final[name]).abs().double().mean() <= 0.01 * way, name
    # A bias before a norm, or of attention's keys, has no gradient but rounding's.
    assert all(re.search(r"(conv.|shortcut|attn.*\.k)\.bias$", name) for name in still)
    assert len(still) < 12 < len(final) / 10


def test_single_precision_follows_the_golden_run(tmp_path: Path) -> None:
    """As far as rounding leaves it alone: until the discriminator counts."""
    model, golden, spec = golden_training_model()
    recorder = train(model, golden["batches"][:2], tmp_path)
    for logged, expected in zip(recorder.rows, spec["logs"][:2], strict=True):
        _check_logged(logged, expected, rel_tol=2e-3, abs_tol=1e-3)


def test_accumulated_batches_equal_one_large_batch(tmp_path: Path) -> None:
    """Without a discriminator nothing couples the images of a batch."""

    def run(batches: Tensor, accumulate: int) -> dict[str, Tensor]:
        torch.manual_seed(0)
        model, _, _ = golden_training_model()
        model.accumulate_grad_batches = accumulate
        model.loss.discriminator_weight = 0.0
        recorder = train(model, batches, tmp_path, max_steps=-1, max_epochs=1)
        assert recorder.steps[-1] == 2
        return dict(model.encoder.state_dict())

    start, golden, spec = golden_training_model()
    start.accumulate_grad_batches, start.manual_backward = 4, Mock()
    start._backward(torch.tensor(2.0))
    start.manual_backward.assert_called_once_with(torch.tensor(0.5))  # Adam does not see it
    four = golden["batches"][:4]
    small, large = run(four, 2), run(four.reshape(2, 4, *four.shape[2:]), 1)
    for name, value in start.encoder.state_dict().items():
        if value.dim() < 2:
            continue  # Adam makes whole steps of noise: a bias before a norm has no gradient
        moved = (large[name] - value).abs().mean()
        assert moved > 0.5 * spec["learning_rate"], name
        assert (small[name] - large[name]).abs().mean() < 0.05 * moved, name


def test_an_incomplete_last_accumulation_is_stepped(tmp_path: Path) -> None:
    model, golden, _ = golden_training_model()
    model.accumulate_grad_batches = 2
    recorder = train(model, golden["batches"][:3, :1], tmp_path, max_steps=-1, max_epochs=1)
    assert recorder.steps == [0, 1, 2]
    assert all(parameter.grad is None for parameter in model.parameters())


def test_clipping_bounds_the_update(tmp_path: Path) -> None:
    """With plain Adam the first update is blind to a gradient's scale, so look at the gradient."""
    model, golden, _ = golden_training_model()
    model.gradient_clip_val = 1e-3
    norms: list[float] = []

    def note_norm(optimizer: Any, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(nn.utils.get_total_norm([p.grad for p in parameters])))

    class Norm(pl.Callback):
        def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
            for optimizer in trainer.optimizers:
                optimizer.register_step_post_hook(note_norm)

    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        max_steps=2,
        callbacks=[Norm()],
        default_root_dir=str(tmp_path),
    )
    trainer.fit(model, DataLoader(Batches(golden["batches"]), batch_size=None))
    assert len(norms) == 4  # two optimisers a batch
    assert max(norms) <= 1.001e-3


def test_a_model_without_a_loss_is_not_trained(tmp_path: Path) -> None:
    model, golden = golden_vqmodel()
    with pytest.raises(UserError, match="lossconfig"):
        train(model, golden["x"].permute(0, 2, 3, 1)[None], tmp_path)


def test_pictures() -> None:
    model, golden = golden_vqmodel()
    pictures = model.log_images({"image": golden["x"].permute(0, 2, 3, 1)})
    assert_close(pictures["reconstructions"], golden["rec"])
    labels = torch.rand(2, 7, 8, 8)
    shown = model.to_rgb(labels)
    assert torch.equal(model.to_rgb(labels), shown)
    assert shown.shape == (2, 3, 8, 8) and shown.min() == -1 and shown.max() == 1


def test_loading_a_checkpoint_without_the_loss(tmp_path: Path) -> None:
    model, _, spec = golden_training_model()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith("loss.")}
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    other = instantiate_from_config(spec["model"], ckpt_path=str(tmp_path / "model.ckpt"))
    assert torch.equal(other.encoder.conv_in.weight, model.encoder.conv_in.weight)
