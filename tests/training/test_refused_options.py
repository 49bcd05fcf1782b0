"""Arguments of Lightning 1 are answered by what takes their place."""

from __future__ import annotations

import re

import pytest

from taming.errors import UserError
from taming.training.arguments import get_parser, parse_arguments
from taming.training.refused_options import _FORMER, check_arguments
from taming.training.trainer_options import trainer_options

EXPECTED = {
    "resume_from_checkpoint": "-r",
    "auto_scale_batch_size": "data.params.batch_size",
    "weights_summary": "--enable_model_summary",
    "tpu_cores": "--gpus",
    "distributed_backend": "--strategy ddp",
    "checkpoint_callback": "lightning.modelcheckpoint",
    "progress_bar_refresh_rate": "--enable_progress_bar",
    "amp_level": "--precision",
    "amp_backend": "--precision",
    "auto_lr_find": "model.base_learning_rate",
    "num_processes": "--devices",
    "auto_select_gpus": "--gpus",
    "terminate_on_nan": "--skip_nonfinite",
    "reload_dataloaders_every_epoch": "--reload_dataloaders_every_n_epochs 1",
    "weights_save_path": "-n",
    "logdir": "-n",
}
OTHERS = [
    *("track_grad_norm", "ipus", "replace_sampler_ddp", "flush_logs_every_n_steps"),
    *("log_gpu_memory", "move_metrics_to_cpu", "multiple_trainloader_mode", "process_position"),
    *("prepare_data_per_node", "stochastic_weight_avg", "truncated_bptt_steps"),
    *("automatic_optimization", "enable_pl_optimizer"),
]


@pytest.mark.parametrize("name", [*EXPECTED, *OTHERS])
def test_former_arguments(name: str) -> None:
    for words in ([f"--{name}", "3"], [f"--{name}=3"], [f"--{name}"]):
        with pytest.raises(UserError, match=f"^--{name} is no argument any more: ") as caught:
            parse_arguments(words)
        assert EXPECTED.get(name, "") in str(caught.value)
    with pytest.raises(UserError, match=f"^lightning.trainer.{name} is no argument any more: "):
        check_arguments({name: 3}, trainer_options())


def test_what_is_advised_exists_and_what_is_refused_does_not() -> None:
    known = {*(f"--{name}" for name in trainer_options()), *get_parser().flags()}
    for name, advice in _FORMER.items():
        assert set(re.findall(r"(?<![\w-])--?[a-z]\w*", advice)) <= known, name
        assert not {f"--{name}", f"-{name}"} & known


def test_other_arguments_have_the_nearest() -> None:
    with pytest.raises(UserError, match="no such argument; did you mean 'max_steps'"):
        check_arguments({"max_step": 3}, trainer_options())
    for options in ({"enable_checkpointing": None}, {"accelerator": "cpu"}, {"max_steps": 3}):
        check_arguments(options, trainer_options())
