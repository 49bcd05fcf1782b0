"""Draw scenes: from the boxes of a run's data, or from layouts that you write.

    python scripts/make_scene_samples.py -r logs/<run> --outdir scenes
    python scripts/make_scene_samples.py -r logs/<run> --outdir scenes --layout street.yaml

A layout is a list of objects, `- {class: person, box: [0.1, 0.2, 0.3, 0.7]}`: x0, y0, width and
height as shares of the image. Plots of the layouts go to
`<outdir>/<global step>_<top_k>_<temperature>/layouts/`, samples to `samples/<layout>/`, and, with
data, `originals/` and `reconstructions/`. The same command again draws what is missing.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from taming.devices import choose_device, choose_dtype
from taming.errors import UserError, command
from taming.sampling import SampleSettings, sample_images
from taming.sampling.arguments import add_drawing, check_drawing, make_parser, parse
from taming.sampling.examples import data_config, open_dataset
from taming.sampling.folder import SampleFolder, save_png
from taming.sampling.load import load_transformer
from taming.sampling.scenes import (
    Scene,
    builder_of,
    read_layout,
    read_scene,
    scene_requests,
)
from taming.sampling.sizes import parse_resolution, tokens_for


def read_arguments(argv: Sequence[str] | None) -> tuple[Namespace, list[str]]:
    parser = make_parser("Draw scenes from boxes.")
    parser.add_argument(
        "-c", "--config", nargs="+", default=[], metavar="YAML", help="merged over --base's"
    )
    parser.add_argument(
        "--ignore_base_data", action="store_true", help="take the data from --base and --config"
    )
    parser.add_argument("--split", help="validation (default), train or test")
    parser.add_argument("-R", "--resolution", default="256,256", help="height,width in pixels")
    parser.add_argument(
        "-C", "--conditional", default="objects_bbox", help="or objects_center_points"
    )
    parser.add_argument(
        "-N", "--n_samples_per_layout", type=int, default=4, help="of each layout (default 4)"
    )
    parser.add_argument("--layout", type=Path, nargs="+", help="YAML or JSON files")
    parser.add_argument("-n", "--num_layouts", type=int, help="of the data (default: all)")
    add_drawing(parser, top_k=100, batch_size=4)
    return parse(parser, argv)


def check(args: Namespace) -> tuple[SampleSettings, int, int]:
    """How tokens are drawn, and height and width in pixels."""
    size = parse_resolution(args.resolution)
    for name in ("n_samples_per_layout", "num_layouts"):
        value = getattr(args, name)
        if value is not None and value < 1:
            raise UserError(f"--{name} must be at least 1, not {value}")
    return check_drawing(args), *size


def scenes(args: Namespace, seeded: Any) -> Iterable[tuple[Scene, Tensor | None]]:
    """Scenes with their images [1, H, W, 3], where there are any."""
    if args.layout:
        return [(read_layout(path, seeded.dataset, args.conditional), None) for path in args.layout]
    count = min(len(seeded), args.num_layouts or len(seeded))
    return (read_scene(seeded, number) for number in range(count))


@torch.no_grad()
def show_image(model: Any, image: Tensor, name: str, root: Path) -> None:
    x = model.get_input("image", {"image": image}).to(model.device)
    quant, indices = model.encode_to_z(x)
    save_png(x[0], root / "originals" / name)
    save_png(model.decode_to_img(indices, quant.shape)[0], root / "reconstructions" / name)


@command
def main(argv: Sequence[str] | None = None) -> None:
    args, overrides = read_arguments(argv)
    (settings, *size), base = check(args), [*args.base, *args.config]
    device = choose_device(args.device)
    dtype = choose_dtype(args.precision, device)
    model_base = args.base if args.ignore_base_data else base
    model, run, step = load_transformer(args.resume, model_base, device, overrides, dtype)
    shape = tokens_for(model, *size)
    data = data_config(run, base, overrides, args.ignore_base_data)
    seeded = open_dataset(data, args.split)
    root = Path(args.outdir or run.folder / "scenes") / f"{step}_{args.top_k}_{args.temperature}"
    record = {"seed": args.seed, "global_step": step, "dtype": str(dtype), **asdict(settings)}
    record |= {"size": list(size), "conditional": args.conditional}
    builder, new = builder_of(seeded.dataset, args.conditional), 0
    label = seeded.dataset.get_textual_label_for_category_no
    given = scenes(args, seeded)
    for number, (scene, image) in enumerate(tqdm(given, unit="layout")):
        folder = SampleFolder(root / "samples" / scene.name, record)
        finished = folder.finished(None)
        wanted = [n for n in range(args.n_samples_per_layout) if n not in finished]
        plot = builder.plot(scene.tokens(builder), label, (size[1], size[0]))
        save_png(plot, root / "layouts" / f"{scene.name}.png")
        if image is not None:
            show_image(model, image, f"{scene.name}.png", root)
        requests = scene_requests(scene, builder, number, wanted)
        for sample in sample_images(
            model, requests, settings, args.batch_size, args.seed, shape=shape
        ):
            folder.save(replace(sample, label=None))
            new += 1
    print(f"layouts and samples are in {root} ({new} samples of them new)")


if __name__ == "__main__":
    main()
