"""The table of measured speeds in README.md, made from the committed results.

python benchmarks/speed_table.py           # print it
python benchmarks/speed_table.py --write   # ... into README.md
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from measure import RESULTS

README = Path(__file__).parents[1] / "README.md"
BEGIN, END = "<!-- benchmarks/speed_table.py -->", "<!-- end -->"
HEADER = "| what | against | times as fast | on |\n|---|---|---|---|"


def read(name: str) -> dict[str, Any]:
    """A committed result."""
    facts: dict[str, Any] = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))
    return facts


def machine(facts: dict[str, Any]) -> str:
    """What a result was measured on: "AMD EPYC, 2 threads, torch 2.14.1"."""
    hardware = facts["hardware"]
    threads = hardware["threads"]
    torch = hardware["torch"].partition("+")[0]
    name = hardware.get("gpu") or hardware["processor"].replace("(R)", "").removesuffix(
        " Processor"
    )
    return f"{name}, {threads} thread{'s' * (threads > 1)}, torch {torch}"


def row(what: str, against: str, times: str, facts: dict[str, Any]) -> str:
    return f"| {what} | {against} | {times} | {machine(facts)} |"


def sampling() -> str:
    facts = read("sampling-cpu-fp32-cpu")
    steps = facts["steps"]
    shape = steps["shape"]
    ratios = [steps[f"batch {n}"]["published over engine"] for n in shape["batches"]]
    what = (
        f"sampling {shape['tokens']} tokens, {shape['layers']} layers of width {shape['width']}, "
        f"fp32, batch {', '.join(map(str, shape['batches']))}"
    )
    return row(what, "the original's loop", ", ".join(f"{r:.1f}" for r in ratios), facts)


def training() -> list[str]:
    first, second = (read(f"training-paper-{s}-cpu") for s in ("first_stage", "transformer"))
    of_first, of_second = (
        {k: v["over the textbook's in fp32"] for k, v in facts[s]["ratios"].items()}
        for facts, s in ((first, "first_stage"), (second, "transformer"))
    )
    size = f"{first['size']} x {first['size']}, batch {first['batch_size']}"
    against = "a step as the original's, fp32"
    ways = ("ours, fp32", "ours, bf16", "fast, bf16", "reuse, fp32", "fast, reuse, bf16")
    fast = "`channels_last`, `fused_optimizer`, `bf16_networks`"
    gpt = [of_second[f"ours, {p}"] for p in ("fp32", "bf16")]
    return [
        row(
            f"training step of a VQGAN, f16 at full size with LPIPS, {size}: fp32, bf16, bf16 with "
            f"{fast}; with `reuse_reconstruction`: fp32, bf16 with these",
            against,
            "{:.2f}, {:.2f}, {:.2f}; {:.2f}, {:.2f}".format(*(of_first[way] for way in ways)),
            first,
        ),
        row(
            f"training step of a transformer, 12 layers of width 768, 512 tokens, batch "
            f"{second['batch_size']}: fp32, bf16",
            against,
            "{:.2f}, {:.2f}".format(*gpt),
            second,
        ),
    ]


def evaluation() -> str:
    facts = read("evaluators-cpu")
    return row(
        f"what eight programs evaluate (FID and others), in one pass, {facts['images']} images",
        "these programs",
        f"{1 / facts['share']['eight programs']:.1f}",
        facts,
    )


def loading() -> str:
    facts = read("data-cpu")
    ratio = facts["imagenet"]["ratio_to_plain"]
    return row(
        f"loading JPEGs of {facts['imagenet']['bytes_per_file'] // 1000} kB, cropped to 256 x 256; "
        "with `fast_decode` and `image_bytes`",
        "Pillow and albumentations",
        f"{ratio['ours']:.1f}; {ratio['bytes']:.1f}",
        facts,
    )


def table() -> str:
    ratios = "\n".join([HEADER, sampling(), *training(), evaluation(), loading()])
    return f"{ratios}\n\n{on_gpu()}"


def on_gpu() -> str:
    """Rates of the largest models, which have nothing beside them that they are compared to."""
    first, second = (read(f"throughput-{model}-cuda") for model in ("first_stage", "transformer"))
    sampled = read("sampling-gpu-bf16-alone-steps-cuda")
    machines = {machine(facts) for facts in (first, second, sampled)}
    if len(machines) > 1:
        raise SystemExit(
            f"results of {' and '.join(sorted(machines))} make no table; measure all on one GPU"
        )
    steps = sampled["steps"]
    shape = steps["shape"]
    engine = {n: steps[f"batch {n}"]["seconds"]["engine"]["median"] for n in (1, 256)}
    what = f"sampling with the latter, {shape['tokens']} codes: batch 1, 256"
    lines = [
        f"| {machine(first)} | images a second | of what it can compute |\n|---|---|---|",
        f"| training of a VQGAN, f16 at full size with LPIPS, 256 x 256, batch "
        f"{first['batch_size']}: bf16 with `compile`, `channels_last`, `fused_optimizer`, "
        f"`reuse_reconstruction`, `bf16_networks` | {_rate(first)} | {_share(first)} |",
        f"| training of the class-conditional transformer of 1.4 billion parameters on cached "
        f"codes, batch {second['batch_size']}: bf16 with `compile`, `fused_optimizer` "
        f"| {_rate(second)} | {_share(second)} |",
        f"| {what}, bf16 | {1 / engine[1]:.2f}, {256 / engine[256]:.0f} | |",
    ]
    return "\n".join(lines)


def _rate(facts: dict[str, Any]) -> str:
    return f"{facts['images_per_second']:.0f}"


def _share(facts: dict[str, Any]) -> str:
    return f"{facts['share_of_peak']:.0%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="into README.md")
    args = parser.parse_args()
    print(table())
    if args.write:
        before, rest = README.read_text(encoding="utf-8").split(f"{BEGIN}\n")
        after = rest.partition(END)[2]
        text = f"{before}{BEGIN}\n\n{table()}\n\n{END}{after}"
        README.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
