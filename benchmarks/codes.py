"""Seconds per training step of a transformer on cached codes, against the same step on images.

    python benchmarks/codes.py [--config configs/class_transformer.yaml] [--device cuda]

In turn: the step on codes and on images in this --precision, and the textbook step on images, in
fp32 and with written-out attention. All begin with a batch in memory, so that reading and decoding
of image files, which codes do away with as well, is in none. The first stage has random weights,
which are as fast as trained ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, write_results
from textbook import with_written_out_attention
from torch import Tensor

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.devices import choose_device
from taming.errors import command
from taming.models.cond_transformer import Net2NetTransformer

CONFIG = Path(__file__).parents[1] / "configs" / "class_transformer.yaml"
Batch = dict[str, Tensor]


def batches(model: Net2NetTransformer, size: int, count: int) -> tuple[Batch, Batch]:
    """Images, and the codes that the model's first stage makes of them."""
    images = torch.rand(count, size, size, 3, device=model.device) * 2 - 1
    labels = torch.arange(count, device=model.device) % (model.n_classes or 1)
    with torch.no_grad():
        codes = model.encode_to_indices(model.get_input("image", {"image": images}))
    return (
        {"image": images, "class_label": labels},
        {"codes": codes, "condition_codes": labels[:, None]},
    )


def training_step(model: Net2NetTransformer, batch: Batch, cast: Any) -> Callable[[], None]:
    optimizer = model.train().configure_optimizers()

    def step() -> None:
        optimizer.zero_grad()
        with cast():
            loss = model.shared_step(batch)
        loss.backward()
        optimizer.step()

    return step


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default=str(CONFIG), help="class-conditional or unconditional")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no_results", action="store_true", help="print, and write no file")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    args = parser.parse_args()
    device = choose_device(args.device)

    def cast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")

    torch.manual_seed(0)
    config = without_checkpoint_paths(load_config([args.config], args.overrides).model)
    model = instantiate_from_config(config, "model", "module").to(device)
    images, codes = batches(model, args.image_size, args.batch_size)
    steps = {
        "codes": training_step(model, codes, cast),
        "images": training_step(model, images, cast),
        "textbook on images, fp32": with_written_out_attention(
            training_step(model, images, nullcontext)
        ),
    }
    if args.precision == "bf16":
        step = with_written_out_attention(training_step(model, images, cast))
        steps["textbook on images, bf16"] = step
    seconds = interleaved(steps, device, args.rounds)
    medians = {name: row["median"] for name, row in seconds.items()}
    ratios = {name: round(median / medians["codes"], 3) for name, median in medians.items()}
    for name, median in medians.items():
        print(f"{name}: {median:.4f} s, {ratios[name]} times that of codes")
    if not args.no_results:
        report = {**vars(args), "config": Path(args.config).name, "seconds": seconds}
        report["dtype"] = args.precision  # of the candidates that do not name another
        name = f"codes-{Path(args.config).stem}-{args.precision}"
        print(f"written to {write_results(name, device, {**report, 'ratios': ratios})}")


if __name__ == "__main__":
    main()
