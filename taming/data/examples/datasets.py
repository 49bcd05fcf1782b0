"""The example datasets: rendered scenes in the files and formats of each dataset.

The class names are stand-ins: what a file calls a cup is a drum.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming.data.condition_maps import depth_to_rgba
from taming.data.examples.rendering import GROUND, N_LABELS, SHAPES, SKY, Box, Scene, render
from taming.data.files.list_files import write_image_lists, write_lines
from taming.data.files.lmdb_records import FILE, write_records
from taming.data.files.tar_members import add_member
from taming.errors import UserError, reason_of

# In the order of SHAPES: ids in each dataset, of categories that the published configs use.
SYNSETS = ("n01641577", "n02085620", "n02099601", "n02123045", "n02165105")
THINGS = ((37, "sports ball"), (47, "cup"), (86, "vase"), (33, "suitcase"), (60, "donut"))
STUFF = ((157, "sky-other"), (124, "grass"))
OPEN_IMAGES = (
    ("/m/018xm", "Ball"),
    ("/m/02jvh9", "Mug"),
    ("/m/01fdzj", "Tower"),
    ("/m/025dyy", "Box"),
    ("/m/0jy4k", "Doughnut"),
)
COCO_LABELS = np.array([i - 1 for i, _ in (*THINGS, *STUFF)], dtype=np.uint8)  # as in the PNGs
ADE_LABELS = np.array([120, 126, 136, 42, 150, 3, 10], dtype=np.uint8)
PALETTE = np.random.RandomState(0).randint(0, 256, size=(N_LABELS, 3)).astype(np.uint8)
SPLITS = {"train": "train2017", "validation": "val2017"}
# Folders of the scene data: the published YAMLs', and the earlier ones of this project's.
COCO_SCENES = ("data/coco_annotations_100", "data/coco_annotations")
OPEN_IMAGES_SCENES = ("data/open_images_annotations_100", "data/open_images_annotations")


@dataclass(frozen=True)
class ExampleWriter:
    """Writes datasets below `root`; `train` and `validation` are numbers of scenes."""

    root: Path
    train: int = 8
    validation: int = 4

    def scenes(self, split: str, first_seed: int) -> list[Scene]:
        """The scenes of a split; among any five, each shape is the nearest object of one.

        Datasets give other values for `first_seed`, so that their scenes differ.
        """
        count, offset = (self.train, 0) if split == "train" else (self.validation, 5000)
        seeds = range(first_seed + offset, first_seed + offset + count)
        return [render(seed) for seed in seeds]

    def path(self, name: str) -> Path:
        """Where `name` is below `root`, in a folder that is made if need be."""
        path = self.root / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(f"cannot make {path.parent} ({reason_of(error)})") from None
        return path

    def image(self, name: str, pixels: np.ndarray) -> None:
        Image.fromarray(pixels).save(self.path(name))

    def text(self, name: str, lines: Sequence[str]) -> None:
        write_lines(self.root / name, lines)

    def segmented(self, name: str, part: str, images: dict[str, Scene], labels: np.ndarray) -> None:
        """`data/<name>_{images,segmentations}` and their list, of scenes by name."""
        for stem, scene in images.items():
            self.image(f"data/{name}_images/{stem}.jpg", scene.image)
            self.image(f"data/{name}_segmentations/{stem}.png", labels[scene.labels])
        self.text(f"data/{name}_{part}.txt", [f"{stem}.jpg" for stem in images])


def write_all(root: str | Path, train: int = 8, validation: int = 4) -> int:
    """Write every dataset below `root`; returns how many files there are then."""
    out = ExampleWriter(Path(root), train, validation)
    for write in WRITERS:
        write(out)
    return sum(path.is_file() for path in Path(root).rglob("*"))


# ---------------------------------------------------------------------- images and maps


def write_faces(out: ExampleWriter) -> None:
    """CelebA-HQ as `.npy`, FFHQ as `.png`; their lists are made when they are first read."""
    for number in range(out.train + out.validation):
        square = render(number, 128, 128).image
        np.save(out.path(f"data/celebahq/imgHQ{number:05d}.npy"), square.transpose(2, 0, 1)[None])
        out.image(f"data/ffhq/{number:05d}.png", render(1000 + number, 128, 128).image)


def _imagenet(out: ExampleWriter, split: str) -> Iterator[tuple[int, str, Scene]]:
    """Numbers, synsets and scenes of a split of ImageNet."""
    for number, scene in enumerate(out.scenes(split, 10_000)):
        yield number, SYNSETS[number % len(SYNSETS)], scene


def write_imagenet(out: ExampleWriter) -> None:
    """Class folders in a cache of their own, and depth."""
    for split, maps in (("train", "train"), ("validation", "val")):
        folder = f"cache/autoencoders/data/ILSVRC2012_{split}/data"
        for number, synset, scene in _imagenet(out, split):
            name = f"{synset}/{synset}_{number}"
            out.image(f"{folder}/{name}.JPEG", scene.image)
            out.image(f"data/imagenet_depth/{maps}/{name}.png", depth_to_rgba(scene.depth))


def write_imagenet_tars(out: ExampleWriter) -> None:
    """The same images as the official tars hold them, in `tars/`, with the validation's list."""
    training: dict[str, dict[str, bytes]] = {}
    for number, synset, scene in _imagenet(out, "train"):
        training.setdefault(synset, {})[f"{synset}_{number}.JPEG"] = _jpeg(scene)
    inner = {f"{synset}.tar": _tar(files) for synset, files in training.items()}
    flat, lines = {}, []
    for number, synset, scene in _imagenet(out, "validation"):
        name = f"ILSVRC2012_val_{number + 1:08d}.JPEG"
        flat[name] = _jpeg(scene)
        lines.append(f"{name} {synset}")
    out.path("tars/ILSVRC2012_img_train.tar").write_bytes(_tar(inner))
    out.path("tars/ILSVRC2012_img_val.tar").write_bytes(_tar(flat))
    out.text("tars/validation_synset.txt", lines)


def _jpeg(scene: Scene) -> bytes:
    return _encoded(scene, "JPEG")


def _encoded(scene: Scene, form: str) -> bytes:
    raw = io.BytesIO()
    Image.fromarray(scene.image).save(raw, form)
    return raw.getvalue()


def _tar(files: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as archive:
        for name, content in files.items():
            add_member(archive, name, content)
    return raw.getvalue()


def write_examples(out: ExampleWriter) -> None:
    """A few images of ADE20K, COCO and S-FLCKR with segmentations, and of D-RIN with depth."""
    tables = {"ade20k": ADE_LABELS, "coco": COCO_LABELS, "sflckr": COCO_LABELS}
    for start, (name, labels) in enumerate(tables.items()):
        scenes = out.scenes("validation", 20_000 + 100 * start)
        out.segmented(name, "examples", {f"{i:04d}": s for i, s in enumerate(scenes)}, labels)
    stems = {f"{SYNSETS[0]}/{i}": s for i, s in enumerate(out.scenes("validation", 20_300))}
    for stem, scene in stems.items():
        out.image(f"data/drin_images/{stem}.JPEG", scene.image)
        out.image(f"data/drin_depth/{stem}.png", depth_to_rgba(scene.depth))
    out.text("data/drin_examples.txt", [f"{stem}.JPEG" for stem in stems])


def write_sflckr(out: ExampleWriter) -> None:
    """Landscapes with lists, as one's own collection."""
    for split in SPLITS:
        scenes = out.scenes(split, 30_000)
        images = {f"{split}/{number:04d}": scene for number, scene in enumerate(scenes)}
        out.segmented("sflckr", split, images, COCO_LABELS)


def write_ade20k(out: ExampleWriter) -> None:
    """`data/ade20k_root`; a scene's category is the shape of its nearest object."""
    root, categories = "data/ade20k_root", []
    folders = {"train": ("training", "train"), "validation": ("validation", "val")}
    for split, (folder, short) in folders.items():
        for number, scene in enumerate(out.scenes(split, 40_000)):
            stem = f"ADE_{short}_{number + 1:08d}"
            out.image(f"{root}/images/{folder}/{stem}.jpg", scene.image)
            out.image(f"{root}/annotations/{folder}/{stem}.png", ADE_LABELS[scene.labels])
            categories.append(f"{stem} {scene.objects[0].shape}_field")
    out.text(f"{root}/sceneCategories.txt", categories)


def write_lsun(out: ExampleWriter) -> None:
    """Bedrooms and towers as LMDB databases (folders where `lmdb` is not installed), and churches
    as they are exported, with lists."""
    for place, category in enumerate(("bedroom", "tower", "church_outdoor")):
        for split, short in (("train", "train"), ("validation", "val")):
            scenes = out.scenes(split, 90_000 + 100 * place)
            images = {hashlib.sha1(scene.image.tobytes()).hexdigest(): scene for scene in scenes}
            name = f"data/lsun/{category}_{short}"
            if category == "church_outdoor":
                out.text(f"{name}.txt", [f"{key}.jpg" for key in images])
                for key, scene in images.items():
                    out.image(f"data/lsun/churches/{key}.jpg", scene.image)
            else:
                _write_records(out, name, images)


def _write_records(out: ExampleWriter, name: str, images: dict[str, Scene]) -> None:
    if importlib.util.find_spec("lmdb") is None:
        for key, scene in images.items():
            out.image(f"{name}/{key}.webp", scene.image)
        return
    records = {key: _encoded(scene, "WEBP") for key, scene in images.items()}
    write_records(out.path(f"{name}_lmdb/{FILE}"), records)


def write_own(out: ExampleWriter) -> None:
    """Lists of images, a folder per class, and pairs of every kind."""
    for number, scene in enumerate(out.scenes("train", 70_000)):
        out.image(f"data/own/images/{number:04d}.jpg", scene.image)
    write_image_lists([out.root / "data/own/images"], out.root / "data/own", test_fraction=0.25)
    for number in range(2 * len(SHAPES) * max(2, out.train // 6)):
        color = ("red", "blue")[number // len(SHAPES) % 2]
        scene = render(number, count=1, colors=[color])
        out.image(f"data/classes/{color}_{scene.objects[0].shape}/{number:04d}.png", scene.image)
    for number, scene in enumerate(out.scenes("train", 80_000)):
        maps = {
            "images": scene.image,
            "segmentation": scene.labels,
            "depth": depth_to_rgba(scene.depth),
            "edges": scene.edges,
            "colors": PALETTE[scene.labels],
            "conditions": scene.image[:, :, ::-1],
        }
        for folder, pixels in maps.items():
            out.image(f"data/pairs/{folder}/{number:04d}.png", pixels)
    out.text("data/pairs/palette.txt", [" ".join(map(str, color)) for color in PALETTE])


# ---------------------------------------------------------------------- boxes and captions


def write_coco(out: ExampleWriter) -> None:
    """Images with captions, instances, stuff, and both kinds of segmentation."""
    for split, name in SPLITS.items():
        scenes = dict(enumerate(out.scenes(split, 50_000), 1))  # by the image's id
        captions = []
        for identity, scene in scenes.items():
            stem, labels = f"{identity:012d}", COCO_LABELS[scene.labels]
            for place in ("data/coco", *COCO_SCENES):
                out.image(f"{place}/{name}/{stem}.jpg", scene.image)
            out.image(f"data/cocostuffthings/{name}/{stem}.png", labels)
            stuff = np.where(scene.labels >= SKY, labels + 1, 0).astype(np.uint8)
            out.image(f"data/coco/annotations/stuff_{name}_pixelmaps/{stem}.png", stuff)
            words = (scene.caption, f"a picture of {scene.caption}", f"{scene.caption}, sunny")
            captions += [{"image_id": identity, "caption": text} for text in words]
        images = [_coco_image(identity, scene) for identity, scene in scenes.items()]
        content: dict[str, Any] = {"images": images, "annotations": captions}
        out.text(f"data/coco/annotations/captions_{name}.json", [json.dumps(content)])
        for kind, table in (("instances", THINGS), ("stuff", STUFF)):
            content["annotations"] = list(_coco_annotations(scenes, kind))
            content["categories"] = [{"id": i, "name": n, "supercategory": kind} for i, n in table]
            for place in COCO_SCENES:
                out.text(f"{place}/annotations/{kind}_{name}.json", [json.dumps(content)])


def _coco_image(identity: int, scene: Scene) -> dict[str, Any]:
    height, width = scene.labels.shape
    return {"id": identity, "file_name": f"{identity:012d}.jpg", "height": height, "width": width}


def _coco_annotations(scenes: dict[int, Scene], kind: str) -> Iterator[dict[str, Any]]:
    for identity, scene in scenes.items():
        boxes = _things(scene) if kind == "instances" else _stuff(scene)
        for number, (category, box) in enumerate(boxes):
            yield {
                "id": 1000 * identity + number,
                "image_id": identity,
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }


def _things(scene: Scene) -> list[tuple[int, Box]]:
    return [(THINGS[SHAPES.index(one.shape)][0], one.box) for one in scene.objects]


def _stuff(scene: Scene) -> list[tuple[int, Box]]:
    labels = zip(STUFF, (SKY, GROUND), strict=True)
    return [(category, scene.box_of(label)) for (category, _), label in labels]


def write_open_images(out: ExampleWriter) -> None:
    """Boxes and lists as CSVs."""
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    head += "IsGroupOf,IsDepiction,IsInside"
    classes = [",".join(pair) for pair in OPEN_IMAGES]
    for split, boxes, listing in (
        ("train", "oidv6-train-annotations-bbox.csv", "train-images-boxable.csv"),
        ("validation", "validation-annotations-bbox.csv", "validation-images.csv"),
    ):
        scenes = {f"{number:016x}": s for number, s in enumerate(out.scenes(split, 60_000))}
        rows = [row for identity, scene in scenes.items() for row in _box_rows(identity, scene)]
        for root in OPEN_IMAGES_SCENES:
            out.text(f"{root}/class-descriptions-boxable.csv", classes)
            out.text(f"{root}/{boxes}", [head, *rows])
            names = [f"{identity}.jpg," for identity in scenes]
            out.text(f"{root}/{listing}", ["image_name,image_url", *names])
            for identity, scene in scenes.items():
                out.image(f"{root}/{split}/{identity}.jpg", scene.image)


def _box_rows(identity: str, scene: Scene) -> Iterator[str]:
    height, width = scene.labels.shape
    for one in scene.objects:
        x0, y0, w, h = one.box
        category = OPEN_IMAGES[SHAPES.index(one.shape)][0]
        ends = [x0 / width, (x0 + w) / width, y0 / height, (y0 + h) / height]
        box = ",".join(f"{value:.6f}" for value in ends)
        yield f"{identity},xclick,{category},1,{box},{int(one.share < 0.95)},0,0,0,0"


WRITERS = [write_faces, write_imagenet, write_imagenet_tars, write_examples, write_sflckr]
WRITERS += [write_ade20k, write_coco, write_open_images, write_lsun]
WRITERS += [write_own]
