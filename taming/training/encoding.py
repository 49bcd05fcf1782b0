"""Datasets to the codes that a transformer's frozen stages make of them."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset
from tqdm import tqdm

from taming.atomic_files import check_place, sole_user
from taming.command_line import flag
from taming.config_files import STAGES
from taming.data.codes import CODES, CONDITION, MOST_IN_UINT16, Manifest, Settings
from taming.data.copies import Copies
from taming.data.file_versions import version_of
from taming.data.seeding import digest
from taming.data.tools.code_writer import Arrays, CodeWriter, Part
from taming.data.utils import custom_collate, start_method
from taming.devices import computing_in, own_share
from taming.distributed import gather_objects
from taming.errors import UserError, interruptible
from taming.models.cond_transformer import Net2NetTransformer
from taming.models.stage_identity import describe_condition, describe_first_stage
from taming.training.data_module import DataModuleFromConfig
from taming.training.stopping import start_worker


@dataclass(frozen=True)
class EncodingOptions:
    """What is encoded of each training image. Other splits are encoded as the data have them."""

    flips: bool = flag(False, "mirrored copies of the training images as well")
    crops: int = flag(0, "random crops of each training image; 0: the dataset's own crop")
    seed: int = flag(23, "decides what is random in each image, together with its number")
    batch_size: int = flag(32, "images that are encoded at once")

    def __post_init__(self) -> None:
        if self.crops < 0 or self.batch_size < 1 or not 0 <= self.seed < 2**32:
            raise UserError("--crops and --seed are at least 0, and --batch_size at least 1")


class Encoding:
    """The encoding of all splits of `data` by the stages of `model`, into `folder`.

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
        self.model, self.options, self.workers = model, options, data.num_workers
        self.splits = {split: self._copies(split, one) for split, one in data.datasets.items()}
        if not self.splits:
            raise UserError("the data section names no datasets; add data.params.train")
        params = config["data"]["params"]
        files = {s: version_of(one, params[s]) for s, one in data.datasets.items()}
        self.writer = CodeWriter(folder, replace(self._settings(config), files=files))

    def _copies(self, split: str, dataset: Any) -> Copies:
        if isinstance(dataset, IterableDataset):
            raise UserError(f"data.params.{split}: a stream without a length has no codes")
        options = self.options
        crops, flips = (options.crops, options.flips) if split == "train" else (0, False)
        return Copies(dataset, crops, flips, options.seed)

    def _settings(self, config: Mapping[str, Any]) -> Settings:
        counts = {s: {"images": one.images, "copies": one.copies} for s, one in self.splits.items()}
        return Settings(
            first_stage=describe_first_stage(self.model.first_stage_model),
            condition=describe_condition(self.model),
            protocol={
                "image_key": self.model.first_stage_key,
                "size": self._image_size(),
                "crops": self.options.crops,
                "flips": self.options.flips,
                "seed": self.options.seed,
            },
            datasets={s: {**config["data"]["params"][s], **counts[s]} for s in self.splits},
            config={key: config["model"]["params"].get(key) for key in STAGES},
        )

    def _image_size(self) -> list[int]:
        """(height, width) of the images, of which the model is shown one of each split."""
        for copies in self.splits.values():
            batch = custom_collate([copies[0]])
            self.model.check_batch(batch)
        return list(self.model.get_xc(batch)[0].shape[2:])

    @interruptible("finished parts are kept, and the same command goes on with the rest")
    def run(self) -> Manifest | None:
        """Encode what is not encoded yet. Processes above rank 0 do their share, and return None.

        Raises:
            UserError: if the folder cannot be written to, or another process does so.
        """
        rank, processes = own_share()
        writer, folder = self.writer, self.writer.folder
        check_place(folder, "give another folder by --out")
        folder.mkdir(parents=True, exist_ok=True)
        with sole_user(folder) if rank == 0 else nullcontext():
            if (manifest := writer.finished()) is not None:
                writer.remove_parts()
                return manifest
            if rank == 0:
                writer.begin()
                for split, copies in self.splits.items():
                    copies.say_what_is_fixed(split)
            self._encode([part for part in writer.parts()[rank::processes] if not writer.has(part)])
            gather_objects(None)  # all processes are through
            return writer.join() if rank == 0 else None

    def _encode(self, parts: list[Part]) -> None:
        rank, processes = own_share()
        draws = processes * sum(len(self._numbers(part)) for part in parts)
        with tqdm(total=draws, desc="encoding", unit="image", disable=rank > 0 or not draws) as bar:
            for split in self.splits:
                chosen = [part for part in parts if part[0] == split]
                for part, arrays in self._encoded(split, chosen, bar):
                    self.writer.save(part, arrays)

    def _numbers(self, part: Part) -> range:
        """The draws of a part, as `Copies` numbers them."""
        images, draws = self.writer.images(part), self.splits[part[0]].draws
        return range(images.start * draws, images.stop * draws)

    def _encoded(self, split: str, parts: list[Part], bar: Any) -> Iterator[tuple[Part, Arrays]]:
        """The arrays of parts of a split."""
        size, copies = self.options.batch_size, self.splits[split]
        batches = [
            (part, self._numbers(part)[first : first + size])
            for part in parts
            for first in range(0, len(self._numbers(part)), size)
        ]
        workers = self.workers if batches else 0
        loader = DataLoader(
            copies,
            batch_sampler=[list(numbers) for _, numbers in batches],
            num_workers=workers,
            multiprocessing_context=start_method(workers),
            collate_fn=custom_collate,
            worker_init_fn=start_worker,
        )
        collected: list[Arrays] = []
        for (part, numbers), batch in zip(batches, loader, strict=True):
            if not collected:  # some quantizers choose codes at random
                place = (self.options.seed, list(self.splits).index(split), part[1])
                torch.manual_seed(struct.unpack("<Q", digest(*place)[:8])[0])
            collected.append(self._encode_batch(batch, copies.mirrored_later))
            bar.update(len(numbers) * own_share()[1])
            if numbers[-1] == self._numbers(part)[-1]:
                yield part, _joined(collected, copies.copies)
                collected = []

    @torch.inference_mode()
    def _encode_batch(self, batch: Mapping[str, Any], mirrors: bool) -> Arrays:
        """Codes (B, n, h, w) and conditions (B, n, ...) of a batch, n = 2 if it is mirrored too."""
        model = self.model
        x, c = (
            part.to(model.device)
            for part in model.get_xc(model.on_before_batch_transfer(batch, dataloader_idx=0))
        )
        views = [(x, c)]
        if mirrors:
            # Coordinates say where a crop is, and labels what is there: they stay.
            is_image = c.dim() == 4 and model.condition_kind != "coordinates"
            views.append((x.flip(-1), c.flip(-1) if is_image else c))
        with computing_in(torch.float32, model.device):
            codes = [model.first_stage_model.encode_to_indices(x) for x, _ in views]
            arrays = {CODES: _narrow(codes, model.n_codes)}
            if not model.be_unconditional:
                tokens = [_as_grid(*model.encode_to_c(c)) for _, c in views]
                arrays[CONDITION] = _narrow(tokens, model.vocab_size)
        return arrays


def _as_grid(codes: Tensor, indices: Tensor) -> Tensor:
    """Indices [B, n] of conditions; in rows [B, h, w], if their codes [B, c, h, w] have these."""
    return indices.reshape(len(indices), *codes.shape[2:]) if codes.dim() == 4 else indices


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
