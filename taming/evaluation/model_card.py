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
        step: the global step of its checkpoint.
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
        if index := [entry for result in self.results.values() if (entry := self._entry(result))]:
            name = self.name.repository.rpartition("/")[2]
            found["model-index"] = [{"name": name, "results": index}]
        return found

    @property
    def base_config(self) -> str | None:
        """The shipped config that the run's folder is named after."""
        name = re.sub(r"^[\d-]+T[\d-]+_", "", self.run)
        return name if name in config_names() else None

    def _entry(self, result: Result) -> dict[str, Any] | None:
        """A result as an entry of `model-index`; None without a number."""
        metrics = [
            {"type": name, "name": name, "value": value, "args": {"global_step": self.step}}
            for name, value in _numbers(result)
        ]
        task, title = self._task(result)
        dataset = described_set(result["sets"])
        entry = {"task": {"type": task, "name": title}, "dataset": dataset, "metrics": metrics}
        return entry if metrics else None

    def _task(self, result: Result) -> tuple[str, str]:
        """What was evaluated: a transformer's run may have numbers of its first stage too."""
        kinds = {about.get("kind") for name, about in result["sets"].items() if name not in _SETS}
        samples = self.is_transformer and "reconstructions" not in kinds
        return IMAGES if samples else RECONSTRUCTION

    def text(self) -> str:
        """The whole file: metadata, numbers, how to load the model, and its config."""
        header = yaml.safe_dump(self.metadata(), sort_keys=False, allow_unicode=True)
        kind = "A transformer over the codes of a VQGAN" if self.is_transformer else "A first stage"
        intro = f"{kind}, trained with [taming](https://arxiv.org/abs/2012.09841) for images"
        parts = [f"---\n{header}---", f"# {self.name.repository.rpartition('/')[2]}"]
        parts += [f"{intro}; global step {self.step:,}.", "## Use", self._use()]
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
            dataset = described_set(result["sets"])["name"]
            for name, value in _numbers(result):
                yield {"metric": name, "value": value, "images": dataset, "from": file}


def _numbers(result: Result) -> Iterator[tuple[str, float]]:
    for name, value in flattened(result["metrics"]):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if number and math.isfinite(value) and name.rpartition(".")[2] not in _COUNTS:
            yield name, value


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
