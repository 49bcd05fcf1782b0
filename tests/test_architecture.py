"""The structure of the package: who imports whom, and one home for each thing."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.support import ROOT

PACKAGE = sorted(ROOT.glob("taming/**/*.py"))
SOURCES = [*PACKAGE, *sorted(ROOT.glob("scripts/*.py")), ROOT / "main.py"]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@cache
def nodes_of(path: Path) -> list[ast.AST]:
    return list(ast.walk(tree_of(path)))


written = cache(ast.unparse)


# ---------------------------------------------------------------------- who imports whom

# Small files that any room may use.
GROUND = {"errors", "atomic_files", "devices", "distributed", "pictures", "command_line"}
GROUND |= {"limits", "published_names", "trust", "weight_choice", "config_values", "user_code"}
GROUND |= {"kernel_choice", "published_models", "run_length", "sharding", "user_files", "words"}
GROUND |= {"fonts", "freed_memory", "imports", "shipped", "signatures"}
LEAVES = GROUND | {
    "config",
    "config_before",
    "config_files",
    "checkpoint",
    "downloads",
    "figures",
    "lightning_internals",
    "lr_scheduler",
    "util",
}
ALLOWED = {
    "errors": set(),
    "user_files": set(),
    "signatures": set(),
    "words": set(),
    "imports": set(),
    "shipped": {"errors", "user_files"},
    "completion_script": {"command_line"},
    "__main__": {"program"},
    "program": {
        *("atomic_files", "command_line", "completion_script", "demo", "errors", "imports"),
        *("published_models", "shipped", "training"),
    },
    "atomic_files": {"errors"},
    "distributed": {"devices", "errors"},
    "devices": {"errors", "freed_memory"},
    "freed_memory": set(),
    "sharding": {"distributed", "errors"},
    "fonts": set(),
    "pictures": {"errors", "fonts"},
    "figures": {"atomic_files", "errors", "shipped"},
    "published_models": {"errors", "shipped"},
    "published_names": {"errors"},
    "trust": {"atomic_files", "errors"},
    "user_code": {"errors"},
    "weight_choice": {"errors"},
    "command_line": {"errors", "shipped", "trust", "user_files", "weight_choice"},
    "kernel_choice": {"atomic_files", "devices", "errors"},
    "config_files": {"config_values", "errors", "shipped", "trust"},
    "limits": {"errors"},
    "config_values": {"run_length", "signatures", "user_files"},
    "config_names": {"config_files", "errors", "trust"},
    "config_targets": {"config_values", "errors", "trust", "user_code"},
    "config_schema": {"config_targets", "config_values", "errors"},
    "config_keys": {"config_files", "config_targets", "config_values", "errors", "trust"},
    "config": {
        *("config_files", "config_keys", "config_names", "config_schema", "config_targets"),
        *("config_values", "errors", "limits", "user_code"),
    },
    "config_before": {"config", "errors", "signatures"},
    "lr_scheduler": {"config", "config_values", "errors", "run_length", "user_code"},
    "run_length": {"errors"},
    "lightning_internals": set(),
    "downloads": GROUND,
    "util": GROUND | {"downloads"},
    "checkpoint": GROUND
    | {"checkpoint", "config", "config_before", "config_files", "config_schema"},
    "pretrained": GROUND | {"checkpoint", "downloads", "models"},
    "model_loading": GROUND | {"checkpoint", "modules", "pretrained"},
    "modules": GROUND | {"config", "downloads", "modules", "util"},
    "models": LEAVES | {"modules", "models"},
    "data": GROUND | {"data", "checkpoint", "config", "util"},
    "export": LEAVES | {"export", "models", "modules"},
    "sampling": LEAVES | {"sampling", "data", "models", "modules"},
    "evaluation": LEAVES | {"evaluation", "sampling", "models", "modules", "data"},
    "guidance": LEAVES | {"guidance", "evaluation", "sampling", "models", "modules"},
    "training": LEAVES | {"training", "models", "modules", "data"},
    "gallery": LEAVES | {"gallery", "sampling", "data", "training"},
    "demo": LEAVES | {"demo", "guidance", "sampling", "models", "modules", "data"},
}


def imported_names(path: Path) -> Iterator[str]:
    """Dotted names of all imports: at the top, in functions, and those for type hints."""
    for node in nodes_of(path):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_rooms_import_only_what_lies_below(path: Path) -> None:
    parts = [name.split(".") for name in imported_names(path)]
    assert not any(part[0] in ("main", "scripts", "tests") for part in parts)
    rooms = {part[1] for part in parts if part[0] == "taming" and len(part) > 1}
    room = path.relative_to(ROOT / "taming").parts[0].removesuffix(".py")
    if room != "__init__":
        assert rooms <= ALLOWED[room], f"{path} imports across rooms"


def file_of(name: str) -> Path | None:
    """The file of the package that the import of a dotted name reads."""
    while name.startswith("taming"):
        place = ROOT / name.replace(".", "/")
        for path in (place.with_suffix(".py"), place / "__init__.py"):
            if path.is_file():
                return path
        name = name.rpartition(".")[0]
    return None


def circle(imports: dict[Path, set[Path]]) -> list[Path]:
    """Files that import each other around a circle; empty if there are none."""
    finished: set[Path] = set()

    def walk(path: Path, way: list[Path]) -> list[Path]:
        if path in way:
            return way[way.index(path) :]
        if path in finished:
            return []
        for other in sorted(imports[path]):
            if around := walk(other, [*way, path]):
                return around
        finished.add(path)
        return []

    for start in imports:
        if around := walk(start, []):
            return around
    return []


def test_no_circles_between_files() -> None:
    imports = {
        path: {file for name in imported_names(path) if (file := file_of(name)) not in (None, path)}
        for path in PACKAGE
    }
    assert [name_of(path) for path in circle(imports)] == []  # type: ignore[arg-type]


def test_circles_are_noticed() -> None:
    a, b, c, d = map(Path, "abcd")
    assert circle({a: {b, d}, b: {c}, c: {b}, d: set()}) == [b, c]
    assert circle({a: {b, c}, b: {c}, c: set()}) == []


# ---------------------------------------------------------------------- one home for each thing


def is_call(node: ast.AST, *names: str) -> bool:
    return isinstance(node, ast.Call) and written(node.func) in names


def moves_a_file(node: ast.AST) -> bool:
    """`os.replace(a, b)`, `path.replace(b)`, `path.rename(b)`; a text's `replace` has two."""
    if is_call(node, "os.replace", "os.rename", "shutil.move"):
        return True
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr in ("replace", "rename")
        and len(node.args) == 1
        and not node.keywords
    )


def scales_pixels(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and node.value == 127.5


def makes_a_page(node: ast.AST) -> bool:
    return is_call(node, "Image.new") and written(node).startswith("Image.new('RGB'")


def makes_a_parser_class(node: ast.AST) -> bool:
    return isinstance(node, ast.ClassDef) and any(
        written(base).endswith("ArgumentParser") for base in node.bases
    )


def counts_cpus(node: ast.AST) -> bool:
    names = ("sched_getaffinity", "cpu_count")
    return isinstance(node, ast.Attribute) and node.attr in names


def talks_to_processes(node: ast.AST) -> bool:
    if isinstance(node, ast.Import):
        return any(alias.name.startswith("torch.distributed") for alias in node.names)
    if isinstance(node, ast.ImportFrom):
        return f"{node.module}.".startswith("torch.distributed.")
    return isinstance(node, ast.Attribute) and written(node) == "torch.distributed"


LIGHTNING = {
    "_checkpoint_connector",
    "_data_connector",
    "_ddp_params_and_buffers_to_ignore",
    "batch_progress",
    "block_backward_sync",
    "epoch_loop",
    "optim_step_progress",
}


def reaches_into_lightning(node: ast.AST) -> bool:
    if isinstance(node, ast.Constant):
        return node.value in LIGHTNING
    return isinstance(node, ast.Attribute) and (
        node.attr in LIGHTNING
        or (node.attr.startswith("_") and written(node.value).split(".")[-1] == "trainer")
    )


# What is done in one file, and the files that have a reason to do it as well.
HOMES: dict[str, tuple[Callable[[ast.AST], bool], dict[str, str]]] = {
    "taming/atomic_files.py": (
        moves_a_file,
        {
            "taming/downloads.py": "partial downloads stay, to be continued",
            "taming/pretrained.py": "a download that has been verified",
            "taming/training/cli.py": "a whole folder, to debug_runs",
        },
    ),
    "taming/pictures.py": (scales_pixels, {}),
    "taming/pictures.py, pages": (
        makes_a_page,
        {"taming/data/conditional_builder/objects_center_points.py": "a canvas for scenes"},
    ),
    "taming/command_line.py": (makes_a_parser_class, {}),
    "taming/devices.py": (counts_cpus, {}),
    "taming/distributed.py": (
        talks_to_processes,
        {"taming/sharding.py": "weights that are divided among processes"},
    ),
    "taming/lightning_internals.py": (reaches_into_lightning, {}),
}


@pytest.mark.parametrize("path", [*PACKAGE, *ROOT.glob("scripts/*.py")], ids=name_of)
def test_messages_call_scripts_as_they_are_there(path: Path) -> None:
    """In an installation there are subcommands alone: `taming.shipped.script` knows; `extra` knows
    how extras are installed."""
    explained = {id(node.value) for node in nodes_of(path) if isinstance(node, ast.Expr)}
    texts = [
        node.value
        for node in nodes_of(path)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        if id(node) not in explained and name_of(path) != "taming/shipped.py"
    ]  # of an f-string, which may go on with a name, each part
    named = re.compile(r"scripts/(\w+\.py|$)|python main|/main\.py|taming-transformers\[")
    assert [text for text in texts if named.search(text)] == []


@pytest.mark.parametrize("home", HOMES)
def test_each_thing_has_one_home(home: str) -> None:
    is_done, reasons = HOMES[home]
    allowed = {home.split(",", maxsplit=1)[0], *reasons}
    places = {
        f"{name_of(path)}:{getattr(node, 'lineno', 0)}"
        for path in SOURCES
        if name_of(path) not in allowed
        for node in nodes_of(path)
        if is_done(node)
    }
    assert not places
    for path in allowed:  # an exception that is not needed any more goes
        assert any(map(is_done, nodes_of(ROOT / path))), path


@pytest.mark.parametrize(
    ("home", "source"),
    [
        ("taming/atomic_files.py", "partial.replace(path)"),
        ("taming/atomic_files.py", "os.rename(a, b)"),
        ("taming/pictures.py", "x / 127.5 - 1"),
        ("taming/pictures.py, pages", "Image.new('RGB', size)"),
        ("taming/command_line.py", "class P(argparse.ArgumentParser): ..."),
        ("taming/devices.py", "os.cpu_count()"),
        ("taming/distributed.py", "import torch.distributed as dist"),
        ("taming/distributed.py", "from torch.distributed import all_reduce"),
        ("taming/distributed.py", "torch.distributed.is_available()"),
        ("taming/lightning_internals.py", "self.trainer._run(model)"),
        ("taming/lightning_internals.py", "getattr(strategy, 'block_backward_sync', None)"),
    ],
)
def test_second_homes_are_noticed(home: str, source: str) -> None:
    assert any(map(HOMES[home][0], ast.walk(ast.parse(source))))
    innocent = "text.replace('a', 'b'); replace(plan, seed=1); Image.new('L', size); x / 2"
    assert not any(map(HOMES[home][0], ast.walk(ast.parse(innocent))))


# ---------------------------------------------------------------------- size and shape


def test_no_call_has_more_than_five_positional_arguments() -> None:
    calls = [
        f"{name_of(path)}:{node.lineno}: {written(node.func)}"
        for path in SOURCES
        for node in nodes_of(path)
        if isinstance(node, ast.Call) and len(node.args) > 5
    ]
    assert calls == []


def test_few_models_of_any_type_and_few_looks_for_attributes() -> None:
    nodes = [(name_of(path), node) for path in PACKAGE for node in nodes_of(path)]
    models = [
        f"{path}:{node.lineno}"
        for path, node in nodes
        if isinstance(node, ast.arg)
        and node.arg == "model"
        and node.annotation is not None
        and written(node.annotation) == "Any"
    ]
    assert len(models) <= 15, models
    looks = [f"{path}:{node.lineno}" for path, node in nodes if is_call(node, "hasattr", "getattr")]  # type: ignore[attr-defined]
    assert len(looks) <= 25, looks


@pytest.mark.parametrize("path", PACKAGE, ids=name_of)
def test_files_say_what_they_are_for_and_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 330
    assert ast.get_docstring(tree_of(path)) or not text.strip()
