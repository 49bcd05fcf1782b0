"""Seconds and memory of a training step of both stages, against steps as the original wrote them.

    python benchmarks/training.py [--device cuda] [--stage digits|paper] [--size 128]

The textbook step, the step as it is by default, and with the options that change what is computed;
`--fast` adds options that only change how. On a GPU they take turns in one process. On a processor
each turn is a process of its own, as the allocator is the whole process's: ours keeps freed memory,
as `main.py` does.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, peak_memory, summaries, timed, write_results
from textbook import first_stage_step, transformer_step
from torch import Tensor, nn
from tqdm import tqdm

from taming.config import instantiate_from_config, load_config
from taming.devices import choose_device
from taming.errors import command
from taming.freed_memory import keep_freed_memory
from taming.kernel_choice import choices

CONFIGS = Path(__file__).parents[1] / "configs"
FIRST_STAGES = {"digits": "digits_vqgan", "paper": "custom_vqgan"}
# Layers, heads, width, codes, tokens of the condition and of the image.
TRANSFORMERS = {"digits": (2, 4, 64, 64, 1, 64), "paper": (12, 12, 768, 1024, 256, 256)}
FIRST, SECOND = "first stage", "transformer"
REUSE = {"reuse_reconstruction": True}
FAST = {"channels_last": True, "fused_optimizer": True}
CHECKPOINTED = {"checkpoint_activations": True}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
Step = Callable[[], None]
Name = tuple[str, str, str]  # stage, way, precision


class Bench:
    """The steps that are compared, by name: "<way>, <precision>"."""

    def __init__(self, args: argparse.Namespace, device: torch.device) -> None:
        self.args, self.device = args, device

    def ways(self, what: str) -> dict[str, dict[str, bool] | None]:
        """Options by the name of each way; None for the textbook's."""
        if what == SECOND:
            return {"textbook": None, "ours": {}}
        fast = {**FAST, "compile": True} if self.args.compile else FAST
        ways: dict[str, dict[str, bool] | None] = {"textbook": None, "ours": {}, "reuse": REUSE}
        if self.args.fast:
            ways |= {"fast": fast, "fast, reuse": fast | REUSE, "checkpointed": CHECKPOINTED}
        return ways

    def names(self) -> list[Name]:
        """All (stage, way, precision)."""
        stages = [one for one in (FIRST, SECOND) if self.args.only in (None, one)]
        return [(s, way, p) for s in stages for way in self.ways(s) for p in PRECISIONS]

    def cast(self, precision: str) -> Callable[[], Any]:
        dtype = PRECISIONS[precision]
        enabled = dtype != torch.float32
        return lambda: torch.autocast(self.device.type, dtype, enabled=enabled)

    def step(self, what: str, way: str, precision: str) -> Step:
        """A step with a model of its own, made from the same random numbers."""
        torch.manual_seed(0)
        options = self.ways(what)[way]
        make = self._first_stage if what == FIRST else self._transformer
        return make(options, precision)

    def _first_stage(self, options: Mapping[str, bool] | None, precision: str) -> Step:
        cast = self.cast(precision)
        config = load_config([CONFIGS / f"{FIRST_STAGES[self.args.stage]}.yaml"]).model
        if options and options.keys() >= FAST.keys():  # and LPIPS in bf16, where all else is
            config.params.lossconfig.params.bf16_networks = precision == "bf16"
        model, x = first_stage_of(config, options or {}, self.args, self.device)
        if options is None:
            return first_stage_step(model, x, cast)
        return our_first_stage_step(model, x, cast)

    def _transformer(self, options: Mapping[str, bool] | None, precision: str) -> Step:
        cast = self.cast(precision)
        layers, heads, width, codes, condition, image = TRANSFORMERS[self.args.stage]
        params = {"vocab_size": codes, "block_size": condition + image, "n_layer": layers}
        params |= {"n_head": heads, "n_embd": width}
        target = "taming.modules.transformer.mingpt.GPT"
        gpt = instantiate_from_config({"target": target, "params": params}).to(self.device).train()
        shape = (self.args.batch_size, condition + image)
        tokens = torch.randint(codes, shape, device=self.device)
        if options is None:
            return transformer_step(gpt, tokens, condition, cast)
        return our_transformer_step(gpt, tokens, condition, cast)


def first_stage_of(
    config: Any, options: Mapping[str, bool], args: argparse.Namespace, device: torch.device
) -> tuple[Any, Tensor]:
    """A first stage of a config's `model` section in training, and a batch of `args.batch_size`
    images, of `args.size` pixels a side or the config's."""
    config.params.update(options)
    model = instantiate_from_config(config).train()
    _make_up_lpips(model.loss.perceptual_loss)
    side = args.size or config.params.ddconfig.resolution
    x = torch.rand(args.batch_size, 3, side, side, device=device) * 2 - 1
    return model.to(device), x


def _make_up_lpips(network: Any) -> None:
    """Random weights: LPIPS takes the same time with them, and nothing has to be downloaded."""
    if network is not None:
        for parameter in network.parameters():
            nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)


def our_first_stage_step(model: Any, x: Tensor, cast: Callable[[], Any]) -> Step:
    """What `VQModel.training_step` does, without a Trainer."""
    model.ways.lay_out(model)
    model.ways.prepare(model)
    (for_autoencoder, for_discriminator), _ = model.configure_optimizers()
    x = x.contiguous(memory_format=torch.channels_last) if model.ways.channels_last else x
    loss, last, late = model.loss, model.get_last_layer(), 10**6

    def update(optimizer: torch.optim.Optimizer, value: Tensor) -> None:
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    def step() -> None:
        with cast():
            images, codebook_loss = model(x)
            value, _ = loss.generator_loss(x, images, codebook_loss, late, last_layer=last)
        update(for_autoencoder, value)
        with cast():
            if not model.ways.reuse_reconstruction:
                with torch.no_grad():
                    images, _ = model(x)
            value, _ = loss.discriminator_loss(x, images.detach(), late)
        update(for_discriminator, value)

    return step


def our_transformer_step(gpt: Any, tokens: Tensor, start: int, cast: Callable[[], Any]) -> Step:
    """What `Net2NetTransformer.training_step` does, from indices."""
    groups = gpt.parameter_groups(weight_decay=0.01)
    optimizer = torch.optim.AdamW(groups, lr=1e-4, betas=(0.9, 0.95))

    def step() -> None:
        with cast():
            logits = gpt(tokens[:, :-1], start=start - 1)[0]
            value = nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, start:].flatten())
        value.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def in_own_process(name: Name) -> dict[str, Any]:
    """Seconds of two steps after two others, peak bytes and kernels of one way."""
    command_line = [sys.executable, *sys.argv, "--only_way", ",,".join(name)]
    done = subprocess.run(command_line, check=True, stdout=subprocess.PIPE, text=True)
    facts: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return facts


def _print_own(bench: Bench, name: str) -> None:
    what, way, precision = name.split(",,")
    seconds = []

    def steps() -> None:
        if bench.device.type == "cpu" and way != "textbook":
            keep_freed_memory()
        step = bench.step(what, way, precision)
        seconds.extend([timed(step, bench.device) for _ in range(4)][2:])

    peak = peak_memory(steps, bench.device)
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "kernels": dict(choices)}))


def in_turns_of_processes(
    names: Mapping[str, Name], rounds: int
) -> tuple[dict[str, dict[str, float]], dict[str, int]]:
    """Seconds and peak bytes of each way."""
    times: dict[str, list[float]] = {name: [] for name in names}
    peaks = {}
    for _ in tqdm(range(rounds), desc="rounds", leave=False):
        for name, way in names.items():
            facts = in_own_process(way)
            times[name] += facts["seconds"]
            peaks[name] = facts["peak_bytes"]
            choices.update(facts["kernels"])
    return summaries(times), peaks


def measured(bench: Bench, what: str) -> dict[str, Any]:
    """Seconds, ratios and memory of the ways of one stage."""
    names = {", ".join(name[1:]): name for name in bench.names() if name[0] == what}
    if bench.device.type == "cpu":
        seconds, memory = in_turns_of_processes(names, bench.args.rounds)
    else:
        steps = {shown: bench.step(*name) for shown, name in names.items()}
        seconds = interleaved(steps, bench.device, bench.args.rounds, 1)
        own = {} if bench.args.no_memory else names
        memory = {shown: in_own_process(name)["peak_bytes"] for shown, name in own.items()}
    medians = {name: row["median"] for name, row in seconds.items()}
    ratios = {
        name: {
            "over the textbook's of its precision": _over(medians, name),
            "over the textbook's in fp32": round(medians["textbook, fp32"] / medians[name], 3),
        }
        for name in medians
    }
    return {"seconds": seconds, "ratios": ratios, "peak_bytes": memory}


def _over(medians: Mapping[str, float], name: str) -> float:
    precision = name.rpartition(", ")[2]
    return round(medians[f"textbook, {precision}"] / medians[name], 3)


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--stage", choices=tuple(FIRST_STAGES), default="digits")
    parser.add_argument("--only", choices=(FIRST, SECOND))
    parser.add_argument("--size", type=int, help="side of the images (default: the config's)")
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--fast", action="store_true", help="with options that change the how, too")
    parser.add_argument("--compile", action="store_true", help="one of them, which takes minutes")
    parser.add_argument("--no_memory", action="store_true", help="on a GPU")
    parser.add_argument("--only_way", help=argparse.SUPPRESS)
    args = parser.parse_args()
    bench = Bench(args, choose_device(args.device))
    if args.only_way:
        return _print_own(bench, args.only_way)
    stages = dict.fromkeys(name[0] for name in bench.names())
    report = {what.replace(" ", "_"): measured(bench, what) for what in stages}
    facts = {name: vars(args)[name] for name in ("stage", "size", "batch_size", "rounds")}
    kernels = {"kernels": dict(choices)}
    parts = ["training", args.stage, *([args.only.replace(" ", "_")] if args.only else [])]
    path = write_results("-".join(parts), bench.device, {**facts, **report, **kernels})
    for what, figures in report.items():
        for name, ratio in figures["ratios"].items():
            told = f"{figures['seconds'][name]['median']:.4f} s, " + ", ".join(
                f"{value} x {of}" for of, value in ratio.items()
            )
            print(f"{what}, {name}: {told}")
    print(f"written to {path}")


if __name__ == "__main__":
    main()
