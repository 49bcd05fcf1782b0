"""How several devices train one model: shards of a transformer, and batch normalization."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from pytorch_lightning.plugins.layer_sync import TorchSyncBatchNorm
from pytorch_lightning.strategies import ModelParallelStrategy, Strategy
from torch import Tensor, nn
from torch.optim import Optimizer

from taming.atomic_files import make_new_folder
from taming.checkpoint import read_checkpoint, remove_unused_shards, save_atomic
from taming.checkpoint.shards import (
    JOIN,
    SHARDS,
    described,
    filled,
    has_shards,
    replaced,
    split,
)
from taming.config import get_obj_from_str
from taming.errors import UserError
from taming.lightning_internals import divide_over_all
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.losses.base import FirstStageLoss
from taming.modules.synced_batch_norm import synced
from taming.sharding import is_sharded, save_shards, sharded_like
from taming.user_code import name_of

Result = TypeVar("Result")
FSDP2 = "fsdp2"
_PRECISIONS = ("32", "32-true", "bf16", "bf16-mixed")


class ShardedStrategy(ModelParallelStrategy):
    """`--strategy fsdp2`: the weights, gradients and optimizer state of a transformer are divided
    among the processes, its frozen stages are not.

    Checkpoints are written by all processes, see `taming.checkpoint.shards`; they must see one file
    system. A run may go on with another number of processes, and from a whole checkpoint.
    """

    def setup_environment(self) -> None:
        divide_over_all(self)
        super().setup_environment()

    # The state of model and optimizer is passed on as it is, as by strategies that divide nothing.

    @property
    def lightning_restore_optimizer(self) -> bool:
        return True

    def lightning_module_state_dict(self) -> dict[str, Any]:
        return Strategy.lightning_module_state_dict(self)

    def load_model_state_dict(self, checkpoint: Mapping[str, Any], strict: bool = True) -> None:
        Strategy.load_model_state_dict(self, checkpoint, strict)

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        return Strategy.optimizer_state(self, optimizer)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        Strategy.load_optimizer_state_dict(self, checkpoint)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        self.save_as(checkpoint, [Path(filepath)])

    def save_as(
        self, checkpoint: Mapping[str, Any], paths: Sequence[Path], outdated: Sequence[Path] = ()
    ) -> None:
        """Write a checkpoint under several names, then remove `outdated` ones.

        Raises:
            UserError: on all processes, if one of them cannot write.
        """
        place = paths[0].parent
        name = f"{SHARDS}/step={checkpoint['global_step']:06}"
        folder = self._by_first(lambda: make_new_folder(place / name))
        content, sharded = split(checkpoint)
        save_shards(sharded, folder)

        def write() -> None:
            content[SHARDS] = described(folder)
            save_atomic(content, paths[0], also=paths[1:])
            for path in set(outdated) - set(paths):
                self.remove_checkpoint(path)
            remove_unused_shards(place)

        self._by_first(write)

    def _by_first(self, work: Callable[[], Result]) -> Result:
        """What `work` returns on the first process, for all of them, which wait for it; if it
        fails, all do."""
        done: tuple[Any, str] = (None, "")
        failure: Exception | None = None
        if self.is_global_zero:
            try:
                done = (work(), "")
            except Exception as error:
                failure, done = error, (None, f"{error}" or type(error).__name__)
        result, reason = self.broadcast(done)
        if failure is not None:
            raise failure
        if reason:
            raise UserError(reason)
        made: Result = result
        return made

    def remove_checkpoint(self, filepath: Any) -> None:
        if self.is_global_zero:
            Path(filepath).unlink(missing_ok=True)

    def load_checkpoint(
        self, checkpoint_path: Any, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content, own = read_checkpoint(checkpoint_path), self._own_tensors()
        if has_shards(content):
            return filled(content, Path(checkpoint_path), lambda place: own.get(_owner(place)))
        parts = {name: content[name] for name in ("state_dict", "optimizer_states")}
        divided = replaced(parts, lambda place, t: sharded_like(t, own.get(_owner(place))))
        return {**content, **divided}

    def _own_tensors(self) -> dict[str, Tensor]:
        """This process's parts of sharded weights, by their places in a checkpoint, and by those of
        what an optimizer keeps of them, such as `optimizer_states.0.state.5`."""
        assert self.lightning_module is not None
        weights = self.lightning_module.state_dict()
        own = {f"state_dict.{name}": tensor for name, tensor in weights.items()}
        for number, optimizer in enumerate(self.optimizers):
            groups = (group["params"] for group in optimizer.param_groups)
            parameters = enumerate(chain.from_iterable(groups))
            own |= {f"optimizer_states.{number}.state.{key}": p.detach() for key, p in parameters}
        return {place: tensor for place, tensor in own.items() if is_sharded(tensor)}


def _owner(place: str) -> str:
    """The weight's place, of a weight or of an average that an optimizer keeps of it."""
    return place if place.startswith("state_dict.") else place.rpartition(".")[0]


class SyncedBatchNorm(TorchSyncBatchNorm):
    """`sync_batchnorm: true`: batch normalization by the statistics of all processes.

    torch's is for GPUs, and cannot be differentiated twice, as R1 does; else it is our own.
    """

    def apply(self, model: nn.Module) -> nn.Module:
        on_gpu = any(parameter.is_cuda for parameter in model.parameters())
        losses = (part for part in model.modules() if isinstance(part, FirstStageLoss))
        twice = any(loss.differentiates_twice for loss in losses)
        return super().apply(model) if on_gpu and not twice else synced(model)


# ---------------------------------------------------------------------- options


def check_strategy(options: Mapping[str, Any], target: Any, resume_from: Path | None) -> None:
    """Refuse, before anything is built, what cannot be divided or gone on with.

    Args:
        target: `model.target`.

    Raises:
        UserError: with what to use instead.
    """
    strategy = str(options.get("strategy") or "auto")
    if strategy != FSDP2:
        return _require_whole(resume_from)
    model = get_obj_from_str(str(target))
    if not (isinstance(model, type) and issubclass(model, Net2NetTransformer)):
        raise UserError(
            f"--strategy {FSDP2} is for transformers, and {name_of(model)} is none; a first stage "
            "is small enough for --strategy ddp"
        )
    if str(options.get("precision", "32")) not in _PRECISIONS:
        raise UserError(
            f"--precision {options['precision']} does not go with --strategy {FSDP2}; it is 32 or "
            "bf16-mixed"
        )


def _require_whole(resume_from: Path | None) -> None:
    # Large checkpoints are not read for it: one in shards without their folder is refused when it
    # is loaded.
    if resume_from is None or not (resume_from.parent / SHARDS).is_dir():
        return
    if has_shards(read_checkpoint(resume_from)):
        raise UserError(
            f"{resume_from} has its weights in shards: go on with --strategy {FSDP2}, or join them "
            f"with {JOIN} first"
        )


def trainer_arguments(options: Mapping[str, Any]) -> dict[str, Any]:
    """The Trainer's arguments with the objects that `strategy` and `sync_batchnorm` stand for."""
    arguments: dict[str, Any] = {**options, "plugins": []}
    if arguments.get("strategy") == FSDP2:
        # What is gathered first is kept, and must not be a tensor of inference mode: tests come
        # without it, as Lightning's validation in training does, and all it does with FSDP1.
        arguments |= {"strategy": ShardedStrategy(), "inference_mode": False}
    if arguments.pop("sync_batchnorm", False):
        arguments["plugins"].append(SyncedBatchNorm())
    return arguments
