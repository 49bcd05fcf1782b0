"""First stages on the same images: their numbers, and some reconstructions to look at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig
from torch import Tensor

from taming.checkpoint import Run, distinct_name, run_config
from taming.command_line import flag
from taming.config import without_checkpoint_paths
from taming.devices import dtype_name, own_share
from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.checkpoints import describe_checkpoint
from taming.evaluation.metrics.base import SEED
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid_spread import ResampledMoments
from taming.evaluation.metrics.lpips import Networks
from taming.evaluation.metrics.reconstruction import PAIR_METRICS, PairAccumulator, to_pixels
from taming.evaluation.plots import images_at
from taming.evaluation.runner import Runner
from taming.evaluation.sources.images import ImageSource, Manifest, State
from taming.evaluation.sources.prepared import model_input
from taming.evaluation.tasks.first_stage_cost import Speed, measure_speed, parameter_counts
from taming.evaluation.tasks.reconstruction import ReconstructionAccumulator, reconstruct
from taming.models.code_use import code_count
from taming.models.codes import CodesInterface, as_pictures
from taming.models.first_stage import FirstStage
from taming.models.vqgan import VQModel
from taming.sampling.load import load_first_stage
from taming.weight_choice import weight_choice

ROUNDING = "8-bit images, values cut to [-1, 1] and rounded"


@dataclass(frozen=True)
class LoadedFirstStage:
    """A first stage, and the run that it is from."""

    name: str  # the run's folder, its checkpoint too if two are from one folder; or a lone file
    model: FirstStage  # on the CPU until it is evaluated
    run: Run
    global_step: int
    config: DictConfig  # the run's whole config

    @classmethod
    def load(
        cls, path: str | Path, base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
    ) -> LoadedFirstStage:
        """That of a run, maybe a transformer's; UserError without a run or without codes."""
        model, run, step = load_first_stage(path, base, "cpu", overrides)
        if not isinstance(model, CodesInterface):
            raise UserError(f"{path}: {type(model).__name__} is no first stage with a codebook")
        return cls(distinct_name(run), model, run, step, run_config(run, base, overrides))

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
            **describe_checkpoint(self.run, self.global_step, self.checkpoint_hash),
            "model": type(self.model).__name__,
            "f": self.model.downsampling_factor,
            "codes": code_count(self.model.quantize),
        }


@dataclass(frozen=True, kw_only=True)
class FirstStageArguments:
    """Which first stages."""

    resume: tuple[str, ...] = flag(
        MISSING,
        "a run's folder or checkpoint (may be repeated)",
        "-r",
        metavar="RUN",
        repeated=True,
    )
    base: tuple[str, ...] = flag(
        (), "merged over the runs' configs", "-b", metavar="YAML", nargs="*"
    )

    def load(self, overrides: Sequence[str] = ()) -> list[LoadedFirstStage]:
        """See `load_first_stages`."""
        return load_first_stages(self.resume, self.base, overrides)


def load_first_stages(
    paths: Sequence[str | Path], base: Sequence[str | Path] = (), overrides: Sequence[str] = ()
) -> list[LoadedFirstStage]:
    """The first stages of runs, under names that differ.

    Raises UserError for runs that cannot be read, and first stages of different kinds of images.
    """
    stages: list[LoadedFirstStage] = []
    for path in paths:
        stage = LoadedFirstStage.load(path, base, overrides)
        name = distinct_name(stage.run, [other.name for other in stages])
        stages.append(replace(stage, name=name))
    kinds = {stage.model.channels if stage.model.reads_labels else None for stage in stages}
    if len(kinds) > 1:
        raise UserError("first stages of images and of segmentations cannot be compared")
    return stages


@dataclass(frozen=True)
class FirstStageResult:
    """Numbers of a first stage, and what they are about."""

    name: str
    metrics: dict[str, Any]  # see `ReconstructionAccumulator.compute`
    left_out: dict[str, str]  # the metrics that are not there, with a reason each
    classes: dict[int, dict[str, Any]]  # metrics of pairs by label
    counts: np.ndarray  # how often each code occurs, int64 [n_codes]
    values: State  # of each image, see `PairAccumulator.values`
    images: dict[str, Any]  # description of the set, with the hash of its pixels
    reconstructions: dict[str, Any]  # the same of the reconstructions
    parameters: dict[str, int] = field(default_factory=dict)  # see `parameter_counts`
    speed: Speed | None = None


@dataclass
class FirstStageEvaluator:
    """Evaluates one or more first stages on the same images."""

    networks: Networks = field(default_factory=Networks)  # of LPIPS
    extractor: Extractor | None = None  # of the layer whose Fréchet distance is the rFID
    metrics: Sequence[str] = tuple(PAIR_METRICS)  # beside L1 and PSNR
    device: torch.device = torch.device("cpu")
    dtype: torch.dtype = torch.float32
    runner: Runner = field(default_factory=Runner)  # batch size, cache
    left_out: Mapping[str, str] = field(default_factory=dict)  # metrics that cannot be computed
    rfid_resamples: int = 0  # sets drawn of the images, for the spread of the rFID
    _originals: dict[int, ResampledMoments] = field(default_factory=dict)  # by channels

    def __call__(self, stage: LoadedFirstStage, images: ImageSource) -> FirstStageResult | None:
        """The numbers of a first stage; None in processes other than that of rank 0.

        Raises UserError for images that cannot be read or that the first stage does not take.
        """
        model = stage.model.to(self.device)
        key = self._key(stage, images)
        manifest, counted = self.runner.run(
            images, lambda: self.accumulator(model, len(images)), key, stage.name
        )
        model.to("cpu")
        if counted.extractor is not None:
            # In all processes, so that none computes them again.
            self._originals.setdefault(model.channels, counted.originals)
        return self._result(stage, images, manifest, counted) if own_share()[0] == 0 else None

    def accumulator(self, model: FirstStage, images: int) -> ReconstructionAccumulator:
        """What counts a set of so many images, by a model that is on the device."""
        available = [name for name in self.metrics if name not in self.networks.left_out]
        return ReconstructionAccumulator(
            model,
            images,
            pairs=None if model.reads_labels else PairAccumulator(available, self.networks.ready),
            extractor=self.extractor,
            originals=self._originals.get(model.channels),
            resamples=self.rfid_resamples,
            dtype=self.dtype,
        )

    def _key(self, stage: LoadedFirstStage, images: ImageSource) -> str:
        return self.runner.key_for(
            images,
            checkpoint=stage.checkpoint_hash,
            weights=weight_choice(),
            model=without_checkpoint_paths(stage.config.model),
            settings=self.describe(),
            originals=stage.model.channels in self._originals,
            resamples=self.rfid_resamples,
            torch=torch.__version__,
            device=self.device.type,
        )

    def _result(
        self,
        stage: LoadedFirstStage,
        images: ImageSource,
        manifest: Manifest,
        counted: ReconstructionAccumulator,
    ) -> FirstStageResult:
        left_out = counted.left_out()
        if not stage.model.reads_labels:
            left_out = {**self.left_out, **self.networks.left_out, **left_out}
        return FirstStageResult(
            stage.name,
            counted.compute(),
            left_out=left_out,
            classes=counted.pairs.per_label(),
            counts=counted.codes.counts_so_far().numpy(),
            values=counted.pairs.values(),
            images={**images.describe(), **manifest.describe()},
            reconstructions={**stage.describe(), **counted.reconstructions.describe()},
            parameters=parameter_counts(stage.model),
        )

    def speed(self, stage: LoadedFirstStage, images: ImageSource, rounds: int) -> Speed:
        """How fast a first stage is on the first images, a batch of the size of the first one."""
        chosen = images_at(images, range(min(self.runner.batch_size, len(images))))
        pixels = [image.pixels for image in chosen]
        alike = [one for one in pixels if one.shape == pixels[0].shape]
        model = stage.model.to(self.device)
        x = model_input(torch.stack(alike), model).to(self.device)
        speed = measure_speed(model, x, rounds, self.dtype)
        model.to("cpu")
        return speed

    def describe(self) -> dict[str, Any]:
        """What decides the numbers beside images and first stages, as JSON values."""
        lpips = {
            f"lpips_{net}": {"version": "0.1", "backbone_sha256": digest}
            for net, digest in self.networks.hashes.items()
        }
        about: dict[str, Any] = {}
        if self.extractor is not None:
            layers = {"layers": list(self.extractor.layers)}
            about["rfid"] = self.extractor.describe() | layers
            if self.rfid_resamples:
                about |= {"rfid_resamples": self.rfid_resamples, "rfid_resamples_seed": SEED}
        return {
            "metrics": list(self.metrics),
            "compared": ROUNDING,
            "psnr": "mean of the images' own, range 255",
            "ssim": "Gaussian window of 11, sigma 1.5, inside the image; mean over channels",
            "precision": dtype_name(self.dtype),
            **lpips,
            **about,
        }

    def pictures(
        self, stage: LoadedFirstStage, images: ImageSource, indices: Sequence[int]
    ) -> dict[int, tuple[np.ndarray, np.ndarray]]:
        """Some images and their reconstructions by index, each uint8 (H, W, 3)."""
        model, pairs = stage.model.to(self.device), {}
        for image in images_at(images, indices):
            x = model_input(image.pixels[None], model).to(self.device)
            _, reconstruction = reconstruct(model, x, self.dtype)
            pairs[image.index] = (shown(model, x), shown(model, reconstruction))
        return pairs


def shown(model: FirstStage, image: Tensor) -> np.ndarray:
    """uint8 (H, W, 3) of an image [1, C, H, W]; labels get a color each."""
    return to_pixels(as_pictures(model, image))[0].expand(3, -1, -1).permute(1, 2, 0).cpu().numpy()
