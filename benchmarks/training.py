"""Seconds per training step of both stages and per 64 samples, against the textbook ways.

    python benchmarks/training.py [--device cuda --precision bf16] [--stage digits|paper]

The baselines: a VQGAN step whose adaptive weight takes backward passes of its own through the whole
loss, and sampling that runs the transformer over the whole sequence for every token.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, write_results
from torch import Tensor

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.devices import choose_device
from taming.errors import command
from taming.modules.losses.vqperceptual import hinge_d_loss
from taming.modules.transformer.mingpt import sample, sample_with_past

CONFIGS = Path(__file__).parents[1] / "configs"
STAGES = {
    "digits": ("digits_vqgan", "digits_transformer"),
    "paper": ("custom_vqgan", "class_transformer"),
}
PAPER_OVERRIDES = ["model.params.lossconfig.params.perceptual_weight=0.0"]


def first_stage_steps(model: Any, x: Tensor, cast: Any) -> dict[str, Callable[[], None]]:
    """A step of both optimizers: the project's, and with a backward pass per use of the loss."""
    loss, optimizers = model.loss, model.configure_optimizers()

    def generator() -> Tensor:
        reconstruction, codebook_loss = model(x)
        last = model.get_last_layer()
        return loss.generator_loss(x, reconstruction, codebook_loss, 10**6, last_layer=last)[0]

    def textbook_generator() -> Tensor:
        reconstruction, codebook_loss = model(x)
        nll = (x - reconstruction.float()).abs().mean()
        g = -loss.discriminator(reconstruction.float()).mean()
        last = model.get_last_layer()
        at_nll, at_g = (torch.autograd.grad(part, last, retain_graph=True)[0] for part in (nll, g))
        weight = (at_nll.norm() / (at_g.norm() + 1e-4)).clamp(0, 1e4).detach()
        return nll + weight * g + codebook_loss.mean()

    def discriminator(backward_graph: bool) -> Tensor:
        with nullcontext() if backward_graph else torch.no_grad():
            reconstruction, _ = model(x)
        fake = loss.discriminator(reconstruction.detach().float())
        return hinge_d_loss(loss.discriminator(x), fake)

    def step(objectives: tuple[Callable[[], Tensor], ...]) -> None:
        for optimizer, objective in zip(optimizers, objectives, strict=True):
            optimizer.zero_grad()
            with cast():
                value = objective()
            value.backward()
            optimizer.step()

    return {
        "ours": lambda: step((generator, lambda: discriminator(False))),
        "textbook": lambda: step((textbook_generator, lambda: discriminator(True))),
    }


def transformer_step(model: Any, batch: dict[str, Tensor], cast: Any) -> Callable[[], None]:
    optimizer = model.train().configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        with cast():
            loss = model.shared_step(batch)
        loss.backward()
        optimizer.step()

    return step


def samplers(model: Any, device: torch.device, count: int) -> dict[str, Callable[[], Any]]:
    _, height, width = model.latent_shape()
    prompt, steps = torch.zeros(count, 1, dtype=torch.long, device=device), height * width
    gpt = model.eval().transformer
    return {
        "ours": lambda: sample_with_past(prompt, gpt, steps, top_k=100),
        "no cache": lambda: sample(gpt, prompt, steps, sample=True, top_k=100),
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--stage", choices=tuple(STAGES), default="digits")
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    args = parser.parse_args()
    device = choose_device(args.device)
    first_name, second_name = STAGES[args.stage]
    overrides = PAPER_OVERRIDES if args.stage == "paper" else []
    first = load_config([CONFIGS / f"{first_name}.yaml"], overrides)
    second = load_config([CONFIGS / f"{second_name}.yaml"])

    def cast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")

    torch.manual_seed(0)
    model = instantiate_from_config(first.model).to(device)
    size = first.model.params.ddconfig.resolution
    images = torch.rand(args.batch_size, size, size, 3, device=device) * 2 - 1
    x = images.permute(0, 3, 1, 2).contiguous()
    results = {
        "first_stage_step": interleaved(first_stage_steps(model, x, cast), device, args.rounds)
    }
    transformer = instantiate_from_config(without_checkpoint_paths(second.model)).to(device)
    labels = torch.arange(args.batch_size, device=device) % 10
    batch = {"image": images, "class_label": labels}
    step = {"ours": transformer_step(transformer, batch, cast)}
    results["transformer_step"] = interleaved(step, device, args.rounds)
    sampling = interleaved(samplers(transformer, device, 64), device, max(args.rounds // 3, 1), 1)
    results["sample_64"] = sampling
    report = {
        "stage": args.stage,
        "precision": args.precision,
        "batch_size": args.batch_size,
        "image_size": size,
        "seconds": results,
        "ratios": _ratios(results),
    }
    path = write_results(f"training-{args.stage}-{args.precision}", device, report)
    for name, rows in results.items():
        told = ", ".join(f"{who} {row['median']:.4f} s" for who, row in rows.items())
        print(f"{name}: {told}")
    print(f"ratios {report['ratios']}; written to {path}")


def _ratios(results: dict[str, dict[str, dict[str, float]]]) -> dict[str, float]:
    return {
        f"{name}, {who} over ours": round(row["median"] / rows["ours"]["median"], 3)
        for name, rows in results.items()
        for who, row in rows.items()
        if who != "ours"
    }


if __name__ == "__main__":
    main()
