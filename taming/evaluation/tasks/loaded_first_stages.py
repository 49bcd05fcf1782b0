"""First stages of runs, under names that differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from taming.checkpoint import Run, run_config
from taming.downloads import file_hash
from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.models.first_stage import FirstStage
from taming.models.vqgan import VQModel
from taming.sampling.load import load_first_stage


@dataclass(frozen=True)
class LoadedFirstStage:
    """A first stage, and the run that it is from.

    Attributes:
        name: the run's folder, and its checkpoint if two are from one folder.
        model: on the CPU until it is evaluated.
        config: the run's whole config.
    """

    name: str
    model: FirstStage
    run: Run
    global_step: int
    config: DictConfig

    @classmethod
    def load(
        cls, path: str | Path, base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
    ) -> LoadedFirstStage:
        """The first stage of a run, which may be a transformer's.

        Raises:
            UserError: if there is no such run, or it has no codes.
        """
        model, run, step = load_first_stage(path, base, "cpu", overrides)
        if not isinstance(model, CodesInterface):
            raise UserError(f"{path}: {type(model).__name__} is no first stage with a codebook")
        return cls(run.folder.resolve().name, model, run, step, run_config(run, base, overrides))

    @cached_property
    def checkpoint_hash(self) -> str:
        """SHA-256 of the checkpoint's file."""
        return file_hash(self.run.checkpoint)

    @property
    def image_key(self) -> str:
        """The entry of a dataset's items that it reads."""
        return self.model.image_key if isinstance(self.model, VQModel) else "image"

    def describe(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "kind": "reconstructions",
            "path": str(self.run.folder),
            "checkpoint": self.run.checkpoint.name,
            "checkpoint_hash": self.checkpoint_hash,
            "global_step": self.global_step,
            "model": type(self.model).__name__,
            "f": self.model.downsampling_factor,
            "codes": self.model.quantize.n_e,
        }


def load_first_stages(
    paths: Sequence[str | Path], base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> list[LoadedFirstStage]:
    """The first stages of runs, under names that differ.

    Raises:
        UserError: for runs that cannot be read, and first stages of different kinds of images.
    """
    stages: list[LoadedFirstStage] = []
    for path in paths:
        stage = LoadedFirstStage.load(path, base, overrides)
        taken = [other.name for other in stages]
        name = stage.name
        if name in taken:
            name = f"{name} {stage.run.checkpoint.stem}"
        copies = sum(other == name or other.startswith(f"{name} (") for other in taken)
        stages.append(replace(stage, name=f"{name} ({copies + 1})" if copies else name))
    kinds = {stage.model.channels if stage.model.reads_labels else None for stage in stages}
    if len(kinds) > 1:
        raise UserError("first stages of images and of segmentations cannot be compared")
    return stages
