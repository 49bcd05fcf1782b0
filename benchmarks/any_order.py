"""What reading in any order costs and gives on the demo's digits, over seeds.

    python benchmarks/any_order.py --seeds 23
    python benchmarks/any_order.py --seeds 0,23 --steps 5000 --only nats inpainting

Trains configs/digits_vqgan.yaml, and on its codes transformers of the same size: by rows
(digits_transformer.yaml), in random orders (digits_any_order_transformer.yaml), annealed
(digits_annealed_transformer.yaml) and of masked codes (digits_masked_transformer.yaml), and the
first two once more without the class. By rows it takes 600 steps, as in the demo, and once more
as many as the others. Then it measures

- nats per token of the validation digits, read by rows;
- how many samples of each class the demo's classifier names right, code by code and in steps;
- how many validation digits it names right of which the upper left quarter was sampled anew, with
  the other three kept and no class given: as samples are made, and at temperature 0.5, which
  holds more to what is kept; the mean of five samplings, and their standard deviation;
- what annealing forgets: of annealed models and those of random orders, with the class, samples in
  several orders, and the same quarter in three ways (the mean of three samplings); what the
  quarter's codes cost the annealed one in nats; and the quarter by rows without the class.

Runs stay in --folder, and go on there when the command is repeated; numbers go to
results/any_order-cpu.json after each part, beside those of other seeds and steps; an entry that
lacks some gets these alone. With `--only` a few parts, only what they need is trained.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS
from torch import Tensor
from torch.utils.data import DataLoader

from taming.atomic_files import write_text
from taming.command_line import Parser, add_flags, flag, from_flags, parse_numbers
from taming.config import load_config
from taming.data.digits import DigitsTrain, DigitsValidation
from taming.devices import processor_name
from taming.errors import UserError, command
from taming.evaluation.metrics.likelihood import measure_likelihood
from taming.evaluation.metrics.small_classifier import SmallClassifier, train_small_classifier
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.reading_order import ReadingOrder
from taming.modules.transformer.orders import inwards, kept_first
from taming.sampling import SampleSettings, requests_for_labels, sample_images
from taming.sampling.completion import known_indices
from taming.sampling.load import load_transformer
from taming.sampling.requests import Request
from taming.training.apart import run_apart, train_apart

ROOT = Path(__file__).parent.parent
PATH = RESULTS / "any_order-cpu.json"
FREE = (  # without the class
    "model.params.cond_stage_config=__is_unconditional__",
    "model.params.cond_stage_key=image",
)
DROPOUT = tuple(
    f"model.params.transformer_config.params.{part}_pdrop" for part in ("embd", "resid", "attn")
)
MODELS: dict[str, tuple[str, ...]] = {
    "raster": ("digits_transformer",),
    "long raster": ("digits_transformer",),
    "random": ("digits_any_order_transformer",),
    "annealed": ("digits_annealed_transformer",),
    "raster, no class": ("digits_transformer", *FREE),
    "long raster, no class": ("digits_transformer", *FREE),
    "random, no class": ("digits_any_order_transformer", *FREE),
    "masked": ("digits_masked_transformer",),
}
SAMPLING = SampleSettings(top_p=0.95)  # as `make demo`
COOL = SampleSettings(temperature=0.5)
SAMPLINGS = 5  # of each hole
IN_PLACE, BY_ROWS, INWARDS = "read at its place", "by rows", "inwards"
HOLE = torch.ones(4, 4, dtype=torch.bool)  # False: the upper left quarter
HOLE[:2, :2] = False


@dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = flag((23,), "of all trainings", parse=parse_numbers)
    steps: int = flag(1500, "of the transformers; by rows it is 600 as well, as in the demo")
    dropout: float | None = flag(None, "of those in random orders (default: their config's)")
    per_class: int = flag(100, "samples of each class", "-n")
    folder: Path = flag(Path("any_order_runs"), "of the runs")
    only: tuple[str, ...] = flag((), "these parts (default: all)", nargs="+", metavar="PART")


def train(folder: Path, name: str, config: str, arguments: Sequence[str]) -> Path:
    """The folder of a run that is trained to its end; it goes on if it was stopped."""
    start = ("--base", str(ROOT / f"configs/{config}.yaml"), "-n", name)
    return train_apart(name, folder / "logs", start, arguments, folder)


class Models(dict[str, Net2NetTransformer]):
    """The transformers of a seed by name, each trained when it is asked for."""

    def __init__(self, folder: Path, seed: int, steps: int, dropout: float) -> None:
        super().__init__()
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.seed, self.steps, self.dropout = folder.resolve(), seed, steps, dropout

    def __missing__(self, name: str) -> Net2NetTransformer:
        seeded, (config, *overrides) = ["--seed", str(self.seed)], MODELS[name]
        first = train(self.folder, f"vqgan_{self.seed}", "digits_vqgan", seeded)
        overrides.append(f"model.params.first_stage_config={first}")
        length = 600 if name.startswith("raster") else self.steps
        called = f"{name.replace(', ', '_').replace(' ', '_')}_{length}_{self.seed}"
        codes = f"data.params.codes={self._codes(config, overrides)}"
        if name.startswith("random"):  # a run of another dropout is another
            called += f"_{self.dropout}"
            overrides += [f"{key}={self.dropout}" for key in DROPOUT]
        steps = ("--max_steps", str(length))
        run = train(self.folder, called, config, [*seeded, *steps, codes, *overrides])
        self[name] = load_transformer(str(run), (), torch.device("cpu"))[0]
        return self[name]

    def _codes(self, config: str, overrides: Sequence[str]) -> Path:
        """The folder of what the first stage makes of the digits: training on it takes less time,
        and has the same losses to the bit."""
        place = self.folder / f"codes{'_no_class' * (FREE[0] in overrides)}_{self.seed}"
        if not (place / "manifest.json").exists():
            base = str(ROOT / f"configs/{config}.yaml")
            run_apart(("encode", "--base", base, "--out", str(place), *overrides), self.folder)
        return place


def nats(model: Net2NetTransformer) -> float:
    """Per token of the validation digits, by rows."""
    loader = DataLoader(DigitsValidation(), batch_size=64)
    return measure_likelihood(model, loader).compute().nats_per_token


def pixels(images: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) of values in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().byte()


def classifier() -> SmallClassifier:
    """The demo's, of the training digits."""
    images, labels = _of(DigitsTrain())
    return train_small_classifier(pixels(images), labels)


def _of(data: Any) -> tuple[Tensor, Tensor]:
    """Images (N, 3, H, W) in [-1, 1] and labels (N,)."""
    batch = next(iter(DataLoader(data, batch_size=len(data))))
    return batch["image"].permute(0, 3, 1, 2), batch["class_label"]


def named_right(net: SmallClassifier, images: Tensor, labels: Tensor) -> float:
    return float((net.probabilities(pixels(images)).argmax(1) == labels).float().mean())


def samples_right(
    model: Net2NetTransformer, net: SmallClassifier, settings: SampleSettings, per_class: int
) -> float:
    """Of samples of each class."""
    requests = requests_for_labels(model, range(10), per_class)
    samples = list(sample_images(model, requests, settings, batch_size=100))
    labels = torch.tensor([sample.label for sample in samples])
    return named_right(net, torch.stack([sample.image for sample in samples]), labels)


def inpainted_right(
    model: Net2NetTransformer,
    net: SmallClassifier,
    settings: SampleSettings = SAMPLING,
    samplings: int = SAMPLINGS,
) -> tuple[float, float]:
    """Of validation digits, the upper left quarter of which is sampled: mean and deviation. With
    their class, if the model has classes."""
    images, labels = _of(DigitsValidation())
    prompts = [
        [model.sos_token] if model.be_unconditional else [label] for label in labels.tolist()
    ]
    requests = [
        Request(number, tuple(prompt), known=known_indices(model, image[None], HOLE))
        for number, (image, prompt) in enumerate(zip(images, prompts, strict=True))
    ]
    shares = [
        named_right(net, torch.stack([sample.image for sample in samples]), labels)
        for seed in range(samplings)
        for samples in [list(sample_images(model, requests, settings, batch_size=100, seed=seed))]
    ]
    return statistics.mean(shares), statistics.stdev(shares)


def inpainting(
    models: Mapping[str, Net2NetTransformer], net: SmallClassifier, per_class: int
) -> dict[str, float]:
    """Of models without the class, by what they are called in the results."""
    numbers = dict[str, float]()
    for model, name in (("raster", "by rows"), ("random", "random orders")):
        numbers |= dict(inpainted_by(models[f"{model}, no class"], name, net))
    return numbers


def inpainted_by(
    model: Net2NetTransformer, name: str, net: SmallClassifier
) -> Iterator[tuple[str, float]]:
    for settings, how in ((SAMPLING, ""), (COOL, ", temperature 0.5")):
        right, deviation = inpainted_right(model, net, settings)
        key = f"inpainted right, {name}{how}"
        yield from ((key, right), (f"{key}, deviation", deviation))


def longer(
    models: Mapping[str, Net2NetTransformer], net: SmallClassifier, per_class: int
) -> dict[str, float]:
    """By rows, with as many steps as the others."""
    name = "by rows, as many steps"
    found = {f"nats per token, {name}": nats(models["long raster"])}
    return found | dict(inpainted_by(models["long raster, no class"], name, net))


def nats_by_rows(
    models: Mapping[str, Net2NetTransformer], net: SmallClassifier, per_class: int
) -> dict[str, float]:
    return {
        "nats per token, by rows": nats(models["raster"]),
        "nats per token by rows, of random orders": nats(models["random"]),
    }


def samples_of(
    models: Mapping[str, Net2NetTransformer], net: SmallClassifier, per_class: int
) -> dict[str, float]:
    images, labels = _of(DigitsValidation())
    with torch.no_grad():
        raster = models["raster"]
        decoded = raster.decode_indices(raster.encode_to_indices(images))
    eight = SampleSettings(top_p=0.95, steps=8)
    return {
        "nats per token by rows, annealed": nats(models["annealed"]),
        "samples right, by rows": samples_right(models["raster"], net, SAMPLING, per_class),
        "samples right, random orders, 16 codes": samples_right(
            models["random"], net, SAMPLING, per_class
        ),
        "samples right, random orders, 8 steps": samples_right(
            models["random"], net, eight, per_class
        ),
        "samples right, masked, 8 steps": samples_right(models["masked"], net, eight, per_class),
        "reconstructions right": named_right(net, decoded, labels),
    }


def ways(model: Net2NetTransformer) -> Iterator[tuple[str, SampleSettings]]:
    """How the hole is filled, by name, by a model of all orders, as which it is treated."""
    reading = model.reading
    model.reading = ReadingOrder("random")
    yield INWARDS, replace(SAMPLING, order="inwards")
    yield BY_ROWS, replace(SAMPLING, order="raster")
    model.reading = ReadingOrder("annealed")
    yield IN_PLACE, SAMPLING
    model.reading = reading


@torch.no_grad()
def nats_of_hole(model: Net2NetTransformer) -> dict[str, float]:
    """Per code of the quarter of validation digits, given what each way has read by then."""
    images, labels = _of(DigitsValidation())
    codes, known = model.encode_to_z(images)[1], HOLE.expand(len(images), 4, 4).long() - 1
    rows = torch.arange(16).expand_as(codes)
    orders = {INWARDS: inwards(known), BY_ROWS: kept_first(rows, known.flatten(1)), IN_PLACE: rows}
    nats = {}
    for way, order in orders.items():
        logits, target = model._predict_in(order, codes, labels[:, None])
        each = torch.nn.functional.cross_entropy(logits.mT, target, reduction="none")
        nats[way] = float(each[~HOLE.flatten()[order]].mean())
    return nats


def forgotten(
    models: Mapping[str, Net2NetTransformer], net: SmallClassifier, per_class: int
) -> dict[str, float]:
    """What annealing forgets, beside a model of random orders."""
    steps = replace(SAMPLING, steps=8)
    settings = {
        "by rows": replace(SAMPLING, order="raster"),
        "random orders": replace(SAMPLING, order="random"),
        "8 steps by rows": replace(steps, order="raster"),
        "8 steps in random orders": replace(steps, order="random"),
    }
    numbers = dict[str, float]()
    for name in ("annealed", "random"):
        model, of = models[name], "annealed" if name == "annealed" else "random orders"
        for how, one in settings.items():
            key = f"{of}, samples right, {how}"
            numbers[key] = samples_right(model, net, one, per_class)
        for way, one in ways(model):
            right, deviation = inpainted_right(model, net, one, samplings=3)
            key = f"{of}, inpainted right with the class, {way}"
            numbers |= {key: right, f"{key}, deviation": deviation}
    each, rows = nats_of_hole(models["annealed"]), replace(SAMPLING, order="raster")
    right, deviation = inpainted_right(models["random, no class"], net, rows)
    key = "inpainted right, random orders, row by row"
    numbers |= {key: right, f"{key}, deviation": deviation}
    return numbers | {f"annealed, nats per hidden code, {way}": n for way, n in each.items()}


def key_of(entry: dict[str, Any]) -> tuple[str | float, ...]:
    """What tells entries apart; the first ones were of the config's former dropout."""
    names = ("torch", "seed", "steps", "dropout", "processor", "threads", "samples")
    return tuple({"dropout": 0.1, **entry}[name] for name in names)


def dropout_of_config() -> float:
    """That of the model in random orders."""
    config = load_config([ROOT / "configs/digits_any_order_transformer.yaml"])
    return float(config.model.params.transformer_config.params.resid_pdrop)


# What an entry has by name, each with one of its numbers.
PARTS = {
    "nats": (nats_by_rows, "nats per token, by rows"),
    "inpainting": (inpainting, "inpainted right, random orders"),
    "longer": (longer, "nats per token, by rows, as many steps"),
    "samples": (samples_of, "reconstructions right"),
    "forgotten": (forgotten, f"annealed, nats per hidden code, {IN_PLACE}"),
}


def entries_beside(place: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The entry of a place in the results, empty if there is none, and the others."""
    kept: list[dict[str, Any]] = json.loads(PATH.read_text()) if PATH.exists() else []
    before = next((one for one in kept if key_of(one) == key_of(place)), {})
    return before, [one for one in kept if one is not before]


def add_numbers(place: dict[str, Any], numbers: Mapping[str, float]) -> None:
    """To the entry of a place in the results."""
    before, others = entries_beside(place)
    entry = {**place, **before, **numbers}
    write_text(PATH, json.dumps(sorted([*others, entry], key=key_of), indent=2) + "\n")


def lacking(place: dict[str, Any], only: Sequence[str]) -> list[Any]:
    """The parts that the entry of a place has not yet."""
    before, _ = entries_beside(place)
    return [PARTS[name][0] for name in only or PARTS if PARTS[name][1] not in before]


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    if unknown := set(options.only) - PARTS.keys():
        raise UserError(f"there is no part {min(unknown)}; there are {', '.join(PARTS)}")
    dropout = dropout_of_config() if options.dropout is None else options.dropout
    for seed in options.seeds:
        place = {"torch": torch.__version__, "seed": seed, "steps": options.steps}
        place |= {
            "dropout": dropout,
            "processor": processor_name(),
            "threads": torch.get_num_threads(),
            "samples": 10 * options.per_class,
        }
        models, net = Models(options.folder, seed, options.steps, dropout), None
        for part in lacking(place, options.only):
            net = net or classifier()
            numbers = part(models, net, options.per_class)
            print("\n".join(f"{name}: {value:.4g}" for name, value in numbers.items()), flush=True)
            add_numbers(place, numbers)


if __name__ == "__main__":
    main()
