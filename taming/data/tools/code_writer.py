"""Writing folders of codes in parts, which are joined at the end (the format: `taming.data.codes`).

A part has the codes of so many images, in a file of its own. Processes share the parts, and an
interrupted encoding goes on with those that are missing: the bytes of the whole are always those of
one process that was never interrupted.
"""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from taming.atomic_files import atomic_path, remove_leftovers, write_text
from taming.data.codes import (
    CODES,
    CONDITION,
    MANIFEST,
    UNFINISHED,
    ArrayFile,
    Manifest,
    Settings,
    SplitFiles,
    read_manifest,
)
from taming.errors import UserError

PART = 256  # images of a part
ADVICE = "make room and run again"
Arrays = dict[str, np.ndarray]  # by `CODES` and `CONDITION`, (images, copies, ...)
Part = tuple[str, int]  # of a split


class CodeWriter:
    """What is in a folder so far, of the codes that `settings` decide.

    Raises:
        UserError: if it holds other codes.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder, self.settings = folder, settings
        self.unfinished = folder / UNFINISHED
        for file in (folder / MANIFEST, self.unfinished / MANIFEST):
            if file.is_file():
                self._check_same(file)

    def _check_same(self, file: Path) -> None:
        try:
            stored = json.loads(file.read_text(encoding="utf-8"))
        except ValueError:
            stored = None
        if not isinstance(stored, dict):
            raise UserError(f"{file} is damaged; give an empty folder by --out")
        own = self.settings.as_json()
        before, now = stored.get("files", {}), own.pop("files")
        if changed := [split for split in now if before.get(split, now[split]) != now[split]]:
            raise UserError(
                f"{self.folder} has codes of files of data.params.{changed[0]} that have changed "
                "since; give another folder by --out"
            )
        for name, value in own.items():
            before, now = _as_both_say(stored.get(name), self._as_was_hashed(name, value, stored))
            if before != now:
                raise UserError(
                    f"{self.folder} has codes of another {name.replace('_', ' ')}: "
                    f"{_difference(before, now)}; give another folder by --out"
                )

    def _as_was_hashed(self, name: str, value: Any, stored: Mapping[str, Any]) -> Any:
        """Of a stage with the same weights, by the hash that earlier versions made of them."""
        stages = {"first_stage": self.settings.first_stage, "condition": self.settings.condition}
        was, stage = stored.get(name), stages.get(name)
        if stage and isinstance(was, dict) and stage.get("weights") == was.get("weights"):
            return {**value, "weights": was["weights"]}
        return value

    def finished(self) -> Manifest | None:
        """The manifest, if all is done."""
        return read_manifest(self.folder) if (self.folder / MANIFEST).is_file() else None

    def begin(self) -> None:
        """Note the settings, and remove what a killed process has left behind."""
        remove_leftovers(self.folder)
        text = json.dumps(self.settings.as_json(), indent=1)
        write_text(self.unfinished / MANIFEST, text)

    # ------------------------------------------------------------------ parts

    def parts(self) -> list[Part]:
        """All parts of all splits, finished or not."""
        return [(split, number) for split in self.settings.datasets for number in self._of(split)]

    def _of(self, split: str) -> range:
        return range(-(-self.settings.datasets[split]["images"] // PART))

    def images(self, part: Part) -> range:
        """The indices of a part's images."""
        split, number = part
        return range(
            number * PART, min((number + 1) * PART, self.settings.datasets[split]["images"])
        )

    def has(self, part: Part) -> bool:
        return self._path(part).is_file()

    def save(self, part: Part, arrays: Arrays) -> None:
        """Keep a part; its file is whole or not there."""
        with atomic_path(self._path(part), advice=ADVICE) as partial, partial.open("wb") as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]

    def _path(self, part: Part) -> Path:
        return self.unfinished / "{}-{:06}.npz".format(*part)

    def _read(self, part: Part) -> Arrays:
        path = self._path(part)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise UserError(f"{path} is missing; run again") from None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            raise UserError(f"{path} is damaged, and was removed; run again") from None

    # ------------------------------------------------------------------ the whole

    def join(self) -> Manifest:
        """Make of the parts what they are for, and remove them."""
        splits = {split: self._join_split(split) for split in self.settings.datasets}
        manifest = Manifest(self.settings, splits)
        write_text(self.folder / MANIFEST, json.dumps(manifest.as_json(), indent=1) + "\n")
        self.remove_parts()
        return manifest

    def remove_parts(self) -> None:
        shutil.rmtree(self.unfinished, ignore_errors=True)

    def _join_split(self, split: str) -> SplitFiles:
        dataset = self.settings.datasets[split]
        names = {CODES: f"{split}.codes.npy", CONDITION: f"{split}.conditions.npy"}
        files = {}
        for key, array in self._read((split, 0)).items():
            shape = (dataset["images"], *array.shape[1:])
            files[key] = ArrayFile(names[key], str(array.dtype), shape)
            path = self.folder / names[key]
            with (
                atomic_path(path, durable=True, advice=ADVICE) as partial,
                partial.open("wb") as file,
            ):
                _write(file, files[key], (self._read((split, n))[key] for n in self._of(split)))
        return SplitFiles(dataset["images"], dataset["copies"], files[CODES], files.get(CONDITION))


def _write(file: BinaryIO, whole: ArrayFile, parts: Iterator[np.ndarray]) -> None:
    """A .npy file from its parts, one after another: what a full disk ends is an error, while it
    would end the process in writing to a memory map."""
    descr = np.lib.format.dtype_to_descr(np.dtype(whole.dtype))
    header = {"descr": descr, "fortran_order": False, "shape": whole.shape}
    np.lib.format.write_array_header_1_0(file, header)
    for part in parts:
        if part.shape[1:] != whole.shape[1:]:
            raise UserError(
                f"{whole.file}: images or conditions have several sizes, {whole.shape[2:]} and "
                f"{part.shape[2:]} in codes; give a crop_size"
            )
        file.write(part.tobytes())


def _as_both_say(before: Any, now: Any) -> tuple[Any, Any]:
    """Descriptions of a stage without what one of them leaves out, as those of earlier versions do:
    `quantizer`, and some or all `settings`. Other values as they are."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return before, now
    both = before.keys() & now.keys()
    new = {name for name in ("quantizer", "settings") if name not in both}
    before, now = ({k: v for k, v in each.items() if k not in new} for each in (before, now))
    if isinstance(before.get("settings"), dict) and isinstance(now.get("settings"), dict):
        said = before["settings"].keys() & now["settings"].keys()
        before, now = (
            each | {"settings": {key: each["settings"][key] for key in sorted(said)}}
            for each in (before, now)
        )
    return before, now


def _difference(stored: Any, own: Any) -> str:
    """The first entry that differs, as a clause."""
    if isinstance(stored, Mapping) and isinstance(own, Mapping):
        for name in [*own, *stored]:
            if stored.get(name) != own.get(name):
                return f"{name}: {_difference(stored.get(name), own.get(name))}"
    return f"{stored} before, and {own} now"
