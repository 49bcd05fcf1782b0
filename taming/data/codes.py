"""Codes of a frozen first stage in place of images: what `scripts/encode_dataset.py` has written.

A folder of codes has a `manifest.json`, and two memory maps per split:

    <split>.codes.npy        (images, copies, h, w), row by row
    <split>.conditions.npy   (images, copies, h, w) or (images, copies, n), if there are conditions

Both are uint16, or int32 where there are more than 65,536 different codes. Copies are random crops
of the same image, each also mirrored, as the manifest's `protocol` says. Reading them needs no
image, and no first stage.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import Dataset

from taming.config_values import FilePath
from taming.data.base import Item
from taming.data.draws import number_below
from taming.data.from_config import SPLITS
from taming.errors import UserError
from taming.shipped import script
from taming.user_code import name_of
from taming.user_files import read_text, with_home

MANIFEST = "manifest.json"
UNFINISHED = "unfinished"  # the folder of what an encoding has so far
VERSION = 1
MOST_IN_UINT16 = 2**16
SCRIPT = script("encode_dataset")
# The entries of items; models know batches of codes by the first.
CODES, CONDITION = "codes", "condition_codes"


@dataclass(frozen=True)
class ArrayFile:
    """A memory map of a folder: its name there, and what has to be in its header."""

    file: str
    dtype: str
    shape: tuple[int, ...]

    def open(self, folder: Path) -> np.ndarray:
        """The array, mapped into memory; UserError unless it is whole and as the manifest says."""
        path = folder / self.file
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except FileNotFoundError:
            raise _damage(path, "is missing") from None
        except (ValueError, OSError, EOFError):
            raise _damage(path, "is cut short or damaged") from None
        if (str(array.dtype), array.shape) != (self.dtype, self.shape):
            there, here = (f"{d} {list(s)}" for d, s in ((array.dtype, array.shape), self._kind))
            raise _damage(path, f"holds {there}, and {MANIFEST} says {here}")
        return array

    @property
    def _kind(self) -> tuple[str, tuple[int, ...]]:
        return self.dtype, self.shape


def _damage(path: Path, what: str) -> UserError:
    return UserError(f"{path} {what}; copy it again, or write it anew with {SCRIPT}")


@dataclass(frozen=True)
class SplitFiles:
    """The codes of a split, and those of its conditions, if there are any."""

    images: int
    copies: int
    codes: ArrayFile
    conditions: ArrayFile | None

    @classmethod
    def read(cls, entry: Mapping[str, Any]) -> SplitFiles:
        files = {
            name: one and ArrayFile(one["file"], one["dtype"], tuple(one["shape"]))
            for name, one in entry.items()
            if name in ("codes", "conditions")
        }
        return cls(entry["images"], entry["copies"], files["codes"], files["conditions"])


@dataclass(frozen=True)
class Settings:
    """What decides the bytes of a folder of codes.

    Attributes:
        first_stage: `n_codes`, `weights` (their hash) and the class.
        condition: the stage that made the conditions, likewise; None without conditions.
        protocol: `image_key`, `size` (height and width of the images), `crops`, `flips`, `seed`.
        datasets: their configs, number of images and copies of each, by split.
        config: the configs of both stages.
        version: of this format.
        files: by split, a hash of the paths, sizes and times of change of its files; those of
            earlier versions are not known.
    """

    first_stage: dict[str, Any]
    condition: dict[str, Any] | None
    protocol: dict[str, Any]
    datasets: dict[str, Any]
    config: dict[str, Any]
    version: int = VERSION
    files: dict[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """As it is read again: YAML has more kinds of values than JSON."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self), default=str))
        return content


@dataclass(frozen=True)
class Manifest:
    """The content of `manifest.json`: the settings, and the files of each split."""

    settings: Settings
    splits: dict[str, SplitFiles]

    def as_json(self) -> dict[str, Any]:
        files = {split: asdict(one) for split, one in self.splits.items()}
        return {**self.settings.as_json(), "splits": files}


def read_manifest(folder: Path) -> Manifest:
    """What a folder of codes says of itself.

    Raises:
        UserError: if it is none, is incomplete, damaged or of a later version.
    """
    path = folder / MANIFEST
    if (folder / UNFINISHED).is_dir() and not path.is_file():
        raise UserError(f"the codes in {folder} are incomplete; go on with the same {SCRIPT} ...")
    if not path.is_file():
        raise UserError(f"{folder} has no codes ({MANIFEST}); write them with {SCRIPT}")
    try:
        content = json.loads(read_text(path))
        if content["version"] != VERSION:
            raise UserError(
                f"{path} is of version {content['version']} of the format, and this is version "
                f"{VERSION}; write the codes anew with {SCRIPT}"
            )
        splits = {name: SplitFiles.read(entry) for name, entry in content.pop("splits").items()}
        return Manifest(Settings(**content), splits)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise _damage(path, "is damaged") from None


class CodeDataset(Dataset[Item]):
    """A split of a folder of codes.

    Items: `codes`, int64 (h, w); `condition_codes`, int64 (h, w) or (n,), if the data have
    conditions; and the number of the class under the model's key, if that is the condition. Of
    several copies one is chosen by Python's global generator, which is seeded for each item.

    Raises:
        UserError: for what `read_manifest` refuses, a split that was not encoded, and files that
            are not as the manifest says; while loading, for codes that there are not.

    Attributes:
        vocabulary: how many tokens the model that is trained has for conditions, once it is known.
    """

    vocabulary: int | None = None

    def __init__(
        self, folder: FilePath, split: Literal["train", "validation", "test"] = "train"
    ) -> None:
        self.folder, self.split = with_home(Path(folder)), split
        self.manifest = read_manifest(self.folder)
        if split not in self.manifest.splits:
            known = " and ".join(self.manifest.splits)
            raise UserError(
                f"{folder} has no codes of data.params.{split}, only of {known}; encode it with "
                f"{SCRIPT}, or leave it out with data.params.{split}=null"
            )
        self.files = self.manifest.splits[split]
        self._n_codes: int = self.manifest.settings.first_stage["n_codes"]
        condition = self.manifest.settings.condition
        self._class_key = condition["key"] if condition and condition["kind"] == "class" else ""
        self._arrays: dict[str, np.ndarray] = {}
        self._open()

    def _open(self) -> dict[str, np.ndarray]:
        if not self._arrays:
            files = {CODES: self.files.codes, CONDITION: self.files.conditions}
            self._arrays = {key: one.open(self.folder) for key, one in files.items() if one}
        return self._arrays

    def __getstate__(self) -> dict[str, Any]:
        # A memory map is pickled with all that it maps: a loader's workers open their own.
        return vars(self) | {"_arrays": {}}

    def __len__(self) -> int:
        return self.files.images

    def __getitem__(self, index: int) -> Item:
        copies = self.files.copies
        copy = number_below(copies) if copies > 1 else 0
        item = {key: array[index, copy].astype(np.int64) for key, array in self._open().items()}
        self._check(index, item[CODES], self.files.codes, self._n_codes)
        if self.files.conditions:
            self._check(index, item[CONDITION], self.files.conditions)
            self._check_known(index, int(item[CONDITION].max()), self.files.conditions)
        return item | ({self._class_key: int(item[CONDITION][0])} if self._class_key else {})

    def _check(self, index: int, codes: np.ndarray, file: ArrayFile, count: int = 2**31) -> None:
        low, high = int(codes.min()), int(codes.max())
        if low < 0 or high >= count:
            code = f"{low}" if low < 0 else f"{high} of {count}"
            path = self.folder / file.file
            raise _damage(path, f"is damaged: image {index} has code {code}")

    def _check_known(self, index: int, token: int, file: ArrayFile) -> None:
        if self.vocabulary is not None and token >= self.vocabulary:
            raise UserError(
                f"{self.folder / file.file}: image {index} has the token {token}, and "
                f"transformer_config.params.vocab_size is {self.vocabulary}; make it at least "
                f"{token + 1}, or, if the file is damaged, write it anew with {SCRIPT}"
            )


# ---------------------------------------------------------------------- in configs


def code_datasets(folder: str, splits: Iterable[str] = ()) -> dict[str, Any]:
    """Configs of the codes in `folder`, for these splits or, without any, for all that it has."""
    chosen: Sequence[str] = list(splits) or list(read_manifest(Path(folder)).splits)
    target = name_of(CodeDataset)
    return {s: {"target": target, "params": {"folder": folder, "split": s}} for s in chosen}


def leave_codes_out(config: DictConfig) -> None:
    """Have a config, which may name codes, read its images."""
    OmegaConf.update(config, "data.params.codes", None)


def with_codes(config: DictConfig) -> DictConfig:
    """`config` as training uses it: with `data.params.codes`, its datasets are those of the codes.

    The images, which need not be there, stay in the config that is kept in the run's folder, for
    evaluation and for sampling.
    """
    folder = OmegaConf.select(config, "data.params.codes", throw_on_missing=False)
    if folder is None:
        return config
    used = config.copy()
    params = used.data.params
    for split, section in code_datasets(str(folder), filter(params.get, SPLITS)).items():
        OmegaConf.update(params, split, section, merge=False)
    return used
