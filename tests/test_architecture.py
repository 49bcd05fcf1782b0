"""Who may import whom: each room of the package only what lies below it (see README)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LEAVES = {"config", "checkpoint", "checkpoint_formats", "checkpoint_modules", "errors", "util"}
LEAVES |= {"lr_scheduler"}
ALLOWED = {
    "modules": {"downloads", "errors", "modules", "util"},
    "models": {"modules", "models", *LEAVES},
    "data": {"data", "config", "errors", "util"},
    "config": {"errors"},
    "checkpoint": {"checkpoint_fit", "checkpoint_formats", "config", "errors"},
    "checkpoint_fit": {"errors"},
    "checkpoint_formats": {"errors"},
    "checkpoint_modules": {"checkpoint_formats", "errors"},
    "downloads": {"errors"},
    "errors": set(),
    "pretrained": {"checkpoint_formats", "downloads", "errors"},
    "util": {"downloads", "errors"},
    "lr_scheduler": set(),
    "export": {"export", "models", "modules", *LEAVES},
    "sampling": {"sampling", "data", "models", "modules", *LEAVES},
    "evaluation": {"evaluation", "sampling", "models", "modules", "data", "downloads", *LEAVES},
    "training": {"training", "models", "modules", "data", *LEAVES},
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
