"""What to draw: requests for every class of a model, or for a model without a condition."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from taming.errors import UserError
from taming.modules.misc.coord import CoordStage
from taming.sampling.engine import Request
from taming.sampling.sizes import coordinate_map


def parse_classes(text: str | None) -> list[int] | None:
    """Class numbers of a comma list (a trailing comma is fine), without repetitions.

    Raises:
        UserError: where a part is no number.
    """
    if text is None:
        return None
    parts = [part.strip() for part in text.split(",") if part.strip()]
    for part in parts:
        if not part.isdecimal():
            raise UserError(f"--classes takes numbers such as 0,1,7, and '{part}' is none")
    if not parts:
        raise UserError("--classes names no class; leave it out for all of them")
    return list(dict.fromkeys(int(part) for part in parts))


def labels_for(model: Any, classes: Sequence[int] | None = None) -> list[int | None]:
    """The classes to draw, all of the model's by default; [None] for a model without them.

    Raises:
        UserError: for a class that the model does not have, or a model with another condition.
    """
    n_classes = getattr(model.cond_stage_model, "n_classes", None)
    free = model.be_unconditional or isinstance(model.cond_stage_model, CoordStage)
    if free or n_classes is None:
        if not free:
            raise UserError(
                f"this model draws images for a given '{model.cond_stage_key}', which is no class; "
                "use scripts/make_samples.py (or make_scene_samples.py, for scenes)"
            )
        if classes is not None:
            raise UserError("this model has no classes; leave out --classes")
        return [None]
    for label in classes or ():
        if not 0 <= label < n_classes:
            raise UserError(
                f"class {label} is out of range: the model has classes 0 to {n_classes - 1}"
            )
    return list(range(n_classes) if classes is None else classes)


def requests_for(
    model: Any,
    labels: Sequence[int | None],
    num_samples: int,
    done: Callable[[int | None], Container[int]] = lambda label: (),
    shape: tuple[int, int] | None = None,
    share: tuple[int, int] = (0, 1),
    block: int = 1,
) -> Iterator[Request]:
    """Samples 0 to `num_samples` - 1 of each label, class by class, without those already `done`.

    Args:
        done: `done(label)` are the numbers of a label's finished samples.
        shape: (h, w) of the images in tokens; the training's by default.
        share: (n, processes): the n-th process's share of the work.
        block: so many consecutive numbers stay together in one share.
    """
    rank, processes = share
    coordinates = coordinate_map(model, shape or tuple(model.latent_shape()[1:]))
    for place, label in enumerate(labels):
        prompt = (model.sos_token if label is None else label,)
        finished = done(label)
        for number in range(num_samples):
            mine = (place * num_samples + number // block) % processes == rank
            if mine and number not in finished:
                yield Request(number, prompt, label, coordinates)
