"""Published numbers measured again: which command, what is missing for it, and the final table."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from taming.atomic_files import write_text
from taming.checkpoint import find_run
from taming.config import load_config, plain
from taming.data.checks import damage_found_later
from taming.data.file_versions import version_of
from taming.errors import UserError, sentence
from taming.evaluation.presets import Number, Preset, command_of
from taming.evaluation.presets.listing import METRICS
from taming.evaluation.results import Result, markdown_table, read_result
from taming.evaluation.sources.images import key_of
from taming.evaluation.tasks.fidelity import flattened
from taming.published_models import how_to_fetch, published_models
from taming.sampling.load import data_config, open_dataset
from taming.sampling.rejection import Classifier
from taming.shipped import find_config
from taming.user_files import file_version, read_text

# Where the spread of a metric is in results, and what it is over.
SPREADS = {
    "fid": ("fid_spread.std", "samples drawn again with replacement"),
    "rfid": ("rfid_spread.std", "images drawn again with replacement"),
    "isc.mean": ("isc.std", "splits of the samples"),
}
RESAMPLES = 10  # sets for the spread of an rFID, as many as `fid_spread` has by default
RESULTS = (
    *("fidelity-*.json", "first_stages-*/first_stages.json"),
    *("transformer*.json", "scenes*.json"),  # without a hash, as they were called before
)
NOTE = (
    "Spreads are standard deviations: of FID over sets drawn with replacement from the samples, or "
    "from the images in their place (each image a Poisson number of times; the deviation only, "
    "as such sets have a higher FID themselves), of rFID over sets of images drawn so together "
    "with their reconstructions, of Inception Score over its splits, of scenes over sets of one "
    "image per layout. They are of this draw alone: weights and reference are the same. What is "
    "published behind +- may be over something else."
)


@dataclass(frozen=True)
class Reproduction:
    """A preset, and what measures it here."""

    preset: Preset
    run: str | None = None  # of its model, if it is not where scripts/download_models.py puts it
    config: str | None = None  # of its data, if it is not its own
    extra: tuple[str, ...] = ()  # further flags of the script

    @property
    def model_path(self) -> Path | None:
        """The run that is evaluated; None if the preset needs one that nobody has named."""
        if self.run is not None:
            return Path(self.run)
        model = self.preset.model
        return None if model is None else Path(published_models()[model].folder)

    @property
    def config_path(self) -> Path | None:
        if self.config is not None:
            return Path(self.config)
        name = self.preset.config
        return None if name is None else find_config(f"configs/{name}.yaml")

    def command(self) -> list[str]:
        """The line, see `taming.shipped.script_of`, without the folder of the results."""
        words = command_of(self.preset, None if self.model_path is None else str(self.model_path))
        own = f"configs/{self.preset.config}.yaml"
        words = [str(self.config_path) if word == own else word for word in words]
        return [*words, *self._spread(), *self.extra]

    def _spread(self) -> list[str]:
        """Flags that measure the spread of the draw of images, too."""
        if self.preset.script == "evaluate_fid":
            return ["--metrics", f"{self.preset.parameter('metrics') or 'fid'},fid_spread"]
        if self.preset.script == "evaluate_first_stage":
            return ["--rfid_resamples", str(RESAMPLES)]
        return []

    def missing(self) -> Iterator[str]:
        """What has to be there, in sentences that say how to get it; nothing is downloaded."""
        preset = self.preset
        if preset.script is None:
            yield f"{preset.what} is no single run: {preset.note}"
            return
        missing = [] if preset.of_data_alone else list(self._missing_model())
        yield from missing
        if self.config_path is not None or not missing:  # data may be those of the run
            yield from self._missing_data()
        yield from self._missing_classifier()

    def _missing_model(self) -> Iterator[str]:
        if self.model_path is None:
            yield f"{self.preset.note}: --model {self.preset.name}=RUN"
            return
        try:
            find_run(self.model_path)
        except UserError as error:
            text = sentence(error)
            hint = "" if "download_models" in text else how_to_fetch(self.model_path)
            yield text + hint

    def _missing_data(self) -> Iterator[str]:
        for split in self._splits:
            try:
                self._dataset(split)
            except UserError as error:
                name = self.config or self.model_path
                if self.config is None and self.preset.config is not None:
                    name = f"configs/{self.preset.config}.yaml"
                yield f"{split} data of {name}: {sentence(error)} (see docs/data.md)"

    @property
    def _splits(self) -> list[str]:
        """Of the data that are read."""
        names = ("reconstruct", "samples_split", "split")
        splits = [self._given(name) or self.preset.parameter(name) for name in names]
        return list(dict.fromkeys(str(split) for split in splits if split)) or ["validation"]

    def _given(self, name: str) -> str | None:
        """The value of a flag among the further ones, which counts instead of the preset's."""
        words = [part for word in self.extra for part in word.split("=", 1)]
        after = [value for word, value in pairwise(words) if word == f"--{name}"]
        return after[-1] if after else None

    def _dataset(self, split: str) -> tuple[object, object]:
        """The dataset of a split and its config; (None, None) for presets without data."""
        if self.config_path is not None:
            data = load_config([self.config_path], used=["data"]).data
        elif self.model_path is not None:
            data = data_config(find_run(self.model_path))
        else:
            return None, None
        with damage_found_later():
            return open_dataset(data, split).dataset, plain(data.params[split], True)

    def _missing_classifier(self) -> Iterator[str]:
        name = self.preset.parameter("classifier")
        if name is None or self._given("classifier") is not None:
            return
        if (path := Classifier.missing_file(str(name))) is not None:
            network, _, version = str(name).partition("@")
            fetch = f"torchvision.models.{network}(weights='{version or 'DEFAULT'}')"
            yield (
                f'there is no {path}; fetch it with python -c "import torchvision; {fetch}", or '
                f"name a file: -- --classifier {name}:FILE"
            )

    @property
    def key(self) -> str:
        """Of all that decides the result and can be known before it, without reading images: of
        their files it knows names, sizes and times of change."""
        files = [self.config_path] if self.config_path else []
        checkpoint = None
        if not self.preset.of_data_alone and self.model_path is not None:
            file = find_run(self.model_path).checkpoint
            checkpoint = [str(file.resolve()), *file_version(file)]
        return key_of(
            command=self.command(),
            sources=self.preset.describe(),
            configs=[read_text(path) for path in files],
            checkpoint=checkpoint,
            images=[version_of(*self._dataset(split)) for split in self._splits],
        )[:8]

    def folder(self, outdir: Path) -> Path:
        """Where its results are."""
        return outdir / f"{self.preset.name}-{self.key}"


def result_in(folder: Path) -> Result | None:
    """The result that a script has written into a folder; None if there is none."""
    found = [path for pattern in RESULTS for path in folder.glob(pattern)]
    return read_result(max(found, key=lambda path: path.stat().st_mtime)) if found else None


def left_out_of(preset: Preset, result: Result | None) -> str:
    """Why a result lacks a number of its preset, as that of weights that were not there; nothing
    if it does not."""
    reasons: Mapping[str, Mapping[str, str]] = (result or {}).get("left_out") or {}
    names = [number.metric for number in preset.measured]
    return next((of[name] for of in reasons.values() for name in names if name in of), "")


def measured_numbers(preset: Preset, result: Result) -> dict[str, float]:
    """The numbers of a result by name, as `Number.metric` has them."""
    metrics: Mapping[str, Any] = result["metrics"]
    if preset.script == "evaluate_first_stage":
        (metrics,) = metrics.values()  # of the one first stage
    return {name: value for name, value in flattened(metrics) if isinstance(value, int | float)}


def spread_of(number: Number, measured: Mapping[str, float]) -> float | None:
    """The standard deviation of a number over the draw of samples; None if it is not known."""
    name = number.metric.removesuffix(".mean")
    of_scenes = measured.get(f"one_per_layout.{name}.std")
    return (
        of_scenes if of_scenes is not None else measured.get(SPREADS.get(number.metric, ("",))[0])
    )


def rows(preset: Preset, result: Result | None, why_not: str = "") -> list[dict[str, Any]]:
    """Lines of the final table: a published number each, and the measured one, or why there is
    none."""
    measured = {} if result is None else measured_numbers(preset, result)
    lines = []
    for number in preset.numbers or _unpublished(measured):
        value = None if number.of else measured.get(number.metric)
        lines.append(
            {
                "preset": preset.name,
                "metric": number.metric + (f" of {number.of}" if number.of else ""),
                "published": number.text if preset.numbers else "none",
                "where": number.source + (f", measured by {number.by}" if number.by else ""),
                "measured": (why_not or "not measured here") if value is None else value,
                "spread": spread_of(number, measured) if value is not None else None,
                "by": protocol_name(result) if result else None,
            }
        )
    return lines


def _unpublished(measured: Mapping[str, float]) -> list[Number]:
    """The numbers of a preset of which none is published: those that tables have."""
    names = [name for name in METRICS if name in measured] or ["fid"]
    return [Number(name, measured.get(name, math.nan), "") for name in names]


def protocol_name(result: Result) -> str:
    """Which protocol a number is of, in a few words: extractor, the reference's split and resize,
    and what was given in place of the preset's values."""
    protocol, sets = result["protocol"], result["sets"]
    extractor = protocol.get("extractor") or protocol.get("rfid") or {}
    words = [str(extractor.get("extractor") or protocol.get("evaluator") or "no extractor")]
    reference = sets.get("reference") or sets.get("images") or {}
    named = ("split", "resize", "crop")
    words += [f"{key} {reference[key]}" for key in named if reference.get(key)]
    count = (sets.get("samples") or sets.get("images") or {}).get("images")
    words += [f"{count} images"] if count else []
    changed: Mapping[str, str] = (result.get("preset") or {}).get("overridden") or {}
    text = ", ".join(f"{name} {value}" for name, value in changed.items())
    return ", ".join(words) + (f"; not as published: {text}" if text else "")


def write_table(lines: Sequence[Mapping[str, Any]], outdir: Path) -> str:
    """Write `reproduced.json` and `reproduced.md`; returns the Markdown."""
    shown = [{k: "" if v is None else v for k, v in line.items()} for line in lines]
    text = f"{markdown_table(shown)}\n\n{NOTE}\n"
    write_text(outdir / "reproduced.json", json.dumps(list(lines), indent=2) + "\n")
    write_text(outdir / "reproduced.md", text)
    return text
