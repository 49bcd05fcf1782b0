"""Losses and gradients that are not finite stop a run; clipping works on true gradients."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.utils.data import DataLoader

from taming.checkpoint import read_checkpoint
from taming.distributed import disconnect, gather_objects, rank
from taming.errors import NonFiniteError, UserError
from taming.training import numbers, run_folder
from taming.training.cli import main as main_command
from taming.training.numbers import FiniteNumbers, gradient_size
from tests.kit.datasets import Items, images
from tests.kit.models import build, first_stage_config
from tests.kit.processes import in_two_processes
from tests.kit.resuming import moments, run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(run_folder._TIME_VARIABLE, "2021-04-03T19-39-50")
    return tmp_path


def train(folder: Path, case: str, *arguments: str, nan_at: int | None = None) -> None:
    config = run_config(case)
    config.data.params.train.params.nan_at = nan_at
    main(["--base", write_config(folder, config), "-t", "-n", "run", "--no-test", *arguments])


def last() -> dict[str, Any]:
    return read_checkpoint("logs/2021-04-03T19-39-50_run/checkpoints/last.ckpt")


def are_finite(state: dict[str, Any]) -> bool:
    tensors = [t for t in state["state_dict"].values() if t.is_floating_point()]
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def test_a_loss_that_is_not_a_number_is_named(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, "vqgan", nan_at=5)
    message = str(caught.value)
    assert "train/rec_loss" in message and "quant_loss" in message and "disc_factor" not in message
    assert "crops/5.png" in message and " at step " in message and "--skip_nonfinite" in message
    assert not list(Path("logs").glob("*/checkpoints/*"))  # the first epoch was not complete
    assert "no checkpoint yet: start anew, with a lower learning rate (now 0.0" in message


@pytest.mark.parametrize(
    ("case", "moment", "words"),
    [
        ("transformer", ("on_train_batch_start", 8, "nan"), "loss is nan (train/loss) at step 2"),
        ("transformer", ("on_after_backward", 10, "inf"), "the gradient is inf at step 2"),
        ("vqgan", ("on_after_backward", 9, "inf"), "the gradient is inf at step 8"),
    ],
)
def test_the_last_good_checkpoint_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str, moment: Any, words: str
) -> None:
    for name, value in moments(moment).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(NonFiniteError) as caught:
        train(tmp_path, case)
    assert words in str(caught.value) and "saved: go on from the last" in str(caught.value)
    state = last()
    assert state["epoch"] == 0 and state["global_step"] == {"vqgan": 6, "transformer": 2}[case]
    assert are_finite(state)


def test_batches_can_be_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Neither weights nor running statistics see them; no more than the flag says are left out."""
    train(tmp_path, "vqgan", "--skip_nonfinite", "3", nan_at=5)
    state = last()
    assert are_finite(state) and state["global_step"] == 18
    assert caplog.text.count("left out") == 3  # of both optimizers, once an epoch
    main(["-r", "logs/2021-04-03T19-39-50_run", "-t", "--no-test", "--max_epochs", "3"])
    with pytest.raises(NonFiniteError):
        main(["-r", "logs/2021-04-03T19-39-50_run", "-t", "--no-test", "--max_epochs", "4"])


def test_moving_averages_survive_a_batch_that_is_left_out(tmp_path: Path) -> None:
    arguments = ["--skip_nonfinite", "3", "--accumulate_grad_batches", "1"]
    train(tmp_path, "ema", *arguments, nan_at=5)
    assert are_finite(last())


def test_gpus_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """A verdict is read after the next step's was asked for, and before anything is saved."""
    callback = FiniteNumbers()
    weight = nn.Parameter(torch.zeros(2))
    trainer: Any = SimpleNamespace(global_step=0, precision_plugin=None)
    optimizer = SGD([weight], lr=0.1)

    def step(value: float, device: str = "cuda") -> None:
        module: Any = SimpleNamespace(device=torch.device(device))
        callback.on_train_batch_start(trainer, module, {}, 0)
        weight.grad = torch.tensor([0.0, value])
        callback.on_before_optimizer_step(trainer, module, optimizer)
        trainer.global_step += 1

    monkeypatch.setattr(Tensor, "to", lambda self, *_: self)  # there may be no GPU
    step(1.0)
    step(float("nan"))
    with pytest.raises(NonFiniteError, match="gradient is nan at step 1"):
        step(1.0)
    trainer.global_step = 5
    step(float("inf"))
    with pytest.raises(NonFiniteError, match="gradient is inf at step 5"):
        callback.on_save_checkpoint(trainer, trainer, {})
    with pytest.raises(NonFiniteError, match="gradient is nan at step 6"):
        step(float("nan"), "cpu")


def test_a_step_that_is_left_out_is_none() -> None:
    """Not even by the momentum of those before."""
    callback, weight = FiniteNumbers(skip=1), nn.Parameter(torch.zeros(2))
    trainer: Any = SimpleNamespace(global_step=0, precision_plugin=None)
    module: Any = nn.Linear(1, 1)
    module.device = torch.device("cpu")
    optimizer = Adam([weight], lr=0.1)
    values = []
    for step, gradient in enumerate((1.0, float("nan"), 1.0)):
        trainer.global_step = step
        callback.on_train_batch_start(trainer, module, {}, 0)
        weight.grad = torch.full((2,), gradient)
        callback.on_before_optimizer_step(trainer, module, optimizer)
        optimizer.step()
        values.append(weight.detach().clone())
    assert torch.equal(values[0], values[1]) and not torch.equal(values[1], values[2])
    assert callback.state_dict() == {"skipped": 1}
    other = FiniteNumbers(skip=1)
    other.load_state_dict(callback.state_dict())
    assert other.skipped == 1 and FiniteNumbers().state_dict() == {}


def one_of_two_is_infinite(folder: Path) -> None:
    """In the first process the loss of the second step, whose gradients are finite in both."""
    gather_objects(0)  # connects
    callback, module = FiniteNumbers(skip=1), cast(Any, nn.Linear(1, 1))
    module.device = torch.device("cpu")
    trainer: Any = SimpleNamespace(global_step=0, precision_plugin=None)
    optimizer, kept = SGD([module.weight], lr=0.1), []
    for trainer.global_step in range(3):
        callback.on_train_batch_start(trainer, module, {}, 0)
        spoiled = trainer.global_step == 1 and rank() == 0
        loss = torch.tensor(float("inf") if spoiled else 1.0)
        callback.on_before_backward(trainer, module, loss)
        module.weight.grad = torch.ones(1, 1)
        callback.on_before_optimizer_step(trainer, module, optimizer)
        kept.append(module.weight.grad is not None)
    (folder / f"{rank()}.json").write_text(json.dumps([kept, callback.skipped]))
    disconnect()


def test_all_processes_leave_out_the_same_steps(tmp_path: Path) -> None:
    in_two_processes(one_of_two_is_infinite, tmp_path)
    for number in range(2):
        found = json.loads((tmp_path / f"{number}.json").read_text())
        assert found == [[True, False, True], 1]


def test_all_batches_of_a_step_that_is_left_out_are_forgotten() -> None:
    callback, module = FiniteNumbers(skip=1), cast(Any, nn.BatchNorm1d(1))
    module.device = torch.device("cpu")
    trainer: Any = SimpleNamespace(global_step=0, precision_plugin=None)
    for mean in (1.0, 2.0):
        callback.on_train_batch_start(trainer, module, {}, 0)
        module.running_mean.fill_(mean)
        callback.on_before_backward(trainer, module, torch.tensor(float("nan")))
    callback.on_before_optimizer_step(trainer, module, SGD(module.parameters(), lr=0.1))
    assert module.running_mean == 0


def test_the_whole_loss_is_what_counts() -> None:
    """The first of its terms; the others only say where it comes from."""
    callback, weight = FiniteNumbers(), nn.Parameter(torch.zeros(2))
    terms = {"train/aeloss": torch.tensor(1.0), "train/x": torch.tensor(float("nan"))}
    module: Any = SimpleNamespace(device=torch.device("cpu"), loss_terms=terms)
    trainer: Any = SimpleNamespace(global_step=4, precision_plugin=None)
    callback.on_train_batch_start(trainer, module, {"file_path_": ["a.png"]}, 0)
    callback.on_before_backward(trainer, module, torch.tensor(float("nan")))
    callback.on_before_optimizer_step(trainer, module, SGD([weight], lr=0.1))
    terms["train/aeloss"] = torch.tensor(float("inf"))
    callback.on_before_backward(trainer, module, torch.tensor(0.0))
    with pytest.raises(NonFiniteError) as caught:
        callback.on_before_optimizer_step(trainer, module, SGD([weight], lr=0.1))
    expected = "the loss is inf (train/aeloss, train/x) at step 4, in the batch of a.png; "
    assert str(caught.value).startswith(expected)
    assert "--skip_nonfinite 10" in str(caught.value)
    callback, terms["train/aeloss"] = FiniteNumbers(), torch.tensor(1.0)
    for name in ("a.png", "b.png"):  # two batches of a step
        callback.on_train_batch_start(trainer, module, {"file_path_": [name]}, 0)
        callback.on_before_backward(trainer, module, torch.tensor(0.0))
    weight.grad = torch.tensor([0.0, float("inf")])
    with pytest.raises(NonFiniteError, match="the gradient is inf at .* of a.png, b.png; "):
        callback.on_before_optimizer_step(trainer, module, SGD([weight], lr=0.1))


def test_statistics_are_what_forward_passes_change() -> None:
    norm, still = nn.BatchNorm1d(1), nn.BatchNorm1d(1).eval()
    norm.weight.requires_grad_(False)
    found = [id(one) for one in numbers._statistics(nn.Sequential(norm, still))]
    own = (norm.running_mean, norm.running_var, norm.num_batches_tracked, norm.weight)
    assert found == [id(one) for one in own]


def test_files_of_a_batch_are_named_up_to_eight() -> None:
    assert numbers._batch([]) == ""
    assert numbers._batch(list("abcdefgh")) == ", in the batch of a, b, c, d, e, f, g, h"
    assert numbers._batch(list("abcdefghi")).endswith("f, g, h and 1 more")


def test_infinite_gradients_are_a_scalers_own_business() -> None:
    callback, weight = FiniteNumbers(), nn.Parameter(torch.zeros(2))
    trainer: Any = SimpleNamespace(global_step=0, precision_plugin=None)
    module: Any = SimpleNamespace(device=torch.device("cpu"))
    weight.grad = torch.tensor([0.0, float("inf")])
    scaler = torch.amp.GradScaler("cpu")
    trainer.precision_plugin = MixedPrecision("16-mixed", "cpu", scaler)
    callback.on_before_optimizer_step(trainer, module, SGD([weight], lr=0.1))
    trainer.precision_plugin = MixedPrecision("bf16-mixed", "cpu")
    with pytest.raises(NonFiniteError, match="gradient is inf"):
        callback.on_before_optimizer_step(trainer, module, SGD([weight], lr=0.1))
    with pytest.raises(UserError, match="0 or more"):
        FiniteNumbers(skip=-1)
    callback = FiniteNumbers(skip=6)
    callback.skipped = 6
    with pytest.raises(NonFiniteError, match="leave such batches out with --skip_nonfinite 12"):
        callback._leave_out("the loss is nan", 1, 0.1)


def test_large_gradients_are_finite() -> None:
    weights = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2)), nn.Parameter()]
    optimizer = Adam(weights)
    assert gradient_size(optimizer) == 0
    weights[0].grad, weights[1].grad = torch.tensor([1.0, -3e38, 2.0]), torch.zeros(2)
    assert gradient_size(optimizer) == torch.tensor(3e38)
    weights[1].grad[1] = float("nan")
    assert gradient_size(optimizer).isnan()


# ---------------------------------------------------------------------- clipping


class Gradients(pl.Callback):
    """Keeps the gradients with which optimizers step."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        for optimizer in trainer.optimizers:
            optimizer.register_step_post_hook(self._keep)

    def _keep(self, optimizer: Optimizer, *_: Any) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        self.steps.append([p.grad.clone() for p in parameters if p.grad is not None])


def clipped(
    folder: Path, algorithm: str, value: float, plugin: MixedPrecision | None = None
) -> list[list[Tensor]]:
    """The gradients of two steps of both optimizers, as they take them."""
    model = build(first_stage_config())
    model.gradient_clip_val, model.gradient_clip_algorithm = value, algorithm
    kept = Gradients()
    trainer = pl.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        max_steps=2,
        callbacks=[kept],
        plugins=[plugin] if plugin else None,
        default_root_dir=str(folder),
    )
    trainer.fit(model, DataLoader(Items({"image": images(4)}), batch_size=2))
    assert len(kept.steps) == 4
    return kept.steps


def test_both_optimizers_are_clipped_by_norm_or_value(tmp_path: Path) -> None:
    for gradients in clipped(tmp_path, "norm", 1e-3)[2:]:
        norm = torch.cat([gradient.flatten() for gradient in gradients]).norm()
        torch.testing.assert_close(norm, torch.tensor(1e-3), rtol=1e-3, atol=0)
    for gradients in clipped(tmp_path, "value", 1e-5)[2:]:
        assert max(gradient.abs().max() for gradient in gradients) == torch.tensor(1e-5)


def test_gradients_are_unscaled_before_they_are_clipped(tmp_path: Path) -> None:
    """With a scaler as for float16, the gradients of steps are those without one."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**16)
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    off = torch.autocast("cpu", enabled=False)
    plugin.autocast_context_manager = lambda: off  # type: ignore[method-assign]
    true = clipped(tmp_path, "norm", 1e-2)
    scaled = clipped(tmp_path, "norm", 1e-2, plugin)
    for one, two in zip(true, scaled, strict=True):
        for gradient, same in zip(one, two, strict=True):
            torch.testing.assert_close(gradient, same, rtol=1e-3, atol=1e-7)


def test_an_unknown_algorithm_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="gradient_clip_algorithm is 'norm' or 'value', not 'size'"):
        train(tmp_path, "vqgan", "--gradient_clip_algorithm", "size")
