"""What reading in any order costs and gives on the demo's digits, over seeds.

    python benchmarks/any_order.py --seeds 23
    python benchmarks/any_order.py --folder runs --steps 3000

Trains configs/digits_vqgan.yaml, and on its codes transformers of the same size: by rows
(digits_transformer.yaml), in random orders (digits_any_order_transformer.yaml), annealed
(digits_annealed_transformer.yaml) and of masked codes (digits_masked_transformer.yaml), and the
first two once more without the class. By rows it takes 600 steps, as in the demo, and once more
as many as the others. Then it measures

- nats per token of the validation digits, read by rows;
- how many samples of each class the demo's classifier names right, code by code and in steps;
- how many validation digits it names right of which the upper left quarter was sampled anew, with
  the other three kept and no class given: as samples are made, and at temperature 0.5, which
  holds more to what is kept; the mean of five samplings, and their standard deviation.

Runs stay in --folder, and go on there when the command is repeated; numbers go to
results/any_order-cpu.json after each seed, beside those of other seeds and steps.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from measure import RESULTS
from torch import Tensor
from torch.utils.data import DataLoader

from taming.atomic_files import write_text
from taming.command_line import Parser, add_flags, flag, from_flags, parse_numbers
from taming.data.digits import DigitsTrain, DigitsValidation
from taming.devices import processor_name
from taming.errors import command
from taming.evaluation.metrics.likelihood import measure_likelihood
from taming.evaluation.metrics.small_classifier import SmallClassifier, train_small_classifier
from taming.models.cond_transformer import Net2NetTransformer
from taming.program import train_apart
from taming.sampling import SampleSettings, requests_for_labels, sample_images
from taming.sampling.completion import known_indices
from taming.sampling.load import load_transformer
from taming.sampling.requests import Request

ROOT = Path(__file__).parent.parent
PATH = RESULTS / "any_order-cpu.json"
FREE = (  # without the class
    "model.params.cond_stage_config=__is_unconditional__",
    "model.params.cond_stage_key=image",
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


@dataclass(frozen=True)
class Options:
    seeds: tuple[int, ...] = flag((23,), "of all trainings", parse=parse_numbers)
    steps: int = flag(1500, "of the transformers; by rows it is 600 as well, as in the demo")
    per_class: int = flag(100, "samples of each class", "-n")
    folder: Path = flag(Path("any_order_runs"), "of the runs")


def train(folder: Path, name: str, config: str, arguments: Sequence[str]) -> Path:
    """The folder of a run that is trained to its end; it goes on if it was stopped."""
    start = ("--base", str(ROOT / f"configs/{config}.yaml"), "-n", name)
    return train_apart(name, folder / "logs", start, arguments, folder)


def models_of(folder: Path, seed: int, steps: int) -> dict[str, Net2NetTransformer]:
    """All transformers of a seed, trained."""
    folder.mkdir(parents=True, exist_ok=True)
    folder, seeded = folder.resolve(), ["--seed", str(seed)]
    first = train(folder, f"vqgan_{seed}", "digits_vqgan", seeded)
    models = {}
    for name, (config, *overrides) in MODELS.items():
        length = 600 if name.startswith("raster") else steps
        run = train(
            folder,
            f"{name.replace(', ', '_').replace(' ', '_')}_{length}_{seed}",
            config,
            [
                *seeded,
                "--max_steps",
                str(length),
                f"model.params.first_stage_config={first}",
                *overrides,
            ],
        )
        models[name] = load_transformer(str(run), (), torch.device("cpu"))[0]
    return models


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
    model: Net2NetTransformer, net: SmallClassifier, settings: SampleSettings = SAMPLING
) -> tuple[float, float]:
    """Of validation digits, the upper left quarter of which is sampled: mean and deviation."""
    images, labels = _of(DigitsValidation())
    keep = torch.ones(4, 4, dtype=torch.bool)
    keep[:2, :2] = False
    requests = [
        Request(number, (model.sos_token,), known=known_indices(model, image[None], keep))
        for number, image in enumerate(images)
    ]
    shares = [
        named_right(net, torch.stack([sample.image for sample in samples]), labels)
        for seed in range(SAMPLINGS)
        for samples in [list(sample_images(model, requests, settings, batch_size=100, seed=seed))]
    ]
    return statistics.mean(shares), statistics.stdev(shares)


def inpainting(models: Mapping[str, Net2NetTransformer], net: SmallClassifier) -> dict[str, float]:
    """Of models without the class, by what they are called in the results."""
    names = {
        "raster": "by rows",
        "long raster": "by rows, as many steps",
        "random": "random orders",
    }
    numbers = dict[str, float]()
    for model, name in names.items():
        for settings, how in ((SAMPLING, ""), (COOL, ", temperature 0.5")):
            right, deviation = inpainted_right(models[f"{model}, no class"], net, settings)
            key = f"inpainted right, {name}{how}"
            numbers |= {key: right, f"{key}, deviation": deviation}
    return numbers


def numbers_of(models: dict[str, Net2NetTransformer], per_class: int) -> dict[str, float]:
    net = classifier()
    images, labels = _of(DigitsValidation())
    with torch.no_grad():
        raster = models["raster"]
        decoded = raster.decode_indices(raster.encode_to_indices(images))
    eight = SampleSettings(top_p=0.95, steps=8)
    return {
        "nats per token, by rows": nats(models["raster"]),
        "nats per token, by rows, as many steps": nats(models["long raster"]),
        "nats per token by rows, of random orders": nats(models["random"]),
        "nats per token by rows, annealed": nats(models["annealed"]),
        "samples right, by rows": samples_right(models["raster"], net, SAMPLING, per_class),
        "samples right, random orders, 16 codes": samples_right(
            models["random"], net, SAMPLING, per_class
        ),
        "samples right, random orders, 8 steps": samples_right(
            models["random"], net, eight, per_class
        ),
        "samples right, masked, 8 steps": samples_right(models["masked"], net, eight, per_class),
        **inpainting(models, net),
        "reconstructions right": named_right(net, decoded, labels),
    }


def key_of(entry: dict[str, Any]) -> tuple[str, int, int]:
    return entry["torch"], entry["seed"], entry["steps"]


@command
def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_flags(parser, Options)
    options = from_flags(Options, parser.parse_args(argv))
    for seed in options.seeds:
        place = {"torch": torch.__version__, "seed": seed, "steps": options.steps}
        place |= {"processor": processor_name(), "threads": torch.get_num_threads()}
        kept: list[dict[str, Any]] = json.loads(PATH.read_text()) if PATH.exists() else []
        if key_of(place) in map(key_of, kept):
            continue
        models = models_of(options.folder, seed, options.steps)
        numbers = numbers_of(models, options.per_class)
        print("\n".join(f"{name}: {value:.4g}" for name, value in numbers.items()), flush=True)
        kept = sorted([*kept, {**place, "samples": 10 * options.per_class, **numbers}], key=key_of)
        write_text(PATH, json.dumps(kept, indent=2) + "\n")


if __name__ == "__main__":
    main()
