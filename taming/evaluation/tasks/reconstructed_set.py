"""Reconstructions of a first stage as a set of images, to be compared with any other."""

from __future__ import annotations

from collections.abc import Container, Iterator, Sequence
from typing import Any

import torch

from taming.config import plain, without_checkpoint_paths
from taming.errors import UserError
from taming.evaluation.sources.images import (
    ImageSource,
    LoadedSource,
    SourceImage,
    by_size,
    key_of,
    pixel_digest,
    stack_pixels,
)
from taming.evaluation.sources.prepared import PreparedSource, model_input
from taming.evaluation.tasks.first_stage import LoadedFirstStage
from taming.evaluation.tasks.reconstruction import reconstruct
from taming.pictures import to_rgb_pixels
from taming.weight_choice import weight_choice


class ReconstructedSource(ImageSource):
    """The images of a set after a first stage has encoded and decoded them, in 8 bits.

    Raises UserError for a first stage of segmentations.
    """

    def __init__(
        self,
        stage: LoadedFirstStage,
        images: LoadedSource,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if stage.model.reads_labels:
            raise UserError(f"{stage.name} encodes segmentations; --reconstruct is for images")
        self.stage, self.device, self.dtype = stage, device, dtype
        self.prepared = PreparedSource(images, multiple=stage.model.downsampling_factor)
        self.model = stage.model.to(device)

    def __len__(self) -> int:
        return len(self.prepared)

    def has_classes(self) -> bool | None:
        return self.prepared.has_classes()

    def describe(self) -> dict[str, Any]:
        return {**self.stage.describe(), "of": self.prepared.describe()}

    def content_key(self) -> str:
        config = without_checkpoint_paths(self.stage.config.model)
        return key_of(
            reconstructed=self.prepared.content_key(),
            checkpoint=self.stage.checkpoint_hash,
            model=plain(config),
            weights=weight_choice(),
            dtype=str(self.dtype),
            device=self.device.type,
            torch=torch.__version__,
        )

    def pass_over_damage(self) -> None:
        super().pass_over_damage()
        self.prepared.pass_over_damage()

    def leave_out(self, indices: Container[int]) -> None:
        self.prepared.leave_out(indices)
        self.prepared.damaged.clear()

    def images(self, indices: Sequence[int], batch_size: int) -> Iterator[SourceImage]:
        for batch in by_size(self.prepared.images(indices, batch_size), batch_size):
            x = model_input(stack_pixels(batch).to(self.device), self.model)
            _, copies = reconstruct(self.model, x, self.dtype)
            for image, copy in zip(batch, copies.cpu(), strict=True):
                pixels = to_rgb_pixels(copy)
                digest = pixel_digest(pixels.numpy())
                yield SourceImage(image.index, pixels, image.label, image.name, digest)
        self.damaged.update(self.prepared.damaged)
