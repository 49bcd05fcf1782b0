"""Writing the codes of a dataset, and of its conditions (the format: `taming.data.codes`).

The work is cut into parts of fixed images, a file each in the folder `unfinished`. Processes share
the parts, an interrupted encoding goes on with those that are missing, and the first process joins
them at the end: the bytes are those of one process that was never interrupted.
"""

from __future__ import annotations

import json
import shutil
import struct
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from taming.atomic_files import atomic_path, check_place, remove_leftovers, sole_user, write_text
from taming.command_line import flag
from taming.config_files import STAGES
from taming.data.codes import (
    CODES,
    CONDITION,
    MANIFEST,
    MOST_IN_UINT16,
    UNFINISHED,
    ArrayFile,
    Manifest,
    Settings,
    SplitFiles,
    read_manifest,
)
from taming.data.copies import Copies
from taming.data.seeding import digest
from taming.data.utils import custom_collate
from taming.devices import computing_in, own_share
from taming.distributed import gather_objects
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.training.code_checks import describe_condition, describe_first_stage
from taming.training.data_module import DataModuleFromConfig
from taming.training.stopping import start_worker

PART = 256  # images of a part
Arrays = dict[str, np.ndarray]


@dataclass(frozen=True)
class EncodingOptions:
    """What is encoded of each training image. Other splits are encoded as the data have them."""

    flips: bool = flag(False, "mirrored copies of the training images as well")
    crops: int = flag(0, "random crops of each training image (default: the dataset's own crop)")
    seed: int = flag(23, "decides what is random in each image, together with its number")
    batch_size: int = flag(32, "images that are encoded at once")

    def __post_init__(self) -> None:
        if self.crops < 0 or self.batch_size < 1 or self.seed < 0:
            raise UserError("--crops and --seed are at least 0, and --batch_size at least 1")


class Encoding:
    """An encoding of all splits of `data` by the stages of `model`, into `folder`.

    `config` has the sections of model and data, of which the manifest tells.

    Raises:
        UserError: for what cannot be encoded, and a folder that holds other codes.
    """

    def __init__(
        self,
        model: Net2NetTransformer,
        data: DataModuleFromConfig,
        config: Mapping[str, Any],
        options: EncodingOptions,
        folder: Path,
    ) -> None:
        self.model, self.options, self.folder = model, options, folder
        self.workers = data.num_workers
        self.splits: dict[str, Copies] = {}
        for split, dataset in data.datasets.items():
            if isinstance(dataset, IterableDataset):
                raise UserError(f"data.params.{split}: a stream without a length has no codes")
            crops, flips = (options.crops, options.flips) if split == "train" else (0, False)
            self.splits[split] = Copies(dataset, crops, flips, options.seed)
        self.settings = Settings(
            first_stage=describe_first_stage(model.first_stage_model),
            condition=describe_condition(model),
            protocol={
                "image_key": model.first_stage_key,
                "size": self._image_size(),
                "crops": options.crops,
                "flips": options.flips,
                "seed": options.seed,
            },
            datasets={
                split: {
                    **config["data"]["params"][split],
                    "images": one.images,
                    "copies": one.copies,
                }
                for split, one in self.splits.items()
            },
            config={key: config["model"]["params"].get(key) for key in STAGES},
        )

    def _image_size(self) -> list[int]:
        """(height, width) of the images, of which the model is shown one of each split."""
        for copies in self.splits.values():
            batch = custom_collate([copies[0]])
            self.model.check_batch(batch)
        return list(self.model.get_xc(batch)[0].shape[2:])

    def run(self) -> Manifest:
        """Encode what is not encoded yet; in the processes above rank 0, their share of it."""
        rank, processes = own_share()
        check_place(self.folder, "give another folder by --out")
        self.folder.mkdir(parents=True, exist_ok=True)
        with sole_user(self.folder) if rank == 0 else nullcontext():
            self._check_folder()
            if (self.folder / MANIFEST).is_file():
                shutil.rmtree(self._unfinished, ignore_errors=True)
                return read_manifest(self.folder)
            if rank == 0:
                self._begin()
            parts = [(split, n) for split in self.splits for n in self._parts(split)]
            own = parts[rank::processes]
            self._encode([part for part in own if not self._path(*part).is_file()], len(own))
            gather_objects(None)  # all processes are through
            return self._join() if rank == 0 else Manifest(self.settings, {})

    # ------------------------------------------------------------------ the folder

    @property
    def _unfinished(self) -> Path:
        return self.folder / UNFINISHED

    def _path(self, split: str, number: int) -> Path:
        return self._unfinished / f"{split}-{number:06}.npz"

    def _parts(self, split: str) -> range:
        return range(-(-self.splits[split].images // PART))

    def _check_folder(self) -> None:
        """Refuse a folder with codes, or some of them, that other settings have made."""
        own = self.settings.as_json()
        for file in (self.folder / MANIFEST, self._unfinished / MANIFEST):
            if not file.is_file():
                continue
            try:
                stored = json.loads(file.read_text(encoding="utf-8"))
            except ValueError:
                raise UserError(f"{file} is damaged; give an empty folder by --out") from None
            for name, value in own.items():
                if stored.get(name) != value:
                    raise UserError(
                        f"{self.folder} has codes of another {name.replace('_', ' ')}: "
                        f"{_difference(stored.get(name), value)}; give another folder by --out"
                    )

    def _begin(self) -> None:
        remove_leftovers(self.folder)
        write_text(self._unfinished / MANIFEST, json.dumps(self.settings.as_json(), indent=1))
        for split, copies in self.splits.items():
            copies.say_what_is_fixed(split)

    # ------------------------------------------------------------------ encoding

    def _encode(self, parts: list[tuple[str, int]], all_parts: int) -> None:
        rank, processes = own_share()
        draws = sum(len(self._numbers(*part)) for part in parts)
        with tqdm(total=draws * processes, desc="encoding", unit="image", disable=rank > 0) as bar:
            for split in self.splits:
                chosen = [number for name, number in parts if name == split]
                for number, arrays in self._encoded(split, chosen, bar):
                    path = self._path(split, number)
                    with (
                        atomic_path(path, advice="make room and run again") as partial,
                        partial.open("wb") as file,
                    ):
                        np.savez(file, **arrays)  # type: ignore[arg-type]

    def _numbers(self, split: str, part: int) -> range:
        """The draws of a part, as `Copies` numbers them."""
        copies = self.splits[split]
        last = min((part + 1) * PART, copies.images)
        return range(part * PART * copies.draws, last * copies.draws)

    def _encoded(self, split: str, parts: list[int], bar: Any) -> Iterator[tuple[int, Arrays]]:
        """The arrays of parts of a split, by their numbers."""
        size, copies = self.options.batch_size, self.splits[split]
        batches = [
            (part, self._numbers(split, part)[first : first + size])
            for part in parts
            for first in range(0, len(self._numbers(split, part)), size)
        ]
        loader = DataLoader(
            copies,
            batch_sampler=[list(numbers) for _, numbers in batches],
            num_workers=self.workers if batches else 0,
            collate_fn=custom_collate,
            worker_init_fn=start_worker,
        )
        collected: list[Arrays] = []
        for (part, numbers), batch in zip(batches, loader, strict=True):
            if not collected:  # some quantizers choose codes at random
                place = (self.options.seed, list(self.splits).index(split), part)
                torch.manual_seed(struct.unpack("<Q", digest(*place)[:8])[0])
            collected.append(self._encode_batch(batch, copies.mirrored_later))
            bar.update(len(numbers) * own_share()[1])
            if numbers[-1] == self._numbers(split, part)[-1]:
                yield part, _joined(collected, copies.copies)
                collected = []

    @torch.inference_mode()
    def _encode_batch(self, batch: Mapping[str, Any], mirrors: bool) -> Arrays:
        """Codes (B, n, h, w) and conditions (B, n, ...) of a batch, n = 2 if it is mirrored too."""
        model = self.model
        x, c = (part.to(model.device) for part in model.get_xc(batch))
        views = [(x, c)]
        if mirrors:
            # Coordinates say where a crop is, and labels what is there: they stay.
            is_image = c.dim() == 4 and model.condition_kind != "coordinates"
            views.append((x.flip(-1), c.flip(-1) if is_image else c))
        with computing_in(torch.float32, model.device):
            codes = [model.first_stage_model.encode_to_indices(x) for x, _ in views]
            arrays = {CODES: _narrow(codes, model.n_codes)}
            if not model.be_unconditional:
                tokens = [_as_data_has_them(*model.encode_to_c(c)) for _, c in views]
                arrays[CONDITION] = _narrow(tokens, model.transformer.config.vocab_size)
        return arrays

    # ------------------------------------------------------------------ joining

    def _join(self) -> Manifest:
        splits = {split: self._join_split(split) for split in self.splits}
        manifest = Manifest(self.settings, splits)
        write_text(self.folder / MANIFEST, json.dumps(manifest.as_json(), indent=1) + "\n")
        shutil.rmtree(self._unfinished, ignore_errors=True)
        return manifest

    def _join_split(self, split: str) -> SplitFiles:
        copies = self.splits[split]
        names = {CODES: f"{split}.codes.npy", CONDITION: f"{split}.conditions.npy"}
        first = self._read(split, 0)
        files = {}
        for key, array in first.items():
            shape = (copies.images, *array.shape[1:])
            files[key] = ArrayFile(names[key], str(array.dtype), shape)
            path = self.folder / names[key]
            with atomic_path(path, durable=True, advice="make room and run again") as partial:
                with partial.open("wb") as file:
                    self._write(file, split, key, files[key])
        return SplitFiles(copies.images, copies.copies, files[CODES], files.get(CONDITION))

    def _write(self, file: BinaryIO, split: str, key: str, whole: ArrayFile) -> None:
        descr = np.lib.format.dtype_to_descr(np.dtype(whole.dtype))
        header = {"descr": descr, "fortran_order": False, "shape": whole.shape}
        np.lib.format.write_array_header_1_0(file, header)
        for number in self._parts(split):
            array = self._read(split, number)[key]
            if array.shape[1:] != whole.shape[1:]:
                raise UserError(
                    f"data.params.{split} gives {key} of several shapes, {list(whole.shape[2:])} "
                    f"and {list(array.shape[2:])}; give a crop_size, so that images have one size"
                )
            file.write(array.tobytes())

    def _read(self, split: str, number: int) -> Arrays:
        path = self._path(split, number)
        try:
            with np.load(path, allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except FileNotFoundError:
            raise UserError(f"{path} is missing; run again") from None
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile):
            path.unlink(missing_ok=True)
            raise UserError(f"{path} is damaged, and was removed; run again") from None


def _difference(stored: Any, own: Any) -> str:
    """The first entry that differs, as a clause."""
    if isinstance(stored, Mapping) and isinstance(own, Mapping):
        for name in [*own, *stored]:
            if stored.get(name) != own.get(name):
                return f"{name} was {stored.get(name)} and is now {own.get(name)}"
    return f"it was {stored} and is now {own}"


def _as_data_has_them(codes: Tensor, indices: Tensor) -> Tensor:
    """Indices [B, n] of conditions; in rows [B, h, w], if their codes [B, c, h, w] have these."""
    grid = codes.shape[2:]
    return indices.reshape(len(indices), *grid) if codes.dim() == 4 else indices


def _narrow(views: list[Tensor], count: int) -> np.ndarray:
    """Indices below `count`, (B, n, ...) of n times [B, ...], in as few bytes as they need."""
    indices = torch.stack(views, dim=1)
    low, high = int(indices.min()), int(indices.max())
    if low < 0 or high >= count:
        raise UserError(
            f"the data have tokens from {low} to {high}, and transformer_config.params.vocab_size "
            f"is {count}; make it at least {high + 1}"
        )
    return indices.cpu().numpy().astype(np.uint16 if count <= MOST_IN_UINT16 else np.int32)


def _joined(batches: list[Arrays], copies: int) -> Arrays:
    """The arrays of a part, (images, copies, ...), from those of its batches of draws."""
    whole = {key: np.concatenate([batch[key] for batch in batches]) for key in batches[0]}
    return {key: array.reshape(-1, copies, *array.shape[2:]) for key, array in whole.items()}
