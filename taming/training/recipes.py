"""Whether a run was trained as a command line would train one now."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from taming.checkpoint import find_run
from taming.config import load_config, plain
from taming.config_before import keep_dataset_defaults
from taming.training.arguments import parse_arguments
from taming.training.run_configs import KEPT_FLAGS, config_values, read_configs
from taming.training.run_folder import RunFolder

Values = dict[str, Any]
# Options of the Trainer by which a run becomes another one; the others say where and how it runs.
OPTIONS: tuple[str, ...] = ("max_epochs", "max_steps", "accumulate_grad_batches")
OPTIONS += ("gradient_clip_val", "limit_train_batches", "overfit_batches", "precision")
PRECISION = {"32-true": "32", "16": "16-mixed", "bf16": "bf16-mixed"}  # other names of the same


def recipe_of_words(words: Sequence[str], folder: Path | None = None) -> Values:
    """What decides a new run of main.py with `words`, by key: model, data, and options that count.

    Args:
        folder: where it would be started (default: here).

    Raises:
        UserError: for words with which none begins.
    """
    with _started_in(folder):
        args, flags, overrides = parse_arguments(list(words))
        run = RunFolder(Path(), tuple(args.base), is_new=True)
        config, lightning = read_configs(run, args.base, overrides, say=lambda line: None)
    given = {name: getattr(args, name) for name in KEPT_FLAGS}
    kept = {name: value for name, value in given.items() if value is not None}
    return _values(config, {**plain(lightning), **kept}, flags)


def recipe_of_run(run: Path) -> Values:
    """The same of a run, by the configs in its folder.

    Raises:
        UserError: if it has none.
    """
    config = load_config((), stored=find_run(run).configs)
    keep_dataset_defaults(config, new=False)
    return _values(config, plain(config.pop("lightning", None) or {}), {})


def difference(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first key in which recipes differ, with both values, for people."""
    for key in {**now, **before}:
        one, other = before.get(key), now.get(key)
        if one != other:
            return f"{key} was {one} and is {other}"
    return None


def _values(config: DictConfig, lightning: Mapping[str, Any], flags: Mapping[str, Any]) -> Values:
    options = {**(lightning.get("trainer") or {}), **flags}
    precision = str(options.get("precision") or "32")
    options["precision"] = PRECISION.get(precision, precision)
    kept = {name: lightning.get(name, default) for name, default in KEPT_FLAGS.items()}
    counted = {name: options[name] for name in OPTIONS if options.get(name) is not None}
    return {**config_values(config), **kept, **counted}


@contextmanager
def _started_in(folder: Path | None) -> Iterator[None]:
    """Paths and classes of the user's own are those of a command that is started in `folder`."""
    before, place = Path.cwd(), str((folder or Path()).resolve())
    sys.path.append(place)
    os.chdir(place)
    try:
        yield
    finally:
        os.chdir(before)
        sys.path.remove(place)
