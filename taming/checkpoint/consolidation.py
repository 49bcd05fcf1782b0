"""Checkpoints in shards -> checkpoints of one file, which everything reads."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from taming.checkpoint.formats import read_checkpoint, read_content
from taming.checkpoint.runs import find_run, normal_path
from taming.checkpoint.saving import save_atomic
from taming.checkpoint.shards import SHARDS, filled, has_shards, remove_unused
from taming.checkpoint.weight_sets import say
from taming.errors import UserError

LEFT_OUT = "it is left out"
NOTHING_REMOVED = "no shards are removed, of which it may need some"


def consolidate(path: str | Path, target: str | Path | None = None) -> list[Path]:
    """Join the shards of a checkpoint, or of all checkpoints of a run; returns the files written.

    They take the place of those in shards, which are removed; with a `target`, the checkpoint (of a
    run, the one that it goes on from) is written there, and its shards stay. Weights and optimizer
    state are those that a single process would have written: such a run goes on on any number of
    devices, sharded or not. Needs memory for one checkpoint.

    Raises:
        UserError: if there are no shards, or they are damaged.
    """
    found = find_run(path).checkpoint
    if target is not None:
        save_atomic(filled(_sharded(found), found), target)
        return [Path(target)]
    whole_run = normal_path(path).is_dir()
    paths = sorted(found.parent.glob("*.ckpt")) if whole_run else [found]
    by_shards: dict[str, list[Path]] = defaultdict(list)
    shards = _shards_of(paths)
    for each in paths:
        if name := shards[each]:
            by_shards[name].append(each)
    if not by_shards:
        _sharded(found)
    for first, *others in by_shards.values():
        save_atomic(filled(read_checkpoint(first), first), first, also=others)
    remove_unused_shards(found.parent)
    return [name for names in by_shards.values() for name in names]


def _sharded(path: Path) -> dict[str, object]:
    """The content of a checkpoint that is in shards."""
    content = read_checkpoint(path)
    if not has_shards(content):
        raise UserError(f"{path} has no shards: it is one file already, which needs no joining")
    return content


def remove_unused_shards(folder: Path) -> None:
    """Remove the shards beside the checkpoints of a folder that none of them names.

    All stay, which is said, while there is a file that cannot be read: it may need them.
    """
    shards = _shards_of(folder.glob("*.ckpt"), NOTHING_REMOVED)
    if None not in shards.values():
        remove_unused(folder, {name for name in shards.values() if name})


def _shards_of(paths: Iterable[Path], consequence: str = LEFT_OUT) -> dict[Path, str | None]:
    """The folder of the shards of each checkpoint, "" of those without; None, with a line, of files
    that cannot be read."""
    found: dict[Path, str | None] = {}
    for path in paths:
        try:
            content = read_content(path)
            found[path] = str(content[SHARDS].get("folder")) if has_shards(content) else ""
        except UserError as error:
            say(str(error), (consequence,))
            found[path] = None
    return found
