"""Memory and arithmetic of a training step of each config, computed without doing it.

    python benchmarks/footprint.py           # the table of docs/scaling.md
    python benchmarks/footprint.py --write   # ... into it

A step runs on tensors without numbers (torch's fake tensors), in seconds and without the memory
that it would take; what is alive at the same time is added up.
"""

from __future__ import annotations

import argparse
import functools
import json
import logging
import sys
import warnings
import weakref
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from taming.config import instantiate_from_config, load_config, plain
from taming.models.autoencoder_training import AutoencoderTraining
from taming.modules.losses.lpips import LPIPS
from taming.modules.transformer.gpt import GPT

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "scaling.md"
BEGIN, END = "<!-- benchmarks/footprint.py -->", "<!-- end -->"
GPT_CONFIG = "transformer_config"  # what a transformer's params have
PEAK = 989e12  # of an H100 SXM, dense bf16, by its data sheet
MEASURED = {"first stage": "throughput-first_stage", "transformer": "throughput-transformer"}


def _attention_flop(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    count: int = sdpa_flop_count(query.shape, key.shape, value.shape)
    return count


def _attention_backward_flop(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    count: int = sdpa_backward_flop_count(grad.shape, query.shape, key.shape, value.shape)
    return count


# torch counts the attention of GPUs' kernels, not that of the CPU's.
COUNTS: dict[Any, Callable[..., int]] = {
    **flop_registry,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flop,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flop,
}


class Meter(TorchDispatchMode):
    """Adds up the memory of tensors that are made within the context, while they exist, and the
    arithmetic of matrix products and convolutions.

    What kernels need for themselves, and what an allocator wastes, is not known here.

    Attributes:
        peak: the most bytes at one time.
        flop: a multiply-add being two.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.live = self.peak = self.flop = 0
        gradients = (p.grad for p in module.parameters() if p.grad is not None)
        own = (*module.parameters(), *module.buffers(), *gradients)
        self._known = {tensor.untyped_storage()._cdata for tensor in own}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if count := COUNTS.get(func._overloadpacket):
            self.flop += count(*args, **(kwargs or {}), out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._known:
            self._known.add(key)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._remove, key, size)

    def _remove(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.live -= size


# ---------------------------------------------------------------------- steps


def first_stage_step(model: AutoencoderTraining, side: int) -> Callable[[int], None]:
    """A step of both sides on a batch of images [B, side, side, C]; gradients are kept."""
    channels = int(model.encoder.in_channels)  # type: ignore[arg-type]

    def step(batch_size: int) -> None:
        batch = {model.image_key: torch.rand(batch_size, side, side, channels)}
        for number in range(1 if model.discriminator is None else 2):
            loss = model.training_step(batch, 0, number)
            assert loss is not None
            loss.backward()

    return step


def transformer_step(model: GPT) -> Callable[[int], None]:
    """A step on the longest sequences; gradients are kept."""

    def step(batch_size: int) -> None:
        tokens = torch.zeros(batch_size, model.get_block_size(), dtype=torch.int64)
        loss = model(tokens, targets=tokens)[1]
        assert loss is not None
        loss.backward()

    return step


@contextmanager
def without_numbers() -> Iterator[None]:
    """A context of tensors without memory, in which nothing is read from files."""
    prepare = LPIPS.prepare
    LPIPS.prepare = lambda *_: None  # type: ignore[method-assign]
    try:
        with FakeTensorMode():
            yield
    finally:
        LPIPS.prepare = prepare  # type: ignore[method-assign]


def measured(step: Callable[[int], None], model: nn.Module, batch_size: int) -> Meter:
    """A step's tensors beside weights and gradients, and its arithmetic."""
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)
    with Meter(model) as meter:
        step(batch_size)
    return meter


# ---------------------------------------------------------------------- configs


@dataclass(frozen=True)
class Footprint:
    """What a training step of a config takes.

    Attributes:
        kind: "first stage" or "transformer".
        at: the size that it is trained at: pixels of a side, or tokens.
        trained, frozen: numbers of parameters.
        activations: bytes per image, in float32 and under autocast to bfloat16.
        flop: of a step, per image, a multiply-add being two; without the frozen stages' encoding.
    """

    name: str
    kind: str
    at: int
    trained: int
    frozen: int
    activations: tuple[int, int]
    flop: int

    @property
    def state(self) -> int:
        """Bytes of weights, gradients and Adam's two averages in float32, and of frozen weights."""
        return 16 * self.trained + 4 * self.frozen

    @property
    def hours(self) -> float:
        """H100-hours for a million images, at the share of its peak that was measured."""
        return 1e6 * self.flop / (PEAK * utilization(self.kind)) / 3600


@functools.cache
def utilization(kind: str) -> float:
    """The share of its peak that an H100 reached in training, by the committed results."""
    path = ROOT / "benchmarks" / "results" / f"{MEASURED[kind]}-cuda.json"
    share: float = json.loads(path.read_text())["share_of_peak"]
    return share


def network_of(path: Path) -> dict[str, Any]:
    """`target` and `params` of what a YAML file trains, without files and the user's numbers."""
    model = plain(load_config([path]), allow_missing=True)["model"]
    if GPT_CONFIG in model["params"]:
        network = model["params"][GPT_CONFIG]
        # With dropout, the CPU's kernel keeps a matrix of attention that those of GPUs do not.
        return {**network, "params": {**network["params"], "attn_pdrop": 0.0}}
    unused = ("ckpt_path", "ignore_keys", "monitor")
    params = {key: value for key, value in model["params"].items() if key not in unused}
    return {**model, "params": {k: 20 if v == "???" else v for k, v in params.items()}}


def footprint(name: str, config: Mapping[str, Any]) -> Footprint:
    """That of a network by its `target` and `params`."""
    with without_numbers():
        network = instantiate_from_config(config).train()
        return _footprint(name, network)


def _footprint(name: str, network: nn.Module) -> Footprint:
    if isinstance(network, GPT):
        kind, at, step = "transformer", network.get_block_size(), transformer_step(network)
    else:
        assert isinstance(network, AutoencoderTraining)
        at = int(network.encoder.resolution)  # type: ignore[arg-type]
        kind, step = "first stage", first_stage_step(network, at)
    trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters()) - trained
    full, half = (_per_image(step, network, dtype) for dtype in (torch.float32, torch.bfloat16))
    return Footprint(name, kind, at, trained, frozen, (full[0], half[0]), full[1])


def _per_image(
    step: Callable[[int], None], network: nn.Module, dtype: torch.dtype
) -> tuple[int, int]:
    """What each further image of a batch adds to the peak, and to the arithmetic."""
    one, two = (measured(_in(dtype, step), network, size) for size in (1, 2))
    return two.peak - one.peak, two.flop - one.flop


def _in(dtype: torch.dtype, step: Callable[[int], None]) -> Callable[[int], None]:
    def run(batch_size: int) -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            step(batch_size)

    return run


def rows_of(paths: Iterable[Path]) -> list[Footprint]:
    """A row for each network, the smallest first, by the names of its configs."""
    names: dict[str, list[str]] = defaultdict(list)
    for path in paths:
        names[json.dumps(network_of(path), sort_keys=True)].append(f"`{path.stem}`")
    rows = [footprint(", ".join(name), json.loads(config)) for config, name in names.items()]
    return sorted(rows, key=lambda row: (row.kind, row.trained, row.name))


def table(rows: Iterable[Footprint]) -> str:
    """The rows in Markdown."""
    lines = [
        "| config | trained at | parameters (frozen) | weights, gradients, Adam | activations per "
        "image: fp32, bf16 | TFLOP per image | H100-hours per million images, computed |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        unit = "tokens" if row.kind == "transformer" else "pixels"
        frozen = f" ({row.frozen / 1e6:.1f} M)" if row.frozen else ""
        full, half = (f"{size / 2**30:.2f}" for size in row.activations)
        lines.append(
            f"| {row.name} | {row.at} {unit} | {row.trained / 1e6:.1f} M{frozen} "
            f"| {row.state / 2**30:.2f} GiB | {full}, {half} GiB | {row.flop / 1e12:.2f} "
            f"| {row.hours:.1f} |"
        )
    return "\n".join(lines)


def configs() -> list[Path]:
    """The YAMLs of models that are trained, but for one whose sizes are those of a file."""
    paths = (ROOT / "configs").glob("*.yaml")
    return sorted(path for path in paths if path.stem != "finetune_foreign")


def main() -> None:
    parser = argparse.ArgumentParser(description="Memory and arithmetic of training steps.")
    parser.add_argument("config", nargs="*", type=Path, help="YAML files; default: all of configs/")
    parser.add_argument("--write", action="store_true", help="put the table into docs/scaling.md")
    args = parser.parse_args()
    logging.disable()
    warnings.simplefilter("ignore")
    made = table(rows_of(args.config or configs()))
    if args.write:
        head, _, rest = DOCUMENT.read_text(encoding="utf-8").partition(BEGIN)
        text = f"{head}{BEGIN}\n\n{made}\n\n{END}{rest.partition(END)[2]}"
        DOCUMENT.write_text(text, encoding="utf-8")
    sys.stdout.write(made + "\n")


if __name__ == "__main__":
    main()
