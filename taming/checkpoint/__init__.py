"""Runs and weights from files. Nothing that a checkpoint contains is ever executed."""

from taming.checkpoint.formats import read_checkpoint
from taming.checkpoint.loading import expand_stages, load_run, run_as_stage, run_config
from taming.checkpoint.runs import Run, find_run
from taming.checkpoint.weights import check_fit, load_file, load_weights, save_atomic

__all__ = [
    "Run",
    "check_fit",
    "expand_stages",
    "find_run",
    "load_file",
    "load_run",
    "load_weights",
    "read_checkpoint",
    "run_as_stage",
    "run_config",
    "save_atomic",
]
