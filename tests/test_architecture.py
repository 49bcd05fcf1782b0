"""Who may import whom: each room of the package only what lies below it (see README)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Small files that any room may use.
GROUND = {"errors", "atomic_files", "devices", "distributed", "pictures", "command_line"}
LEAVES = GROUND | {
    "config",
    "checkpoint",
    "downloads",
    "lightning_internals",
    "lr_scheduler",
    "util",
}
ALLOWED = {
    "errors": set(),
    "atomic_files": {"errors"},
    "distributed": {"errors"},
    "devices": {"distributed", "errors"},
    "pictures": {"errors"},
    "command_line": {"errors"},
    "config": {"errors"},
    "lr_scheduler": {"config"},
    "lightning_internals": set(),
    "downloads": GROUND,
    "util": GROUND | {"downloads"},
    "checkpoint": GROUND | {"checkpoint", "config"},
    "pretrained": GROUND | {"checkpoint", "downloads", "models"},
    "model_loading": GROUND | {"checkpoint", "pretrained"},
    "modules": GROUND | {"downloads", "modules", "util"},
    "models": LEAVES | {"modules", "models"},
    "data": GROUND | {"data", "config", "util"},
    "export": LEAVES | {"export", "models", "modules"},
    "sampling": LEAVES | {"sampling", "data", "models", "modules"},
    "evaluation": LEAVES | {"evaluation", "sampling", "models", "modules", "data"},
    "training": LEAVES | {"training", "models", "modules", "data"},
}


def imported_rooms(path: Path) -> set[str]:
    names: list[str] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
    parts = [name.split(".") for name in names]
    assert not any(part[0] in ("main", "scripts") for part in parts), path
    return {part[1] for part in parts if part[0] == "taming" and len(part) > 1}


@pytest.mark.parametrize("path", sorted(ROOT.glob("taming/**/*.py")), ids=str)
def test_rooms_import_only_what_lies_below(path: Path) -> None:
    room = path.relative_to(ROOT / "taming").parts[0].removesuffix(".py")
    if room != "__init__":
        assert imported_rooms(path) <= ALLOWED[room], f"{path} imports across rooms"
