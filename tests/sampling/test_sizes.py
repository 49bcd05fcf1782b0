from __future__ import annotations

from typing import Any

import pytest

from taming.command_line import Parser, parse_size
from taming.errors import UserError
from taming.sampling import SampleSettings
from taming.sampling.engine import check_settings
from taming.sampling.sizes import add_side_flags, pixels_per_token, tokens_for, trained_shape
from tests.kit.models import tiny_model, transformer_config


def test_pixels_and_tokens() -> None:
    model = tiny_model()
    assert (pixels_per_token(model), trained_shape(model)) == (2, (4, 4))
    assert tokens_for(model, None) is None
    assert tokens_for(model, (10, 12)) == (5, 6)
    assert tokens_for(model, (10, None)) == (5, 4)
    assert tokens_for(model, (None, 6)) == (4, 3)
    for size, name in (((9, 8), "height"), ((8, 1), "width"), ((8, 0), "width")):
        with pytest.raises(UserError, match=f"the {name} must be a multiple of 2 pixels"):
            tokens_for(model, size)


@pytest.mark.parametrize(
    ("flags", "size"),
    [
        ([], None),
        (["--size", "10,12"], (10, 12)),
        (["--size", "10"], (10, 10)),
        (["--height", "10", "--width", "12"], (10, 12)),
        (["--width", "12"], (None, 12)),
        (["--size", "10,12", "--height", "8"], (8, 12)),
    ],
)
def test_earlier_flags_set_one_side_each(
    flags: list[str], size: tuple[int | None, int | None] | None
) -> None:
    parser = Parser()
    parser.add_argument("--size", type=parse_size)
    add_side_flags(parser)
    assert parser.parse_args(flags).size == size


def test_images_that_no_memory_holds() -> None:
    model = tiny_model()
    assert tokens_for(model, (2**10, None)) == (2**9, 4)
    with pytest.raises(
        UserError, match="images of 2097152 x 2097152 pixels are too large: a layer"
    ):
        tokens_for(model, (2**21, 2**21))


@pytest.mark.parametrize("shape", [(2, 2), (4, 3), (1, 9)])
def test_images_below_the_grid_of_positions(shape: tuple[int, int]) -> None:
    """Before anything is sampled; models of all orders have them."""

    def check(shape: tuple[int, int], **params: Any) -> None:
        gpt = {"rope_grid": [4, 4], "n_embd": 32, "target_positions": bool(params)}
        config = transformer_config(gpt, **params)
        check_settings(tiny_model(config), SampleSettings(), shape)

    said = "rope_grid is of images of 8 x 8 pixels, and samples none that are smaller, such as "
    with pytest.raises(UserError, match=f"{said}{2 * shape[0]} x {2 * shape[1]}"):
        check(shape)
    check(shape, order="random")
    check((4, 4))
    check((5, 9))
