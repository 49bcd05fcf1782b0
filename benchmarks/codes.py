"""Seconds per training step of a transformer on cached codes, against the same step on images.

    python benchmarks/codes.py [--config configs/class_transformer.yaml] [--device cuda]

Both begin with a batch in memory, so that reading and decoding of image files, which codes do away
with as well, is in neither. The first stage has random weights, which are as fast as trained ones.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import interleaved, write_results
from torch import Tensor
from training import transformer_step

from taming.config import instantiate_from_config, load_config, without_checkpoint_paths
from taming.devices import choose_device
from taming.errors import command
from taming.models.cond_transformer import Net2NetTransformer

CONFIG = Path(__file__).parents[1] / "configs" / "class_transformer.yaml"


def batches(model: Net2NetTransformer, size: int, count: int) -> dict[str, dict[str, Tensor]]:
    """The same images as such, and as the codes that the model's first stage makes of them."""
    images = torch.rand(count, size, size, 3, device=model.device) * 2 - 1
    labels = torch.arange(count, device=model.device) % (model.n_classes or 1)
    with torch.no_grad():
        codes = model.encode_to_indices(model.get_input("image", {"image": images}))
    return {
        "images": {"image": images, "class_label": labels},
        "codes": {"codes": codes, "condition_codes": labels[:, None]},
    }


def steps(model: Net2NetTransformer, size: int, count: int, cast: Any) -> dict[str, Any]:
    found: dict[str, Callable[[], None]] = {}
    for name, batch in batches(model, size, count).items():
        found[name] = transformer_step(model, batch, cast)
    return found


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default=str(CONFIG), help="class-conditional or unconditional")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    parser.add_argument("--image_size", type=int, default=256)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no_results", action="store_true", help="print only")
    parser.add_argument("overrides", nargs="*", help="key.path=value")
    args = parser.parse_args()
    device = choose_device(args.device)

    def cast() -> Any:
        return torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16")

    torch.manual_seed(0)
    config = without_checkpoint_paths(load_config([args.config], args.overrides).model)
    model = instantiate_from_config(config, "model", "module").to(device)
    candidates = steps(model, args.image_size, args.batch_size, cast)
    seconds = interleaved(candidates, device, args.rounds)
    medians = {name: row["median"] for name, row in seconds.items()}
    ratio = round(medians["images"] / medians["codes"], 3)
    print(", ".join(f"{name} {median:.4f} s" for name, median in medians.items()))
    print(f"codes are {ratio} times as fast as images")
    if not args.no_results:
        report = {**vars(args), "seconds": seconds, "ratio": ratio}
        path = write_results(f"codes-{Path(args.config).stem}-{args.precision}", device, report)
        print(f"written to {path}")


if __name__ == "__main__":
    main()
