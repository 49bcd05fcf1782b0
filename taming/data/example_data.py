"""Small, correct data sets in the formats of all datasets, rendered instead of downloaded.

The class names of real data sets are borrowed: what a file calls a cup is a drum.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from taming.data.example_scenes import GROUND, N_LABELS, SHAPES, SKY, Scene, render
from taming.data.files import write_image_lists
from taming.data.lists import write_atomically

# In the order of SHAPES: ids in each data set, of categories that the published configs use.
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
ENTRIES = {"train": "train2017", "validation": "val2017"}


@dataclass(frozen=True)
class Examples:
    """Writes data sets below `root`; scenes of different data sets and splits have other seeds."""

    root: Path
    train: int = 8
    validation: int = 4
    height: int = 96
    width: int = 128

    def scenes(self, split: str, first_seed: int) -> list[Scene]:
        """The scenes of a split; every shape is somebody's nearest."""
        count, offset = (self.train, 0) if split == "train" else (self.validation, 5000)
        seeds = range(first_seed + offset, first_seed + offset + count)
        return [render(seed, self.height, self.width) for seed in seeds]

    def picture(self, name: str, pixels: np.ndarray) -> None:
        """Save an image below `root`."""
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)

    def text(self, name: str, lines: Sequence[str]) -> None:
        """Save lines below `root`."""
        write_atomically(self.root / name, lines)


def depth_bytes(depth: np.ndarray) -> np.ndarray:
    """(H, W) to the bytes of its float32 values, uint8 (H, W, 4)."""
    return np.ascontiguousarray(depth, dtype="<f4").view(np.uint8).reshape(*depth.shape, 4)


def _nearest(scene: Scene) -> int:
    """The class of a scene as a whole: its nearest object's shape."""
    return SHAPES.index(scene.objects[0].shape)


def write_faces(out: Examples) -> None:
    """CelebA-HQ as `.npy`, FFHQ as `.png`; their lists are made when they are first read."""
    count = out.train + out.validation
    for number in range(count):
        square = render(number, 128, 128).image
        path = out.root / f"data/celebahq/imgHQ{number:05d}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(path, square.transpose(2, 0, 1)[None])
        out.picture(f"data/ffhq/{number:05d}.png", render(1000 + number, 128, 128).image)


def write_imagenet(out: Examples) -> None:
    """Class folders in a cache of their own, and depth."""
    for split, maps in (("train", "train"), ("validation", "val")):
        folder = f"cache/autoencoders/data/ILSVRC2012_{split}/data"
        for number, scene in enumerate(out.scenes(split, 10_000)):
            synset = SYNSETS[number % len(SYNSETS)]
            out.picture(f"{folder}/{synset}/{synset}_{number}.JPEG", scene.image)
            depth = f"data/imagenet_depth/{maps}/{synset}/{synset}_{number}.png"
            out.picture(depth, depth_bytes(scene.depth))


def write_imagenet_tars(out: Examples) -> None:
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


def write_examples(out: Examples) -> None:
    """`data/<name>_{examples.txt,images,segmentations}` of ADE20K, COCO and S-FLCKR; D-RIN."""
    tables = {"ade20k": ADE_LABELS, "coco": COCO_LABELS, "sflckr": COCO_LABELS}
    for start, (name, labels) in enumerate(tables.items()):
        names = []
        for number, scene in enumerate(out.scenes("validation", 20_000 + 100 * start)):
            names.append(f"{number:04d}.jpg")
            out.picture(f"data/{name}_images/{number:04d}.jpg", scene.image)
            out.picture(f"data/{name}_segmentations/{number:04d}.png", labels[scene.labels])
        out.text(f"data/{name}_examples.txt", names)
    names = []
    for number, scene in enumerate(out.scenes("validation", 20_300)):
        names.append(f"{SYNSETS[0]}/{number}.JPEG")
        out.picture(f"data/drin_images/{SYNSETS[0]}/{number}.JPEG", scene.image)
        out.picture(f"data/drin_depth/{SYNSETS[0]}/{number}.png", depth_bytes(scene.depth))
    out.text("data/drin_examples.txt", names)


def write_sflckr(out: Examples) -> None:
    """Landscapes with lists, as one's own collection."""
    for split in ENTRIES:
        names = []
        for number, scene in enumerate(out.scenes(split, 30_000)):
            stem = f"{split}/{number:04d}"
            names.append(f"{stem}.jpg")
            out.picture(f"data/sflckr_images/{stem}.jpg", scene.image)
            out.picture(f"data/sflckr_segmentations/{stem}.png", COCO_LABELS[scene.labels])
        out.text(f"data/sflckr_{split}.txt", names)


def write_ade20k(out: Examples) -> None:
    """`data/ade20k_root`."""
    root, scenes = "data/ade20k_root", []
    for split, folder, short in (
        ("train", "training", "train"),
        ("validation", "validation", "val"),
    ):
        for number, scene in enumerate(out.scenes(split, 40_000)):
            stem = f"ADE_{short}_{number + 1:08d}"
            out.picture(f"{root}/images/{folder}/{stem}.jpg", scene.image)
            out.picture(f"{root}/annotations/{folder}/{stem}.png", ADE_LABELS[scene.labels])
            scenes.append(f"{stem} {SHAPES[_nearest(scene)]}_field")
    out.text(f"{root}/sceneCategories.txt", scenes)


def write_coco(out: Examples) -> None:
    """Images with captions, instances, stuff, and both kinds of segmentation."""
    for split, name in ENTRIES.items():
        scenes = out.scenes(split, 50_000)
        images = [_coco_image(number, scene) for number, scene in enumerate(scenes, 1)]
        captions = []
        for image, scene in zip(images, scenes, strict=True):
            stem = Path(image["file_name"]).stem
            for place in ("data/coco", "data/coco_annotations"):
                out.picture(f"{place}/{name}/{stem}.jpg", scene.image)
            labels = COCO_LABELS[scene.labels]
            out.picture(f"data/cocostuffthings/{name}/{stem}.png", labels)
            stuff = np.where(scene.labels >= SKY, labels + 1, 0).astype(np.uint8)
            out.picture(f"data/coco/annotations/stuff_{name}_pixelmaps/{stem}.png", stuff)
            words = (scene.caption, f"a picture of {scene.caption}", f"{scene.caption}, sunny")
            captions += [{"image_id": image["id"], "caption": text} for text in words]
        for kind, boxes, table in (
            ("instances", _things, THINGS),
            ("stuff", _stuff, STUFF),
        ):
            content = {
                "images": images,
                "annotations": list(_coco_annotations(images, scenes, boxes)),
                "categories": [{"id": i, "name": n, "supercategory": kind} for i, n in table],
            }
            _json(out, f"data/coco_annotations/annotations/{kind}_{name}.json", content)
        content = {"images": images, "annotations": captions}
        _json(out, f"data/coco/annotations/captions_{name}.json", content)


def _json(out: Examples, name: str, content: dict[str, Any]) -> None:
    out.text(name, [json.dumps(content)])


def _coco_image(number: int, scene: Scene) -> dict[str, Any]:
    height, width = scene.labels.shape
    return {"id": number, "file_name": f"{number:012d}.jpg", "height": height, "width": width}


Box = tuple[int, int, int, int]


def _things(scene: Scene) -> Iterator[tuple[int, Box]]:
    for found in scene.objects:
        yield THINGS[SHAPES.index(found.shape)][0], found.box


def _stuff(scene: Scene) -> Iterator[tuple[int, Box]]:
    for label, (category, _) in zip((SKY, GROUND), STUFF, strict=True):
        rows, columns = np.nonzero(scene.labels == label)
        x0, y0 = int(columns.min()), int(rows.min())
        yield category, (x0, y0, int(columns.max()) + 1 - x0, int(rows.max()) + 1 - y0)


def _coco_annotations(
    images: Sequence[dict[str, Any]],
    scenes: Sequence[Scene],
    boxes: Callable[[Scene], Iterator[tuple[int, Box]]],
) -> Iterator[dict[str, Any]]:
    for image, scene in zip(images, scenes, strict=True):
        for number, (category, box) in enumerate(boxes(scene)):
            yield {
                "id": 1000 * image["id"] + number,
                "image_id": image["id"],
                "category_id": category,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
            }


def write_open_images(out: Examples) -> None:
    """Boxes and lists as CSVs."""
    root = "data/open_images_annotations"
    out.text(f"{root}/class-descriptions-boxable.csv", [",".join(pair) for pair in OPEN_IMAGES])
    head = "ImageID,Source,LabelName,Confidence,XMin,XMax,YMin,YMax,IsOccluded,IsTruncated,"
    head += "IsGroupOf,IsDepiction,IsInside"
    for split, boxes, listing in (
        ("train", "oidv6-train-annotations-bbox.csv", "train-images-boxable.csv"),
        ("validation", "validation-annotations-bbox.csv", "validation-images.csv"),
    ):
        rows, names = [head], ["image_name,image_url"]
        for number, scene in enumerate(out.scenes(split, 60_000)):
            identity = f"{number:016x}"
            out.picture(f"{root}/{split}/{identity}.jpg", scene.image)
            names.append(f"{identity}.jpg,")
            rows += [_open_images_row(identity, scene, found) for found in scene.objects]
        out.text(f"{root}/{boxes}", rows)
        out.text(f"{root}/{listing}", names)


def _open_images_row(identity: str, scene: Scene, found: Any) -> str:
    height, width = scene.labels.shape
    x0, y0, w, h = found.box
    category = OPEN_IMAGES[SHAPES.index(found.shape)][0]
    ends = [x0 / width, (x0 + w) / width, y0 / height, (y0 + h) / height]
    box = ",".join(f"{value:.6f}" for value in ends)
    return f"{identity},xclick,{category},1,{box},{int(found.share < 0.95)},0,0,0,0"


def write_own(out: Examples) -> None:
    """Lists of images, a folder per class, and pairs of every kind."""
    for number, scene in enumerate(out.scenes("train", 70_000)):
        out.picture(f"data/own/images/{number:04d}.jpg", scene.image)
    write_image_lists(out.root / "data/own/images", out.root / "data/own", test_fraction=0.25)
    for number in range(2 * len(SHAPES)):
        scene = render(number, out.height, out.width, count=1)
        out.picture(f"data/classes/{scene.objects[0].shape}/{number:04d}.png", scene.image)
    for number, scene in enumerate(out.scenes("train", 80_000)):
        stem = f"{number:04d}.png"
        out.picture(f"data/pairs/images/{stem}", scene.image)
        out.picture(f"data/pairs/segmentation/{stem}", scene.labels)
        out.picture(f"data/pairs/depth/{stem}", depth_bytes(scene.depth))
        out.picture(f"data/pairs/edges/{stem}", scene.edges)
        out.picture(f"data/pairs/colours/{stem}", PALETTE[scene.labels])
        out.picture(f"data/pairs/conditions/{stem}", scene.image[:, :, ::-1])
    lines = [" ".join(map(str, colour)) for colour in PALETTE]
    out.text("data/pairs/palette.txt", lines)


PALETTE = np.random.RandomState(0).randint(0, 256, size=(N_LABELS, 3)).astype(np.uint8)
WRITERS = (
    write_faces,
    write_imagenet,
    write_imagenet_tars,
    write_examples,
    write_sflckr,
    write_ade20k,
    write_coco,
    write_open_images,
    write_own,
)


def write_all(root: str | Path, train: int = 8, validation: int = 4) -> int:
    """Write every data set below `root`; returns how many files there are then."""
    out = Examples(Path(root), train, validation)
    for write in WRITERS:
        write(out)
    return sum(path.is_file() for path in Path(root).rglob("*"))
