"""What to sample: `Request`, one image, and the functions that make requests."""

from __future__ import annotations

import operator
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor

from taming.data.annotated_objects_dataset import BUILDERS
from taming.data.faceshq import coordinates
from taming.data.helper_types import WHOLE
from taming.errors import UserError, shorten
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.plain import device_of
from taming.sampling.inputs import SampleInputs
from taming.sampling.scenes import Scene, SceneBuilder
from taming.sampling.sizes import pixels_per_token, trained_shape
from taming.sampling.windows import Box
from taming.shipped import script

Prompt = tuple[int, ...]
"""Indices that the transformer sees first: those of a condition, or the start token."""
PromptIn = Callable[[Box], Prompt]
"""That of a part of the image, as scenes have one for every window."""


@dataclass(frozen=True)
class Request:
    """One image to sample.

    Attributes:
        number: the sample's, within its label; with the seed, it decides the image.
        condition: a prompt; one for each part of the image; or a map of indices, int64 (H, W).
        label: the class, or the number of a scene's layout. Samples of one share no random numbers
            with those of another, and do not depend on them.
        known: indices that are kept, int64 (H, W), -1 at positions to sample.
    """

    number: int
    condition: Prompt | PromptIn | Tensor = ()
    label: int | None = None
    known: Tensor | None = field(default=None, compare=False)

    @property
    def stream(self) -> int:
        """Which random numbers it uses."""
        return (self.label or 0) * 2**32 + self.number

    @property
    def whole(self) -> Prompt | Tensor:
        """The condition of the whole image."""
        return self.condition(WHOLE) if callable(self.condition) else self.condition

    @property
    def prompt_in(self) -> PromptIn | None:
        """The prompt of a part of the image, if parts differ in it."""
        return self.condition if callable(self.condition) else None

    def cut_to(self, height: int, width: int) -> Request:
        """The request of an image of that size, with the map's corner and nothing that is known."""
        cut = self.condition
        cut = cut[:height, :width] if isinstance(cut, Tensor) else cut
        return replace(self, condition=cut, known=None)


def sampling_script(model: Net2NetTransformer) -> str:
    """The name of the script that samples many images from a model; see `taming.shipped.script`."""
    if model.condition_kind in ("none", "coordinates") or model.n_classes is not None:
        return "sample_fast"
    return "make_scene_samples" if model.cond_stage_key in BUILDERS else "make_samples"


def labels_for(model: Net2NetTransformer, classes: Sequence[int] | None = None) -> list[int | None]:
    """The classes to sample, all of the model's by default; [None] for a model without them.

    Raises:
        UserError: for a class that the model does not have, or a model with another condition.
    """
    if model.condition_kind in ("none", "coordinates"):
        if classes is not None:
            raise UserError(
                "this model has no classes; leave out --classes, in Python give labels=[None]"
            )
        return [None]
    if model.n_classes is None:
        raise UserError(
            f"this model samples images for a given '{model.cond_stage_key}', which is no class; "
            f"use {script(sampling_script(model))}"
        )
    most = model.n_classes - 1
    known = [_number(label, f"a class, from 0 to {most},") for label in classes or ()]
    for label in known:
        if not 0 <= label <= most:
            raise UserError(f"class {label} is out of range: the model has classes 0 to {most}")
    return list(range(model.n_classes)) if classes is None else list(known)


def _number(value: object, what: str) -> int:
    """An integer of Python, numpy or torch; `UserError` for anything else."""
    try:
        if not isinstance(value, bool):
            return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        pass
    raise UserError(f"{what} is a whole number, not {shorten(value)}")


def _own_labels(model: Net2NetTransformer, labels: Iterable[Any]) -> list[int | None]:
    """Labels that the model has, or None for each image of a model without classes."""
    if isinstance(labels, str) or not isinstance(labels, Iterable):
        raise UserError(f"labels is a list of classes, such as [3, 7], not {shorten(labels)}")
    given = list(labels)
    without = model.condition_kind in ("none", "coordinates")
    return given if without and all(one is None for one in given) else labels_for(model, given)


def requests_for_labels(
    model: Net2NetTransformer,
    labels: Sequence[int | None],
    num_samples: int,
    *,
    finished: Callable[[int | None], Container[int]] = lambda label: (),
    shape: tuple[int, int] | None = None,
    share: tuple[int, int] = (0, 1),
    block: int = 1,
) -> Iterator[Request]:
    """Samples 0 to `num_samples` - 1 of each of the `labels` (see `labels_for`), class by class.

    Args:
        finished: `finished(label)` are the numbers of a label's samples to leave out.
        shape: (h, w) of the images in tokens; the training's by default.
        share: (n, processes): the n-th process's share of the work.
        block: so many consecutive numbers stay together in one share.

    Raises:
        UserError: for labels that the model does not have, and no whole number of samples.
    """
    if (num_samples := _number(num_samples, "num_samples")) < 0:
        raise UserError(f"num_samples is {num_samples}; it must be 0 or more")
    rank, processes = share
    positions = coordinate_map(model, shape or trained_shape(model))
    for place, label in enumerate(_own_labels(model, labels)):
        prompt = (model.sos_token if label is None else label,)
        done = finished(label)
        for number in range(num_samples):
            mine = (place * num_samples + number // block) % processes == rank
            if mine and number not in done:
                yield Request(number, prompt if positions is None else positions, label)


def request_for_condition(
    model: Net2NetTransformer,
    c: Tensor | None,
    number: int,
    shape: tuple[int, int],
    known: Tensor | None = None,
) -> Request:
    """The request for one image of `shape` (in tokens) under a condition of batch size 1.

    `c` is what `model.get_input` gives; None if the model needs none (no condition, coordinates).
    """
    if model.condition_kind == "none":
        return Request(number, (model.sos_token,), known=known)
    if c is None and (positions := coordinate_map(model, shape)) is not None:
        return Request(number, positions, known=known)
    if c is None:
        raise UserError(f"this model samples for a given '{model.cond_stage_key}'; give one")
    indices = condition_indices(model, c)[0].cpu()  # (n,), or (h, w)
    if indices.dim() == 2:
        return Request(number, indices, known=known)
    label = int(c[0]) if model.condition_kind == "class" else None
    return Request(number, tuple(indices.tolist()), label, known=known)


def condition_indices(model: Net2NetTransformer, c: Tensor) -> Tensor:
    """Indices [B, n], or [B, h, w] for maps, of conditions as `model.get_input` gives them."""
    if model.condition_kind != "class":  # labels are checked where nobody waits for a GPU
        c = c.to(device_of(model.transformer))
    quant, indices = model.encode_to_c(c)
    return indices.view(len(indices), *quant.shape[2:]) if quant.dim() == 4 else indices


def coordinate_map(model: Net2NetTransformer, shape: tuple[int, int]) -> Tensor | None:
    """The condition int64 (h, w) of a model of pixel coordinates; None for any other model.

    Coordinates rise from 0 to 1, row by row, over an image of `shape` (h, w) tokens.
    """
    if model.condition_kind != "coordinates":
        return None
    height, width = (side * pixels_per_token(model) for side in shape)
    pixels = torch.from_numpy(coordinates(height, width)).view(1, 1, height, width)
    return condition_indices(model, pixels)[0].cpu()


def requests_for_scene(
    scene: Scene, builder: SceneBuilder, number: int, samples: Sequence[int]
) -> list[Request]:
    """Requests for the given `samples` (their numbers) of the `number`-th scene."""

    @cache
    def prompt_in(box: Box) -> tuple[int, ...]:
        return tuple(scene.tokens(builder, box).tolist())

    return [Request(n, prompt_in, number) for n in samples]


def request_for_inputs(
    model: Net2NetTransformer, inputs: SampleInputs, known: Tensor | None = None
) -> Request:
    """The request for sample 0 of `inputs`; `known` are indices (h, w) to keep, -1 elsewhere."""
    if inputs.scene is None or inputs.builder is None:
        return request_for_condition(model, inputs.c, 0, inputs.shape, known)
    (request,) = requests_for_scene(inputs.scene, inputs.builder, inputs.number, [0])
    return replace(request, known=known)


def conditions_of(requests: Sequence[Request]) -> Tensor:
    """Those of the whole images: prompts int64 [B, n], of one length, or maps [B, H, W]."""
    wholes = [request.whole for request in requests]
    maps = [whole for whole in wholes if isinstance(whole, Tensor)]
    return torch.stack(maps) if maps else torch.tensor(wholes)


def known_of(requests: Sequence[Request], shape: tuple[int, int]) -> Tensor | None:
    """What is kept of images of `shape`, int64 [B, H, W], -1 elsewhere; None if nothing is.

    Raises:
        UserError: for indices of another size.
    """
    if all(request.known is None for request in requests):
        return None
    nothing = torch.full(shape, -1)
    known = [nothing if request.known is None else request.known for request in requests]
    for indices in known:
        if tuple(indices.shape) != tuple(shape):
            raise UserError(
                f"the known indices are {tuple(indices.shape)}, but the image is {tuple(shape)}"
            )
    return torch.stack(known)


def sampled_of_first(known: Tensor | None, order: Sequence[int]) -> list[int]:
    """How many of the first n positions of `order` are sampled in any image, for n from 0.

    `known` (B, H * W) is -1 there. For known = [[5, -1, 7, -1]], in order: [0, 0, 1, 1, 2].
    """
    if known is None:
        return list(range(len(order) + 1))
    sampled = (known < 0).any(0)[list(order)]  # (H * W,)
    return [0, *sampled.cumsum(0).tolist()]
