"""Made-up input: strategies for each target of targets.py, and campaigns of many cases.

Most cases are good input with a few changes, as those get furthest. Nothing is shrunk and a bad
case ends nothing: a campaign counts, and keeps one example of each kind of failure.
"""

from __future__ import annotations

import copy
import io
import json
import re
import struct
import zlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy
from PIL import Image, PngImagePlugin

from tests.faults.cases import CASES
from tests.faults.sandbox import GOOD, Sandbox
from tests.kit.models import transformer_config
from tests.kit.scenes import BOXES, CLASSES, HEAD, coco_content

# ---------------------------------------------------------------------- values

TARGETS = (
    "os.system",
    "os.getcwd",
    "subprocess.Popen",
    "runpy.run_path",
    "builtins.eval",
    "builtins.exec",
    "builtins.open",
    "shutil.rmtree",
    "torch.save",
    "torch.load",
    "torch.hub.load",
    "torch.utils.cpp_extension.load_inline",
    "taming.util.download",
    "taming.config.get_obj_from_str",
    "main.instantiate_from_config",
    "pytorch_lightning.Trainer",
    "torch.nn.Linear",
    "taming.models.vqgan.VQModel",
    "taming.data.digits.DigitsTrain",
    "antigravity.geohash",
    "",
    ".",
    "a..b",
    "taming",
)
PARAMS: tuple[dict[str, Any] | None, ...] = (None, {}, {"x": 1}, {"size": 16})
# Calls that would do something.
ATTACKS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("os.system", {"command": "touch ran"}),
    ("posix.system", {"command": "touch ran"}),
    ("subprocess.Popen", {"args": ["touch", "ran"]}),
    ("subprocess.run", {"args": ["touch", "ran"]}),
    ("subprocess.call", {"args": ["touch", "ran"]}),
    ("os.mkdir", {"path": "../ran"}),
    ("os.remove", {"path": "../ran"}),
    ("pathlib.Path.write_text", {"self": "x", "data": "x"}),
    ("runpy.run_path", {"path_name": "ran.py"}),
    ("runpy.run_module", {"mod_name": "antigravity"}),
    ("importlib.import_module", {"name": "antigravity"}),
    ("antigravity.geohash", {"latitude": 1, "longitude": 1, "datedow": "x"}),
    ("torch.save", {"obj": {}, "f": "../ran"}),
    ("torch.hub.load", {"repo_or_dir": "a/b", "model": "c"}),
    ("torch.hub.download_url_to_file", {"url": "http://127.0.0.1:9/", "dst": "ran"}),
    ("torch.utils.cpp_extension.load_inline", {"name": "ran", "cpp_sources": "int a;"}),
    ("taming.util.download", {"url": "http://127.0.0.1:9/", "local_path": "ran"}),
    ("taming.atomic_files.write_text", {"path": "../ran", "text": "x"}),
    (
        "main.instantiate_from_config",
        {"config": {"target": "os.system", "params": {"command": "x"}}},
    ),
    ("pytorch_lightning.loggers.CSVLogger", {"save_dir": "../ran"}),
    ("builtins.open", {"file": "../ran", "mode": "w"}),
    ("tests.faults.sandbox.canary", {}),
    ("tests.faults.sandbox.canary", {"x": 1}),
    ("tests.faults.sandbox.CALLS.append", {}),
)
NUMBERS = (0, 1, -1, 2, 3, 7, 10**6, 10**12, 2**63, 10**30, -0.5, 1e-4, 0.5, 1e300, 1e12)
TEXTS = (
    "",
    "abc",
    "\0",
    "???",
    "None",
    "true",
    "1e3",
    "nan",
    "inf",
    "${model.target}",
    "${a.b}",
    "${oc.env:HOME}",
    "${oc.env:PATH,x}",
    "${oc.create:${a}}",
    "${",
    "../x",
    "a" * 300,
    "é\u202e\u2028",
    "[1,2",
    "{a: 1}",
    "ASSETS/run",
    "ASSETS/images",
)

_plain = (
    st.none()
    | st.booleans()
    | st.sampled_from(NUMBERS)
    | st.sampled_from((float("nan"), float("inf"), -float("inf")))
    | st.sampled_from(TEXTS)
    | st.text(st.characters(codec="utf-8"), max_size=8)
    | st.integers(-5, 40)
)
_attack = st.sampled_from(ATTACKS)
_node = st.one_of(st.tuples(st.sampled_from(TARGETS), st.sampled_from(PARAMS)), _attack).map(
    lambda pair: {"target": pair[0], "params": copy.deepcopy(pair[1])}
)
VALUES: SearchStrategy[Any] = st.one_of(
    _plain,
    _plain,
    _node,
    st.lists(_plain, max_size=4),
    st.dictionaries(st.sampled_from(("a", "target", "params", "1")), _plain, max_size=2),
    st.just([1, [2, [3, {"a": [None]}]]]),
)


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all entries of a tree of dicts and lists."""
    entries: list[Any] = []
    if isinstance(tree, dict):
        entries = list(tree.items())
    elif isinstance(tree, list):
        entries = list(enumerate(tree))
    below = [place for key, value in entries for place in places(value, (*path, key))]
    return [*([path] if path else []), *below]


def change(tree: Any, data: DataObject) -> None:
    """Replace, remove, rename, double or add one entry."""
    known = places(tree)
    if not known:
        return
    *parents, last = data.draw(st.sampled_from(known))
    node = tree
    for key in parents:
        node = node[key]
    how = data.draw(st.sampled_from(("replace",) * 6 + ("remove", "rename", "add")))
    if how == "replace":
        node[last] = copy.deepcopy(data.draw(VALUES))
    elif how == "remove":
        del node[last]
    elif isinstance(node, list):
        node.insert(last, copy.deepcopy(node[last]))
    elif how == "rename":
        node[data.draw(st.sampled_from((f"{last}s", "x", "target", "1")))] = node.pop(last)
    else:
        node[data.draw(st.sampled_from(("x", "ckpt_path", "target")))] = copy.deepcopy(
            data.draw(VALUES)
        )


def changed(tree: Any, data: DataObject, most: int = 3) -> Any:
    """A copy with a few changes."""
    tree = copy.deepcopy(tree)
    for _ in range(data.draw(st.integers(1, most))):
        change(tree, data)
    return tree


def shown(case: Any) -> str:
    """A case in a line: what differs from the nearest base, or all of it."""
    if isinstance(case, dict) and case.keys() & {"model", "data"}:
        bases = (*BASES.values(), SMALL_RUN)
        lines = min((_edits(base, case) for base in bases), key=len)
        return "; ".join(lines)[:400]
    return repr(case)[:400]


def _edits(base: Any, case: Any, path: str = "") -> list[str]:
    if isinstance(base, dict) and isinstance(case, dict):
        keys = dict.fromkeys([*base, *case])
        pairs = [(f"{path}.{key}".strip("."), key) for key in keys]
        return [
            line
            for where, key in pairs
            if base.get(key) is not case.get(key)
            for line in _edits(base.get(key, "nothing"), case.get(key, "nothing"), where)
        ]
    same = repr(base) == repr(case)
    return [] if same else [f"{path} = {case!r}"[:200]]


def spoiled(raw: bytes, data: DataObject) -> bytes:
    """Bytes cut, flipped, doubled or with others put in."""
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, max(len(raw) - 1, 0)))
        how = data.draw(st.sampled_from(("flip", "cut", "put", "double")))
        if how == "flip" and raw:
            raw = raw[:at] + bytes([raw[at] ^ data.draw(st.integers(1, 255))]) + raw[at + 1 :]
        elif how == "cut":
            raw = raw[:at]
        elif how == "put":
            raw = raw[:at] + data.draw(st.binary(max_size=8)) + raw[at:]
        else:
            raw = raw[:at] + raw[max(0, at - 20) : at] + raw[at:]
    return raw


# ---------------------------------------------------------------------- cases of each target


def _bases() -> dict[str, Any]:
    names = ("vqgan", "ema", "gumbel", "transformer")
    bases: dict[str, Any] = {name: CASES[name]() for name in names}
    listed = {"size": 8, "training_images_list_file": "ASSETS/images.txt"}
    images = {"target": "taming.data.custom.CustomTrain", "params": listed}
    for config in bases.values():
        config["lightning"]["callbacks"].pop("faults")
        config["data"]["params"] |= {"train": images, "validation": copy.deepcopy(images)}
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
        target, params = data.draw(_attack)
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
    *("--classes", "--seed", "--precision", "--top-k", "--guidance", "--what", "--compile"),
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


def image(data: DataObject) -> Any:
    raw = _image(data, 20)
    kind = data.draw(st.integers(0, 3))
    if kind == 1 and raw.startswith(b"\x89PNG"):
        raw = _with_chunk(raw, data)
    elif kind == 2:
        raw = spoiled(raw, data)
    elif kind == 3:
        width, height = data.draw(st.sampled_from(((60_000, 60_000), (1, 2**31 - 1), (0, 5))))
        header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        raw = raw[:8] + png_chunk(b"IHDR", header) + raw[33:]
    return raw.decode("latin-1")


def mask(data: DataObject) -> Any:
    raw = _image(data, 16)
    kind = data.draw(st.integers(0, 2))
    if kind == 1 and raw.startswith(b"\x89PNG"):
        raw = _with_chunk(raw, data)
    elif kind == 2:
        raw = spoiled(raw, data)
    return raw.decode("latin-1")


PLACES = ("model", "transformer_config", "first_stage_config", "cond_stage_config")


def attacked(place: str, target: str, params: dict[str, Any]) -> Any:
    """The config of a small run with a call in the place of one of its parts."""
    tree = copy.deepcopy(SMALL_RUN)
    node = tree["model"] if place == "model" else tree["model"]["params"][place]
    node |= {"target": target, "params": copy.deepcopy(params)}
    return tree


# ---------------------------------------------------------------------- known to have failed

# Changes to configs, override by override; "..." stands for no value at all.
KNOWN_CHANGES: tuple[tuple[str, Any], ...] = (
    ("data.params.validation.params.training_images_list_file", 1e-4),
    ("data.params.train.params", [1, 2]),
    ("data.params.train", [1]),
    ("data.params.num_workers", None),
    ("data.params.num_workers", {"a": 1}),
    ("data.params.batch_size", "abc"),
    ("lightning.trainer", 0),
    ("model", None),
    ("model.params", [1]),
    ("model.target", []),
    ("model.target", 0),
    ("model.params.embed_dim", "\0"),
    ("model.params.n_embed", None),
    ("model.params.n_embed", 10**12),
    ("model.params.ddconfig", 1),
    ("model.params.ddconfig.ch_mult", -0.5),
    ("model.params.ddconfig.dropout", "x"),
    ("model.params.lossconfig.params.disc_ndf", "abc"),
    ("model.params.lossconfig.params.disc_weight", "\0"),
    ("model.params.lossconfig.params.disc_num_layers", {"target": "os.getcwd"}),
)


def known_cases() -> list[tuple[str, Any]]:
    """(target, case) of input that once ended in a traceback, or never."""
    cases: list[tuple[str, Any]] = []
    for path, value in KNOWN_CHANGES:
        tree = copy.deepcopy(BASES["vqgan"])
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node[key]
        node[last] = value
        cases.append(("config", tree))
    base = ["-b", "ASSETS/vqgan.yaml"]
    cases += [
        ("training_arguments", [*base, "model.params=[1]"]),
        ("training_arguments", [*base, "model.params.n_embed="]),
        ("sampling_arguments", ["-n", "1", "--classes", "1", "-o", "\0"]),
        ("sampling_arguments", ["-n", "1", "--classes", "1", "model.params.pkeep=x"]),
        ("sampling_arguments", ["-n", "99999999999999999999"]),
        ("layout", "[" * 100_000),
        ("layout", [{"class": [1, 2], "box": [0.1, 0.2, 0.4]}]),
    ]
    for identity in ([], {}, float("inf")):
        content = coco_content()
        content["annotations"][2]["id"] = identity
        cases.append(("coco", {"instances": content}))
    cases.append(("coco", {"instances": coco_content() | {"images": True}}))
    cases.append(("open_images", {"class-descriptions-boxable.csv": "/m/01s55n,Suit\x8acase\n"}))
    return cases


# ---------------------------------------------------------------------- campaigns

# name -> (maker of cases, target, share of all cases)
CAMPAIGNS: dict[str, tuple[Any, str, float]] = {
    "configs": (config, "config", 0.16),
    "strangers' configs": (stranger, "stranger", 0.10),
    "YAML": (yaml_text, "yaml_text", 0.06),
    "overrides": (overrides, "training_arguments", 0.10),
    "command lines": (training_arguments, "training_arguments", 0.10),
    "command lines of sampling": (sampling_arguments, "sampling_arguments", 0.06),
    "list files": (list_file, "list_file", 0.08),
    "COCO annotations": (coco, "coco", 0.10),
    "Open Images annotations": (open_images, "open_images", 0.06),
    "layouts": (layout, "layout", 0.06),
    "masks": (mask, "mask", 0.06),
    "images and their metadata": (image, "image", 0.06),
}


@dataclass
class Campaign:
    """What became of the cases of one name: `bad` has an example of each kind of failure."""

    name: str
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    bad: dict[str, tuple[str, Any]] = field(default_factory=dict)
    bad_cases: int = 0

    def add(self, case: Any, answer: str) -> None:
        """Count a case."""
        self.cases += 1
        kind = answer.partition(":")[0]
        self.answers[kind] += 1
        if kind not in GOOD:
            self.bad_cases += 1
            self.bad.setdefault(_kind_of(answer), (answer, case))


def _kind_of(answer: str) -> str:
    """Failures of the same place and type are one kind."""
    head = answer.split(": ")[:2]
    return re.sub(r"\d{4,}|0x[0-9a-f]+|/tmp/\S+", "N", ": ".join(head))[:120]


def run_campaign(sandbox: Sandbox, name: str, count: int, number: int = 0) -> Campaign:
    """Run `count` cases, a function of the seed `number`."""
    make, target, _ = CAMPAIGNS[name]
    campaign = Campaign(name)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: DataObject) -> None:
        case = make(data)
        campaign.add(case, sandbox.run(target, case))

    run()
    return campaign
