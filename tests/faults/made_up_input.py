"""Made-up input: a strategy for each target of targets.py, good input with a few changes."""

from __future__ import annotations

import copy
import io
import json
import struct
import zlib
from typing import Any

import numpy as np
from hypothesis import strategies as st
from hypothesis.strategies import DataObject
from PIL import Image, PngImagePlugin

from tests.faults.cases import CASES
from tests.faults.made_up_values import TEXTS, attack, changed, places, spoiled
from tests.kit.models import transformer_config
from tests.kit.scenes import BOXES, CLASSES, HEAD, coco_content


def _bases() -> dict[str, Any]:
    names = ("vqgan", "ema", "gumbel", "transformer")
    bases: dict[str, Any] = {name: CASES[name]() for name in names}
    listed = {"size": 8, "training_images_list_file": "ASSETS/images.txt"}
    images = {"target": "taming.data.custom.CustomTrain", "params": listed}
    for config in bases.values():
        config["lightning"]["callbacks"].pop("faults")
        config["data"]["params"] |= {"train": images, "validation": copy.deepcopy(images)}
    digits = {"target": "taming.data.digits.DigitsTrain", "params": {"size": 8}}
    bases["transformer"]["data"]["params"] |= {"train": digits, "validation": dict(digits)}
    return bases


BASES = _bases()
SMALL_RUN: Any = {"model": {"base_learning_rate": 1e-4, **transformer_config()}}


def config(data: DataObject) -> Any:
    return changed(BASES[data.draw(st.sampled_from(list(BASES)))], data)


def stranger(data: DataObject) -> Any:
    """The config of a small run, in which something is to be executed, or changed otherwise."""
    tree = copy.deepcopy(SMALL_RUN)
    nodes = [place[:-1] for place in places(tree) if place[-1] == "target"]
    if data.draw(st.booleans()):
        node: Any = tree
        for key in data.draw(st.sampled_from(nodes)):
            node = node[key]
        target, params = data.draw(attack)
        node |= {"target": target, "params": copy.deepcopy(params)}
        return tree
    return changed(tree, data)


def yaml_text(data: DataObject) -> Any:
    raw = json.dumps(BASES["vqgan"], indent=1).encode()
    kinds = (
        lambda: spoiled(raw, data),
        lambda: data.draw(st.binary(max_size=200)),
        lambda: data.draw(st.text(max_size=80)).encode("utf-8", "replace"),
        lambda: data.draw(st.sampled_from(YAML_TRAPS)).encode(),
    )
    return kinds[data.draw(st.integers(0, 3))]().decode("latin-1")


YAML_TRAPS = (
    "!!python/object/apply:os.system ['touch ran']",
    "model: !!python/object/apply:os.system ['touch ran']",
    "model: !!python/name:os.system",
    "a: &a [x]\n" + "\n".join(f"b{i}: &b{i} [{'*a, ' * 9}*a]" for i in range(9)),
    "a0: &a0 [x,x]\n"
    + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "model: &m {target: a, params: *m}",
    "[" * 5000,
    "{a: " * 3000,
    "model: {a: 1, a: 2}",
    "- model",
    "model: [",
    "? [a]: 1",
    "model: 2026-13-45",
    "---\nmodel: 1\n---\nmodel: 2\n",
    "%YAML 9.9\n---\nmodel: 1",
    "\ufeffmodel: {}",
    "model:\n\ttarget: x",
    "${oc.env:HOME}: 1",
    "model: ${oc.env:HOME}",
    "model: ${.}",
    "model: ${model}",
)
KEYS = (
    "model.target",
    "model.params",
    "model.params.n_embed",
    "model.params.embed_dim",
    "model.params.ddconfig.ch_mult",
    "model.params.ddconfig.ch",
    "model.params.lossconfig.params.disc_ndf",
    "model.base_learning_rate",
    "data.params.batch_size",
    "data.params.num_workers",
    "data.params.train",
    "data.target",
    "lightning.trainer",
    "lightning.trainer.max_steps",
    "lightning.trainer.devices",
    "lightning.callbacks.image_logger",
    "lightning.logger",
    "lightning.modelcheckpoint.params",
    "model",
    "data",
    "lightning",
    "x.y",
    "a[0]",
    "a..b",
    "",
)
WORDS = (
    *("0", "1", "-1", "3", "99999999999999999999", "1e400", "nan", "inf", "-0.0", "1e-30", "0.5"),
    *(
        "true",
        "",
        " ",
        "\0",
        "abc",
        "a,b",
        "0,",
        ",",
        "[1]",
        "{}",
        "{a: 1}",
        "null",
        "é",
        "x" * 300,
    ),
)
TRAINER_FLAGS = (
    *("--max_steps", "--max_epochs", "--devices", "--accelerator", "--precision", "--strategy"),
    *("--gpus", "--seed", "--scale_lr", "--limit_val_batches", "--val_check_interval"),
    *("--accumulate_grad_batches", "--gradient_clip_val", "--gradient_clip_algorithm"),
    *("--logger", "--num_nodes", "--profiler", "--log_every_n_steps", "--overfit_batches"),
    *(
        "--fast_dev_run",
        "--min_epochs",
        "--max_time",
        "--barebones",
        "--benchmark",
        "--inference_mode",
    ),
    *("-n", "-f", "-p", "-s", "-d", "--no-test", "-b", "--what", "--", "-", "-x"),
)
SAMPLING_FLAGS = (
    *(
        "-n",
        "--num_samples",
        "--batch_size",
        "-k",
        "--top_k",
        "-t",
        "--temperature",
        "-p",
        "--top_p",
    ),
    *("--classes", "--seed", "--precision", "--top-k", "--guidance", "--what"),
)


def _pairs(data: DataObject, flags: tuple[str, ...], most: int = 4) -> list[str]:
    pairs = st.lists(st.tuples(st.sampled_from(flags), st.sampled_from(WORDS)), max_size=most)
    words = [word for pair in data.draw(pairs) for word in pair]
    if words and data.draw(st.integers(0, 4)) == 0:
        words.pop(data.draw(st.integers(0, len(words) - 1)))
    return words


def _override(data: DataObject) -> str:
    value = data.draw(st.sampled_from(WORDS) | st.sampled_from(TEXTS) | st.text(max_size=6))
    return f"{data.draw(st.sampled_from(KEYS))}={value}"


def overrides(data: DataObject) -> Any:
    most = data.draw(st.integers(1, 2))
    base = data.draw(st.sampled_from(("vqgan", "transformer")))
    return ["-b", f"ASSETS/{base}.yaml", *(_override(data) for _ in range(most))]


def training_arguments(data: DataObject) -> Any:
    return ["-b", "ASSETS/vqgan.yaml", *_pairs(data, TRAINER_FLAGS)]


def sampling_arguments(data: DataObject) -> Any:
    words = _pairs(data, SAMPLING_FLAGS, most=3)
    small = ["-n", "1", "--classes", "1"]
    some = data.draw(st.sampled_from((small, small, small[:2])))
    more = [_override(data)] if data.draw(st.integers(0, 4)) == 0 else []
    return [*some, *words, *more]


def list_file(data: DataObject) -> Any:
    good = [f"ASSETS/images/{i}.png" for i in range(3)]
    odd = ("", " ", "#", ".", "..", "/", "/dev/zero", "/dev/stdin", "~", "a\0b", "\xff", "ASSETS")
    lines = st.lists(st.sampled_from((*good, *odd)) | st.text(max_size=10), max_size=6)
    raw = data.draw(st.sampled_from(("\n", "\r\n", "\r", "\n\n"))).join(data.draw(lines)).encode()
    if data.draw(st.booleans()):
        raw = spoiled(raw, data)
    return raw.decode("latin-1")


def coco(data: DataObject) -> Any:
    name = data.draw(st.sampled_from(("instances", "instances", "stuff")))
    content = coco_content()
    kind = data.draw(st.integers(0, 9))
    if kind == 0:
        return {name: spoiled(json.dumps(content).encode(), data).decode("latin-1")}
    if kind == 1:
        return {
            name: data.draw(st.sampled_from(("[" * 100_000, "null", "[]", "{}", "1", '"a"', "")))
        }
    return {name: changed(content, data)}


_OPEN_IMAGES = {
    "class-descriptions-boxable.csv": CLASSES,
    "oidv6-train-annotations-bbox.csv": "\n".join([HEAD, *BOXES]) + "\n",
    "train-images-boxable.csv": "image_name,image_url\naa.jpg,u\nbb.jpg,u\n",
}


def open_images(data: DataObject) -> Any:
    name = data.draw(st.sampled_from(list(_OPEN_IMAGES)))
    text = _OPEN_IMAGES[name]
    if data.draw(st.booleans()):
        return {name: spoiled(text.encode(), data).decode("latin-1")}
    rows = [line.split(",") for line in text.splitlines()]
    row = data.draw(st.sampled_from(rows))
    row[data.draw(st.integers(0, len(row) - 1))] = data.draw(
        st.sampled_from(WORDS) | st.sampled_from(('"', '"a\nb', "-1", "2", "../x", "/etc/passwd"))
    )
    return {name: "\n".join(map(",".join, rows)).encode("utf-8", "replace").decode("latin-1")}


def layout(data: DataObject) -> Any:
    good = [
        {"class": "person", "box": [0.1, 0.2, 0.4, 0.5], "group": True},
        {"class": "sky", "box": [0, 0, 1, 1]},
    ]
    kind = data.draw(st.integers(0, 5))
    if kind == 0:
        return spoiled(json.dumps(good).encode(), data).decode("latin-1")
    if kind == 1:
        traps = (*YAML_TRAPS, "[" * 100_000, "- {class: person, box: [0, 0, .nan, 1]}")
        return data.draw(st.sampled_from(traps)).encode().decode("latin-1")
    return changed(good, data)


# ---------------------------------------------------------------------- images

MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I", "F", "I;16", "YCbCr", "HSV")


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file with its checksum."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _image(data: DataObject, side: int) -> bytes:
    """An image of any mode and format, whose metadata may be odd."""
    mode = data.draw(st.sampled_from(MODES))
    size = data.draw(st.sampled_from(((side, side), (side, side), (1, 1), (0, 0), (3, 200))))
    pixels = np.zeros((max(size[1], 1), max(size[0], 1)), np.uint8)
    pixels[: len(pixels) // 2] = data.draw(st.sampled_from((255, 255, 128)))
    picture = Image.fromarray(pixels).convert("L")
    ending = data.draw(st.sampled_from(("PNG", "PNG", "PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")))
    raw = io.BytesIO()
    options: dict[str, Any] = {}
    if ending == "PNG":
        options["pnginfo"] = _metadata(data)
    if data.draw(st.integers(0, 3)) == 0 and ending in ("PNG", "JPEG", "WEBP"):
        options["exif"] = data.draw(st.binary(max_size=40)) or b"Exif\0\0"
    try:
        converted = picture if mode == "I;16" else picture.convert(mode)
        converted.save(raw, ending, **options)
    except (OSError, ValueError, KeyError):
        picture.save(raw, "PNG")
    return raw.getvalue()


def _metadata(data: DataObject) -> PngImagePlugin.PngInfo:
    info = PngImagePlugin.PngInfo()
    for _ in range(data.draw(st.integers(0, 2))):
        key = data.draw(st.sampled_from(("parameters", "Title", "a" * 79, "exif", "dpi", "icc")))
        value = data.draw(st.sampled_from(("", "x", "é", "A" * 10**6, "\0")))
        info.add_text(key, value, zip=data.draw(st.booleans()))
    return info


def _with_chunk(raw: bytes, data: DataObject) -> bytes:
    """A PNG with a chunk that claims things, before its pixels."""
    bomb = zlib.compress(bytes(2**24))
    bodies = {
        b"zTXt": b"Comment\0\0" + bomb,
        b"iTXt": b"Comment\0\1\0\0\0" + bomb,
        b"iCCP": b"icc\0\0" + bomb,
        b"eXIf": data.draw(st.binary(max_size=60)),
        b"gAMA": data.draw(st.binary(max_size=8)),
        b"pHYs": data.draw(st.binary(max_size=12)),
        b"tRNS": data.draw(st.binary(max_size=12)),
        b"PLTE": data.draw(st.binary(max_size=12)),
        b"acTL": struct.pack(">II", 2**31 - 1, 0),
        b"IHDR": struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0),
    }
    name = data.draw(st.sampled_from(list(bodies)))
    return raw[:33] + png_chunk(name, bodies[name]) + raw[33:]


def _damaged(raw: bytes, kind: int, data: DataObject) -> bytes:
    """The same for 0, with another chunk for 1 if it is a PNG, with other bytes for 2."""
    if kind == 1 and raw.startswith(b"\x89PNG"):
        return _with_chunk(raw, data)
    return spoiled(raw, data) if kind == 2 else raw


def image(data: DataObject) -> Any:
    raw = _image(data, 20)
    kind = data.draw(st.integers(0, 3))
    if kind < 3:
        raw = _damaged(raw, kind, data)
    else:
        width, height = data.draw(st.sampled_from(((60_000, 60_000), (1, 2**31 - 1), (0, 5))))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        raw = raw[:8] + png_chunk(b"IHDR", header) + raw[33:]
    return raw.decode("latin-1")


def mask(data: DataObject) -> Any:
    raw = _image(data, 16)
    return _damaged(raw, data.draw(st.integers(0, 2)), data).decode("latin-1")


PLACES = ("model", "transformer_config", "first_stage_config", "cond_stage_config")


def attacked(place: str, target: str, params: dict[str, Any]) -> Any:
    """The config of a small run with a call in the place of one of its parts."""
    tree = copy.deepcopy(SMALL_RUN)
    node = tree["model"] if place == "model" else tree["model"]["params"][place]
    node |= {"target": target, "params": copy.deepcopy(params)}
    return tree
