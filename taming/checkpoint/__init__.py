"""Runs and weights from files. Nothing that a checkpoint contains is ever executed."""

from taming.checkpoint.consolidation import consolidate, remove_unused_shards
from taming.checkpoint.fingerprint import model_hashes
from taming.checkpoint.formats import is_program, read_checkpoint, read_content, read_program
from taming.checkpoint.hub_names import HubName, is_hub_name
from taming.checkpoint.loading import (
    check_complete,
    expand_stages,
    load_run,
    run_as_stage,
    run_config,
)
from taming.checkpoint.runs import (
    Run,
    Weights,
    distinct_name,
    find_run,
    find_unsaved,
    is_model_name,
    normal_path,
    weights_at,
)
from taming.checkpoint.savable import check_savable
from taming.checkpoint.saving import CheckpointWriter, save_atomic
from taming.checkpoint.stage_data import complete_data, inherit_data
from taming.checkpoint.starting import StartsFromFile, configure_for
from taming.checkpoint.weights import check_fit, load_file, load_weights

__all__ = [
    "CheckpointWriter",
    "HubName",
    "Run",
    "StartsFromFile",
    "Weights",
    "check_complete",
    "check_fit",
    "check_savable",
    "complete_data",
    "configure_for",
    "consolidate",
    "distinct_name",
    "expand_stages",
    "find_run",
    "find_unsaved",
    "inherit_data",
    "is_hub_name",
    "is_model_name",
    "is_program",
    "load_file",
    "load_run",
    "load_weights",
    "model_hashes",
    "normal_path",
    "read_checkpoint",
    "read_content",
    "read_program",
    "remove_unused_shards",
    "run_as_stage",
    "run_config",
    "save_atomic",
    "weights_at",
]
