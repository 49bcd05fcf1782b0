"""Example datasets of images, class folders, depth and segmentations."""

from __future__ import annotations

import io
import tarfile

import numpy as np
from PIL import Image

from taming.data.condition_maps import depth_to_rgba
from taming.data.examples.rendering import SHAPES, Scene, render
from taming.data.examples.writer import (
    ADE_LABELS,
    COCO_LABELS,
    PALETTE,
    SPLITS,
    SYNSETS,
    ExampleWriter,
)
from taming.data.files.list_files import write_image_lists


def _nearest(scene: Scene) -> int:
    """The class of a scene as a whole: its nearest object's shape."""
    return SHAPES.index(scene.objects[0].shape)


def write_faces(out: ExampleWriter) -> None:
    """CelebA-HQ as `.npy`, FFHQ as `.png`; their lists are made when they are first read."""
    count = out.train + out.validation
    for number in range(count):
        square = render(number, 128, 128).image
        path = out.root / f"data/celebahq/imgHQ{number:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, square.transpose(2, 0, 1)[None])
        out.image(f"data/ffhq/{number:05d}.png", render(1000 + number, 128, 128).image)


def write_imagenet(out: ExampleWriter) -> None:
    """Class folders in a cache of their own, and depth."""
    for split, maps in (("train", "train"), ("validation", "val")):
        folder = f"cache/autoencoders/data/ILSVRC2012_{split}/data"
        for number, scene in enumerate(out.scenes(split, 10_000)):
            synset = SYNSETS[number % len(SYNSETS)]
            out.image(f"{folder}/{synset}/{synset}_{number}.JPEG", scene.image)
            depth = f"data/imagenet_depth/{maps}/{synset}/{synset}_{number}.png"
            out.image(depth, depth_to_rgba(scene.depth))


def write_imagenet_tars(out: ExampleWriter) -> None:
    """The same images as the official tars hold them, in `tars/`, with the validation's list."""
    training: dict[str, dict[str, bytes]] = {}
    for number, scene in enumerate(out.scenes("train", 10_000)):
        synset = SYNSETS[number % len(SYNSETS)]
        training.setdefault(synset, {})[f"{synset}_{number}.JPEG"] = _jpeg(scene)
    flat = {
        f"ILSVRC2012_val_{number + 1:08d}.JPEG": _jpeg(scene)
        for number, scene in enumerate(out.scenes("validation", 10_000))
    }
    (out.root / "tars").mkdir(parents=True, exist_ok=True)
    inner = {f"{synset}.tar": _tar(files) for synset, files in training.items()}
    (out.root / "tars/ILSVRC2012_img_train.tar").write_bytes(_tar(inner))
    (out.root / "tars/ILSVRC2012_img_val.tar").write_bytes(_tar(flat))
    lines = [f"{name} {SYNSETS[number % len(SYNSETS)]}" for number, name in enumerate(flat)]
    out.text("tars/validation_synset.txt", lines)


def _jpeg(scene: Scene) -> bytes:
    raw = io.BytesIO()
    Image.fromarray(scene.image).save(raw, "JPEG")
    return raw.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return raw.getvalue()


def write_examples(out: ExampleWriter) -> None:
    """`data/<name>_{examples.txt,images,segmentations}` of ADE20K, COCO and S-FLCKR; D-RIN."""
    tables = {"ade20k": ADE_LABELS, "coco": COCO_LABELS, "sflckr": COCO_LABELS}
    for start, (name, labels) in enumerate(tables.items()):
        names = []
        for number, scene in enumerate(out.scenes("validation", 20_000 + 100 * start)):
            names.append(f"{number:04d}.jpg")
            out.image(f"data/{name}_images/{number:04d}.jpg", scene.image)
            out.image(f"data/{name}_segmentations/{number:04d}.png", labels[scene.labels])
        out.text(f"data/{name}_examples.txt", names)
    names = []
    for number, scene in enumerate(out.scenes("validation", 20_300)):
        names.append(f"{SYNSETS[0]}/{number}.JPEG")
        out.image(f"data/drin_images/{SYNSETS[0]}/{number}.JPEG", scene.image)
        out.image(f"data/drin_depth/{SYNSETS[0]}/{number}.png", depth_to_rgba(scene.depth))
    out.text("data/drin_examples.txt", names)


def write_sflckr(out: ExampleWriter) -> None:
    """Landscapes with lists, as one's own collection."""
    for split in SPLITS:
        names = []
        for number, scene in enumerate(out.scenes(split, 30_000)):
            stem = f"{split}/{number:04d}"
            names.append(f"{stem}.jpg")
            out.image(f"data/sflckr_images/{stem}.jpg", scene.image)
            out.image(f"data/sflckr_segmentations/{stem}.png", COCO_LABELS[scene.labels])
        out.text(f"data/sflckr_{split}.txt", names)


def write_ade20k(out: ExampleWriter) -> None:
    """`data/ade20k_root`."""
    root, scenes = "data/ade20k_root", []
    for split, folder, short in (
        ("train", "training", "train"),
        ("validation", "validation", "val"),
    ):
        for number, scene in enumerate(out.scenes(split, 40_000)):
            stem = f"ADE_{short}_{number + 1:08d}"
            out.image(f"{root}/images/{folder}/{stem}.jpg", scene.image)
            out.image(f"{root}/annotations/{folder}/{stem}.png", ADE_LABELS[scene.labels])
            scenes.append(f"{stem} {SHAPES[_nearest(scene)]}_field")
    out.text(f"{root}/sceneCategories.txt", scenes)


def write_own(out: ExampleWriter) -> None:
    """Lists of images, a folder per class, and pairs of every kind."""
    for number, scene in enumerate(out.scenes("train", 70_000)):
        out.image(f"data/own/images/{number:04d}.jpg", scene.image)
    write_image_lists(out.root / "data/own/images", out.root / "data/own", test_fraction=0.25)
    for number in range(4 * len(SHAPES)):
        color = ("red", "blue")[number // len(SHAPES) % 2]
        scene = render(number, out.height, out.width, count=1, colors=[color])
        folder = f"data/classes/{color}_{scene.objects[0].shape}"
        out.image(f"{folder}/{number:04d}.png", scene.image)
    for number, scene in enumerate(out.scenes("train", 80_000)):
        stem = f"{number:04d}.png"
        out.image(f"data/pairs/images/{stem}", scene.image)
        out.image(f"data/pairs/segmentation/{stem}", scene.labels)
        out.image(f"data/pairs/depth/{stem}", depth_to_rgba(scene.depth))
        out.image(f"data/pairs/edges/{stem}", scene.edges)
        out.image(f"data/pairs/colors/{stem}", PALETTE[scene.labels])
        out.image(f"data/pairs/conditions/{stem}", scene.image[:, :, ::-1])
    lines = [" ".join(map(str, color)) for color in PALETTE]
    out.text("data/pairs/palette.txt", lines)
