"""Arguments of the Trainer that there are no more, and those that a run has another way for."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from taming.config import did_you_mean
from taming.errors import UserError, shorten

_FOLDER = "a run's folder is logs/<time>_<name>: name it by -n, and a folder above it by -p"
_BAR = "--enable_progress_bar false switches the bar off"
_LEAVE = "leave it out"

# Of Lightning 1, and of published versions of main.py: what to give instead.
_FORMER = {
    "resume_from_checkpoint": "go on with a run by -r logs/<run>",
    "checkpoint_callback": "which checkpoints are kept is set in lightning.modelcheckpoint",
    **dict.fromkeys(("weights_save_path", "logdir", "l"), _FOLDER),
    "auto_scale_batch_size": "set data.params.batch_size",
    "auto_lr_find": "set model.base_learning_rate",
    "weights_summary": "--enable_model_summary false switches the table off",
    **dict.fromkeys(("progress_bar_refresh_rate", "process_position"), _BAR),
    "distributed_backend": "give --strategy ddp",
    "replace_sampler_ddp": f"the data are shared among processes as they have to be; {_LEAVE}",
    "num_processes": "give --devices",
    "auto_select_gpus": "give --gpus '0,' for the first GPU, or --gpus 2 for any two",
    **dict.fromkeys(("tpu_cores", "ipus", "hpus"), "give --gpus, or --accelerator mps on a Mac"),
    **dict.fromkeys(("amp_level", "amp_backend"), "give --precision bf16-mixed or 16-mixed"),
    "reload_dataloaders_every_epoch": "give --reload_dataloaders_every_n_epochs 1",
    "flush_logs_every_n_steps": "give --log_every_n_steps",
    "log_gpu_memory": "name Lightning's DeviceStatsMonitor in lightning.callbacks",
    "stochastic_weight_avg": "first stages have model.params.use_ema=true",
    "terminate_on_nan": "training stops there, or leaves 10 batches out with --skip_nonfinite 10",
    "track_grad_norm": "a callback with on_before_optimizer_step can log what it needs",
    "prepare_data_per_node": f"data are prepared once on each machine; {_LEAVE}",
    **dict.fromkeys(("truncated_bptt_steps", "multiple_trainloader_mode"), _LEAVE),
    **dict.fromkeys(("move_metrics_to_cpu", "automatic_optimization"), _LEAVE),
    "enable_pl_optimizer": _LEAVE,
}
# Values of `--accelerator` that are those of `--strategy` today.
_STRATEGIES = ("dp", "ddp", "ddp2", "ddp_cpu", "ddp_spawn", "horovod")


def refuse_former(name: str, shown: str) -> None:
    """Raise `UserError` for an argument of former times, which the user sees as `shown`."""
    if name in _FORMER:
        raise UserError(f"{shown} is no argument any more: {_FORMER[name]}")


def check_arguments(options: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse (`UserError`) arguments that are not `known`, and what a run does in its own way."""
    for name in options:
        if name not in known:
            refuse_former(name, f"lightning.trainer.{name}")
            hint = did_you_mean(str(name), [*known, "gpus"])
            raise UserError(f"lightning.trainer.{name}: the Trainer has no such argument{hint}")
    if (folder := options.get("default_root_dir")) is not None:
        raise UserError(
            f"--default_root_dir is {shorten(folder)}: {_FOLDER}; of a run that has it, set "
            "lightning.trainer.default_root_dir=null"
        )
    if options.get("enable_checkpointing") is False:
        raise UserError(
            "--enable_checkpointing is false, but a run keeps last.ckpt, by which -r goes on: "
            "leave it out, or try without any file by --fast_dev_run true"
        )
    for name, former in (("accelerator", _STRATEGIES), ("strategy", ("dp", "ddp2", "horovod"))):
        if options.get(name) in former:
            raise UserError(
                f"--{name} is {options[name]}; give --strategy ddp, and --gpus or --devices"
            )
    if options.get("barebones"):
        raise UserError("--barebones measures a Trainer that logs and keeps nothing: leave it out")
