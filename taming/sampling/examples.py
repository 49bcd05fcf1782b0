"""Examples of a run's data: what its model drew from in training, one by one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import default_collate

from taming.checkpoint import Run, run_config
from taming.config import instantiate_from_config, load_config
from taming.data.seeding import SeededDataset
from taming.errors import UserError
from taming.sampling.conditions import cut_to_tokens
from taming.sampling.sizes import pixels_per_token


@dataclass(frozen=True)
class Example:
    """An image of a data set, cut to whole tokens, and its condition.

    Attributes:
        number: its index in the data.
        x: [1, C, H, W] in [-1, 1].
        c: as `model.get_input` gives it, batch size 1; None for models without.
        shape: the image's height and width in tokens.
    """

    number: int
    x: Tensor
    c: Tensor | None
    shape: tuple[int, int]


def data_config(
    run: Run,
    base: Sequence[str | Path] = (),
    overrides: Sequence[str] = (),
    ignore_base_data: bool = False,
) -> Any:
    """The `data` section of a run's configs, `base` merged over them, or of `base` alone.

    Raises:
        UserError: where there is none.
    """
    if ignore_base_data:
        config = load_config(base, [text for text in overrides if text.startswith("data.")])
    else:
        config = run_config(run, base, overrides)
    if "data" not in config:
        raise UserError("the configs have no 'data' section; name a YAML with one")
    return config.data


def open_dataset(data: Any, split: str | None = None) -> Any:
    """The data set `split` of a `data` section: by default that of validation, or of training.

    An item depends on its index alone, where crops are random as well.

    Raises:
        UserError: where there is no such data set.
    """
    there = [name for name in ("validation", "train", "test") if data.params.get(name) is not None]
    if not there or split is not None and split not in there:
        raise UserError(f"the data section has no '{split or 'validation'}'; it has {there}")
    split = split or there[0]
    config = data.params[split]
    return SeededDataset(instantiate_from_config(config, key=f"data.params.{split}"))


def read_example(model: Any, dataset: Any, number: int) -> Example:
    """The data's item of that number as the model reads it."""
    batch = default_collate([dataset[number]])
    x, c = model.get_xc(batch)
    factor = pixels_per_token(model)
    cut = cut_to_tokens(x, factor)
    if c.dim() == 4 and c.shape[2:] == x.shape[2:]:
        c = c[:, :, : cut.shape[2], : cut.shape[3]]
    shape = (cut.shape[2] // factor, cut.shape[3] // factor)
    return Example(number, cut, None if model.be_unconditional else c, shape)


def read_examples(model: Any, dataset: Any, numbers: Iterable[int]) -> Iterator[Example]:
    """The data's items of these numbers."""
    for number in numbers:
        yield read_example(model, dataset, number)
