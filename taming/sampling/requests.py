"""What to draw: requests for every class of a model, or for a model without a condition."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Sequence
from typing import Any

from taming.errors import UserError
from taming.sampling.engine import Request


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
    """The classes to draw, all of the model's by default; [None] for an unconditional model.

    Raises:
        UserError: for a class that the model does not have, or a model with another condition.
    """
    n_classes = getattr(model.cond_stage_model, "n_classes", None)
    if model.be_unconditional or n_classes is None:
        if not model.be_unconditional:
            raise UserError(
                f"this model draws images for a given '{model.cond_stage_key}', which is no class; "
                "use scripts/make_samples.py"
            )
        if classes is not None:
            raise UserError("this model is unconditional and has no classes; leave out --classes")
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
) -> Iterator[Request]:
    """Samples 0 to `num_samples` - 1 of each label, class by class, without those already `done`.

    `done(label)` are the numbers of a label's finished samples.
    """
    for label in labels:
        prompt = (model.sos_token if label is None else label,)
        finished = done(label)
        for number in range(num_samples):
            if number not in finished:
                yield Request(number, prompt, label)
