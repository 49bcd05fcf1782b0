"""Model cards as the Hugging Face Hub reads them: a run's results in the card's metadata."""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from taming.checkpoint import HubName
from taming.errors import UserError
from taming.evaluation.checkpoints import HASH, MADE_WITH, OwnWeights
from taming.evaluation.results import Result, markdown_table, read_result
from taming.evaluation.tasks.fidelity import flattened
from taming.evaluation.tasks.report import OF_VALIDATION, VALIDATION
from taming.shipped import config_names

LIBRARY = "taming-transformers"
# The hub's names of tasks, and ours.
IMAGES, RECONSTRUCTION = (
    ("unconditional-image-generation", "image generation"),
    ("image-to-image", "image reconstruction"),
)
_REPORTS = ("evaluation/**/*.json", "report/report.json", "report.json")
# Which of a result's sets its images are compared with, the dataset that the hub shows.
_SETS = ("reference", "training", "images", "validation")
_COUNTS = ("images", "named", "seconds")


@dataclass(frozen=True)
class Card:
    """What a model card says.

    Attributes:
        name: where the model will be.
        config: the run's, with its section `model`.
        run: the name of its folder, which may say the config.
        step: the global step of its checkpoint; 0 for weights that do not say it.
        results: its own by file, see `results_of`.
        license: as the hub calls it, such as "mit".
        tags: beside those of all our models.
        subcommand: of `taming`, with which the model is used.
    """

    name: HubName
    config: Mapping[str, Any]
    run: str
    step: int
    results: Mapping[str, Result]
    license: str | None = None
    tags: Sequence[str] = ()
    subcommand: str = "reconstruct FOLDER"

    @property
    def is_transformer(self) -> bool:
        """Whether the model is one of codes, rather than a first stage."""
        return "transformer_config" in (self.config["model"].get("params") or {})

    def metadata(self) -> dict[str, Any]:
        """What the hub reads: license, library, tags, and `model-index` with all results."""
        task, _ = IMAGES if self.is_transformer else RECONSTRUCTION
        kind = "autoregressive-transformer" if self.is_transformer else "image-tokenizer"
        found: dict[str, Any] = {"license": self.license} if self.license else {}
        found |= {"library_name": LIBRARY, "pipeline_tag": task}
        found["tags"] = list(dict.fromkeys(["taming", "vqgan", kind, *self.tags]))
        if base := self.base_config:
            found["base_config"] = base
        if index := [entry for result in self.results.values() for entry in self._entries(result)]:
            name = self.name.repository.rpartition("/")[2]
            found["model-index"] = [{"name": name, "results": index}]
        return found

    @property
    def base_config(self) -> str | None:
        """The shipped config that the run's folder is named after."""
        name = re.sub(r"^[\d-]+T[\d-]+_", "", self.run)
        return name if name in config_names() else None

    def _entries(self, result: Result) -> Iterator[dict[str, Any]]:
        """A result as entries of `model-index`, one for each task and set of images."""
        found: list[dict[str, Any]] = []
        for name, value in _numbers(result):
            task, title = self._task(result, name)
            place = {"task": {"type": task, "name": title}, "dataset": _dataset(result, name)}
            about: dict[str, Any] = {"type": name, "name": name, "value": value}
            if self.step:
                about["args"] = {"global_step": self.step}
            entry = next((one for one in found if place.items() <= one.items()), None)
            if entry is None:
                found.append(entry := {**place, "metrics": []})
            entry["metrics"].append(about)
        yield from found

    def _task(self, result: Result, name: str) -> tuple[str, str]:
        """What was evaluated: a transformer's run may have numbers of its first stage too."""
        kinds = {about.get("kind") for set_, about in result["sets"].items() if set_ not in _SETS}
        of_first_stage = "reconstructions" in kinds or name.startswith("first_stage.")
        return IMAGES if self.is_transformer and not of_first_stage else RECONSTRUCTION

    def text(self) -> str:
        """The whole file: metadata, numbers, how to load the model, and its config."""
        header = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True)
        kind = "A transformer over the codes of a VQGAN" if self.is_transformer else "A first stage"
        intro = f"{kind}, trained with [taming](https://arxiv.org/abs/2012.09841) for images"
        parts = [f"---\n{header}---", f"# {self.name.repository.rpartition('/')[2]}"]
        trained = f"; global step {self.step:,}" if self.step else ""
        parts += [f"{intro}{trained}.", "## Use", self._use()]
        if rows := list(self._rows()):
            parts += ["## Evaluation", markdown_table(rows)]
        config = yaml.safe_dump(dict(self.config), sort_keys=False)
        return "\n\n".join([*parts, "## Config", f"```yaml\n{config}```"]) + "\n"

    def _use(self) -> str:
        line = "indices = model.encode_to_indices(images)  # images [B, C, H, W] in [-1, 1]"
        code = f'import taming\nmodel = taming.load("{self.name}")\n{line}'
        install = (
            "In a clone of this implementation, `pip install '.[hub]'`; package indexes have "
            f"another {LIBRARY}."
        )
        run = f"taming {self.subcommand} -r {self.name}"
        return f"{install}\n\n```bash\n{run}\n```\n\n```python\n{code}\n```"

    def _rows(self) -> Iterator[dict[str, Any]]:
        for file, result in self.results.items():
            for name, value in _numbers(result):
                images = _dataset(result, name)["name"]
                yield {"metric": name, "value": value, "images": images, "from": file}


def _numbers(result: Result) -> Iterator[tuple[str, float]]:
    """The model's: of real images, which stand beside them in reports, are none."""
    for name, value in flattened(result["metrics"]):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        *groups, last = name.split(".")
        if number and math.isfinite(value) and last not in _COUNTS and VALIDATION not in groups:
            yield name, value


def _dataset(result: Result, name: str) -> dict[str, Any]:
    """The set of images that a number is of, as `described_set`."""
    sets = result["sets"]
    of_validation = name.partition(".")[0] in OF_VALIDATION and VALIDATION in sets
    return described_set({VALIDATION: sets[VALIDATION]} if of_validation else sets)


def described_set(sets: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The dataset of a result as `model-index` has it: without folders of this machine."""
    title = next((name for name in _SETS if name in sets), next(iter(sets), ""))
    about = sets.get(title, {})
    dataset = about.get("dataset") or {}
    place = about.get("path") or about.get("file") or title
    name = str(dataset.get("target") or Path(str(place)).name).rpartition(".")[2] or "images"
    kind = re.sub(r"[^\w-]+", "-", name).lower()
    found: dict[str, Any] = {"name": name, "type": kind}
    if split := about.get("split"):
        found["split"] = split
    args = {key: about[key] for key in ("images", "fingerprint") if about.get(key) is not None}
    return {**found, "args": args} if args else found


def results_of(folder: Path, weights: OwnWeights) -> tuple[dict[str, Result], list[str]]:
    """The results in a run's folder, by file, and the files of those of other weights.

    Of a result of several, only the numbers of these `weights` are kept. What is no result of an
    evaluation, such as a cache, is left out.
    """
    found, others = dict[str, Result](), list[str]()
    for path in sorted({path for pattern in _REPORTS for path in folder.glob(pattern)}):
        try:
            result = read_result(path)
        except UserError:
            continue
        name = path.relative_to(folder).as_posix()
        own = own_part(result, weights)
        if own is None:
            others.append(name)
        else:
            found[name] = own
    return found, others


def own_part(result: Result, weights: OwnWeights) -> Result | None:
    """What a result says of these weights; None if it is of others.

    Numbers of several models are in groups, of which each has a set of its name: names are those
    of folders when they were evaluated. Other results are of one model, or do not say of which; a
    report is of one, but for its samples, which may be another's.
    """
    metrics, sets = result["metrics"], result["sets"]
    evaluated = {name: about for name, about in sets.items() if HASH in about}
    own = [name for name, about in evaluated.items() if weights.are_of(about)]
    if groups := [name for name in evaluated if isinstance(metrics.get(name), Mapping)]:
        name = next((name for name in groups if name in own), None)
        if name is None:
            return None
        kept = {key: about for key, about in sets.items() if key not in groups or key == name}
        return {**result, "metrics": metrics[name], "sets": kept}
    if HASH in result["protocol"]:
        if not weights.are_of(result["protocol"]):
            return None
        of_others = {name for name, about in _samples(sets) if not _made_by(weights, about)}
        return {**result, "metrics": _without(metrics, of_others)}
    if any(MADE_WITH in about and not _made_by(weights, about) for _, about in _samples(sets)):
        return None
    named = [name for name in evaluated if name not in _SETS]
    return result if not named or any(name in own for name in named) else None


def _samples(sets: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The sets of a result that were read from folders and are no reference."""
    for name, about in sets.items():
        if name not in _SETS and about.get("kind") == "folder":
            yield name, about


def _made_by(weights: OwnWeights, about: Mapping[str, Any]) -> bool:
    """Whether the images of a folder say that these weights made them."""
    return MADE_WITH in about and weights.made(about[MADE_WITH])


def _without(metrics: Mapping[str, Any], names: Container[str]) -> dict[str, Any]:
    """Metrics without the groups of these names, wherever they are."""
    return {
        name: _without(value, names) if isinstance(value, Mapping) else value
        for name, value in metrics.items()
        if name not in names
    }
