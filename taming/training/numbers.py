"""Losses and gradients that are not finite stop a run before they reach its weights."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.optim import Optimizer

from taming.distributed import finite_on_all_ranks
from taming.errors import NonFiniteError, UserError
from taming.lightning_internals import scaler_of, unscales_itself
from taming.sharding import whole

log = logging.getLogger(__name__)

FILES_NAMED = 8


@runtime_checkable
class NamesTerms(Protocol):
    """A model that says what its last training loss was made of."""

    loss_terms: Mapping[str, Tensor]


@dataclass(frozen=True)
class _Loss:
    """One that gradients were computed of: the whole first, then its terms."""

    terms: Mapping[str, Tensor]
    files: Sequence[str]


@dataclass(frozen=True)
class _Check:
    """The losses and the gradients behind a step of an optimizer.

    Attributes:
        values: [losses + 1] on the CPU; there after `ready` if that is an event.
    """

    step: int
    losses: Sequence[_Loss]
    values: Tensor
    ready: torch.cuda.Event | None

    def problem(self) -> str | None:
        """What is not finite, None if all is."""
        if self.ready is not None:
            self.ready.synchronize()
        *losses, gradient = self.values.tolist()
        for loss, value in zip(self.losses, losses, strict=True):
            if not math.isfinite(value):
                names = [n for n, term in loss.terms.items() if not torch.isfinite(term).all()]
                if not names:
                    return f"the loss of another process is not finite at step {self.step}"
                what = f"the loss is {value} ({', '.join(names)})"
                return f"{what} at step {self.step}{_batch(loss.files)}"
        if not math.isfinite(gradient):
            files = [file for loss in self.losses for file in loss.files]
            return f"the gradient is {gradient} at step {self.step}{_batch(files)}"
        return None


def check_skip(skip: int) -> None:
    """Refuse (`UserError`) a number of batches below 0."""
    if skip < 0:
        raise UserError(f"--skip_nonfinite {skip}: it takes 0 or more batches")


class FiniteNumbers(Callback):
    """Raises `NonFiniteError` where a loss or a gradient is infinite or not a number.

    Every optimizer's step waits for the verdict; on GPUs the next one does, so that the device
    never waits for the host. A checkpoint always waits, and is then not written.

    Args:
        skip: leave out up to so many batches instead, by not taking their steps. On GPUs every
            step then waits for its own verdict.
        checkpoints: the folder of the run's checkpoints.
    """

    def __init__(self, skip: int = 0, checkpoints: Path | None = None) -> None:
        super().__init__()
        check_skip(skip)
        self.skip, self.skipped, self._checkpoints = skip, 0, checkpoints
        self._losses: list[_Loss] = []
        self._values: list[Tensor] = []
        self._unread: list[_Check] = []
        self._files: Sequence[str] = ()
        self._step = 0
        self._left_out = -1  # the last step that was left out
        self._statistics: list[tuple[Tensor, Tensor]] = []  # and their values before a step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._step = trainer.global_step  # of both optimizers of a model
        files = batch.get("file_path_", ()) if isinstance(batch, Mapping) else ()
        self._files = [str(file) for file in files]
        if self.skip and not self._losses:  # the first batch of a step
            self._statistics = [(one, one.clone()) for one in _statistics(pl_module)]

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        # The whole comes first; unlike `loss` it is not scaled for float16.
        terms = pl_module.loss_terms if isinstance(pl_module, NamesTerms) else None
        terms = terms or {"loss": loss.detach()}
        self._losses.append(_Loss(terms, self._files))
        self._values.append(next(iter(terms.values())).float())

    def on_before_optimizer_step(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer
    ) -> None:
        gradient = torch.zeros(()) if scaler_of(trainer) is not None else gradient_size(optimizer)
        device = pl_module.device
        values = torch.stack([value.to(device) for value in (*self._values, gradient)])
        if self.skip:  # all processes leave out the same steps
            values = finite_on_all_ranks(values)
        check = _Check(self._step, self._losses, *_to_cpu(values))
        self._losses, self._values = [], []
        self._unread.append(check)
        waits = device.type == "cuda" and not self.skip
        problem = self._first_problem(keep=1 if waits else 0)
        if problem is not None:
            self._leave_out(problem, check.step, optimizer.param_groups[0]["lr"])
            _empty(optimizer, keep=unscales_itself(trainer, optimizer))

    def _first_problem(self, keep: int = 0) -> str | None:
        due, self._unread = self._unread[: len(self._unread) - keep], self._unread[-keep:][:keep]
        return next((text for text in (check.problem() for check in due) if text), None)

    def _leave_out(self, problem: str, step: int, rate: float) -> None:
        known = step == self._left_out  # both optimizers may see the same batch
        self.skipped += not known
        self._left_out = step
        if self.skipped > self.skip:
            raise NonFiniteError(
                f"{problem}; nothing of it was saved: {self._way_on()}, with a lower learning rate "
                f"(now {float(rate):.3g}) or without these files, or leave such batches out with "
                f"--skip_nonfinite {max(self.skip * 2, 10)}"
            )
        if not known:
            log.warning("%s: left out (%d of at most %d)", problem, self.skipped, self.skip)
        for tensor, before in self._statistics:
            tensor.data.copy_(before)

    def _way_on(self) -> str:
        folder = self._checkpoints
        if folder is not None and not any(folder.glob("*")):
            return "there is no checkpoint yet: start anew"
        return "go on from the last checkpoint with -r"

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self._settle()

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._settle()

    def _settle(self) -> None:
        problem = self._first_problem()
        if problem is not None:
            raise NonFiniteError(problem)

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped} if self.skipped else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]


def _empty(optimizer: Optimizer, keep: bool) -> None:
    """Have an optimizer's coming step change nothing: without gradients, or, if it is to `keep`
    them for the scaler, which takes no step without, by such as the scaler leaves out."""
    if not keep:
        optimizer.zero_grad(set_to_none=True)
        return
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    for gradient in (p.grad for p in parameters if p.grad is not None):
        gradient.fill_(math.nan)


def _statistics(model: torch.nn.Module) -> Iterator[Tensor]:
    """What a forward pass in training may change: running means, and codebooks that are such."""
    for module in model.modules():
        if module.training:
            yield from module.buffers(recurse=False)
            frozen = (p for p in module.parameters(recurse=False) if not p.requires_grad)
            yield from frozen


def gradient_size(optimizer: Optimizer) -> Tensor:
    """A scalar that is finite if all gradients of an optimizer are, else infinite or NaN.

    The usual norm is the fastest to compute on CPUs. Its squares overflow for gradients that are
    large and finite, so that it is only believed if it is finite.
    """
    parameters = (p for group in optimizer.param_groups for p in group["params"])
    gradients = [p.grad for p in parameters if p.grad is not None]
    if not gradients:
        return torch.zeros(())
    if gradients[0].device.type == "cpu":
        norm = _largest(torch._foreach_norm(gradients))
        if torch.isfinite(norm):
            return norm
    return _largest(torch._foreach_norm(gradients, math.inf))


def _largest(norms: Sequence[Tensor]) -> Tensor:
    """The largest of norms, each known to all processes."""
    return whole(torch.stack(list(norms)).max()).float()


def _to_cpu(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """A copy that does not wait for the device, and the event after which it is complete."""
    if not values.is_cuda:
        return values.cpu(), None
    copied = torch.empty(values.shape, pin_memory=True).copy_(values, non_blocking=True)
    ready = torch.cuda.Event()
    ready.record(torch.cuda.current_stream(values.device))
    return copied, ready


def _batch(files: Sequence[str]) -> str:
    if not files:
        return ""
    more = f" and {len(files) - FILES_NAMED} more" if len(files) > FILES_NAMED else ""
    return f", in the batch of {', '.join(files[:FILES_NAMED])}{more}"
