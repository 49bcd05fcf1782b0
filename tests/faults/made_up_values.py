"""Values that configs do not expect, and changes that put them into good input."""

from __future__ import annotations

import copy
from typing import Any

from hypothesis import strategies as st
from hypothesis.strategies import DataObject, SearchStrategy

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
attack = st.sampled_from(ATTACKS)
_node = st.one_of(st.tuples(st.sampled_from(TARGETS), st.sampled_from(PARAMS)), attack).map(
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
