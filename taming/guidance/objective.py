"""What an image is optimized for: weighted prompts, compared with its cut-outs on a sphere."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.devices import computing_in
from taming.errors import UserError
from taming.guidance.cutouts import Chance, CutSettings, cut, draw_views
from taming.guidance.encoders import ClassEncoder, ImageEncoder, PositionEncoder, TextEncoder
from taming.sampling.conditions import read_picture
from taming.user_files import with_home

MOST_TEXT = 10_000  # characters
MOST_WEIGHT = 1000.0  # of a prompt, either way
NO_TEXTS = (
    "this guide reads no text; give --clip with weights for prompts, or guide by --image_prompt or "
    "--classes"
)
NO_CLASSES = "this guide knows no classes; give --classifier with --classes"


def spherical_distance(first: Tensor, second: Tensor) -> Tensor:
    """Half the squared angle, in radians, of embeddings [..., D] -> [...]: 0 to pi^2 / 2.

    The angle is 2 atan2(|x - y|, |x + y|) for x, y of length 1, whose gradient is finite
    everywhere, also of equal and of opposite embeddings.
    """
    x, y = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    apart, together = (torch.linalg.vector_norm(v, dim=-1) for v in (x - y, x + y))
    return 2 * torch.atan2(apart, together).square()


@dataclass(frozen=True, eq=False)
class Target:
    """A prompt as the guide knows it; images move away from those with a weight below 0.

    It is an `embedding` [D], or for guides that compare positions an `image` [1, 3, H, W] in
    [0, 1].
    """

    name: str
    weight: float
    embedding: Tensor | None = None
    image: Tensor | None = None


class Objective:
    """The loss of an image: of all targets the weight times the mean distance of the cut-outs.

    Args:
        encoder: the guide; its weights need no gradients.
        cuts: how the image is cut, see `CutSettings.usual_for`.
        dtype: what the guide computes in; bfloat16 by autocast.

    Raises:
        UserError: without a target of weight other than 0.
    """

    def __init__(
        self,
        encoder: ImageEncoder,
        targets: Sequence[Target],
        cuts: CutSettings | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.encoder, self.dtype = encoder, dtype
        self.targets = [target for target in targets if target.weight]
        self.cuts = (cuts or CutSettings()).usual_for(encoder)
        if not self.targets:
            raise UserError("there is no prompt with a weight other than 0: say what to draw")

    def __call__(self, image: Tensor, chance: Chance) -> Tensor:
        """The loss of an image [1, 3 or 1, H, W] in [0, 1], by cut-outs that are drawn anew."""
        image, size = image.expand(-1, 3, -1, -1), self.encoder.size
        height, width = image.shape[2:]
        views = draw_views(self.cuts, (height, width), size, chance)
        embeddings = self._encoded(cut(image, views, size))  # (N, D)
        loss = embeddings.new_zeros(())
        for target in self.targets:
            goal = target.embedding
            if target.image is not None:
                with torch.no_grad():
                    at_size = _resized(target.image.to(image), (height, width))
                    goal = self._encoded(cut(at_size, views, size))
            assert goal is not None
            loss = loss + target.weight * spherical_distance(embeddings, goal.to(embeddings)).mean()
        return loss

    def _encoded(self, cutouts: Tensor) -> Tensor:
        with computing_in(self.dtype, cutouts.device):
            return self.encoder.encode_images(cutouts).float()

    @property
    def has_goal(self) -> bool:
        """Whether there is anything to move towards."""
        return any(target.weight > 0 for target in self.targets)


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[2:] == size:
        return image
    return F.interpolate(image, size, mode="bilinear", antialias=True)


# ---------------------------------------------------------------------- prompts


def text_targets(encoder: Any, prompts: Sequence[str]) -> list[Target]:
    """Targets of `TEXT` or `TEXT:WEIGHT`.

    Raises:
        UserError: for an empty text, a weight that is no number or too large, or a guide that reads
            no text.
    """
    read = read_texts(prompts)
    if not read:
        return []
    if not isinstance(encoder, TextEncoder):
        raise UserError(NO_TEXTS)
    with torch.no_grad():
        embeddings = encoder.encode_texts([text for text, _ in read])
    return [Target(t, w, embedding=e) for (t, w), e in zip(read, embeddings, strict=True)]


def read_texts(prompts: Sequence[str]) -> list[tuple[str, float]]:
    """`TEXT` or `TEXT:WEIGHT` as texts and weights.

    Raises:
        UserError: for an empty text, one that is too long, or a weight that is no number or too
            large.
    """
    read = [_weighted(text) for text in prompts]
    for text, _ in read:
        if not text.strip():
            raise UserError('a prompt is empty; write what to draw, such as "a fox:1.0"')
        if len(text) > MOST_TEXT:
            raise UserError(f"a prompt has {len(text):,} characters; {MOST_TEXT:,} are the most")
    return read


def image_targets(encoder: ImageEncoder, prompts: Sequence[str]) -> list[Target]:
    """Targets of `PATH` or `PATH:WEIGHT`, images.

    Raises:
        UserError: for a file that is missing or no image, or a weight that is no number or too
            large.
    """
    targets = []
    for prompt in prompts:
        path = with_home(prompt)
        name, weight = weighted_file(path)
        image = (read_picture(name) + 1) / 2
        targets.append(image_target(encoder, image, name, weight))
    return targets


def image_target(
    encoder: ImageEncoder, image: Tensor, name: str = "image", weight: float = 1.0
) -> Target:
    """The target of an image [1, 3, H, W] in [0, 1]."""
    if isinstance(encoder, PositionEncoder) and encoder.by_position:
        return Target(name, weight, image=image)
    with torch.no_grad():
        embedding = encoder.encode_images(_resized(image, (encoder.size, encoder.size)))[0]
    return Target(name, weight, embedding=embedding.float())


def class_target(encoder: Any, label: int, weight: float = 1.0) -> Target:
    """The target of a class.

    Raises:
        UserError: for a guide without classes, or one that it does not have.
    """
    if not isinstance(encoder, ClassEncoder):
        raise UserError(NO_CLASSES)
    if not 0 <= label < encoder.n_classes:
        raise UserError(
            f"class {label} is out of range: the classifier has classes 0 to "
            f"{encoder.n_classes - 1}"
        )
    return Target(f"class {label}", weight, embedding=encoder.encode_class(label))


def weighted_file(path: str) -> tuple[str, float]:
    """The file of an image and its weight; colons may be in the file's name, as behind a drive."""
    name, _, number = path.rpartition(":")
    missing = not Path(name).is_file() and _number(number) is None  # which reading it will say
    if Path(path).is_file() or missing:
        return path, 1.0
    return _weighted(path, "image_prompt")


def _weighted(prompt: str, flag: str = "prompt") -> tuple[str, float]:
    """(what is before the last colon, the weight behind it), or (all of it, 1)."""
    text, colon, number = prompt.rpartition(":")
    if not colon:
        return prompt, 1.0
    weight = _number(number)
    if weight is None:
        raise UserError(
            f"--{flag}: the weight '{number}' behind the last colon of '{prompt}' is no number; "
            f"write '{text}:1.0', or ':1.0' at the end of what has a colon of its own"
        )
    if abs(weight) > MOST_WEIGHT:
        raise UserError(
            f"--{flag}: the weight of '{prompt}' must be from {-MOST_WEIGHT:g} to {MOST_WEIGHT:g}"
        )
    return text, weight


def _number(text: str) -> float | None:
    """A finite number; None for anything else."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None
