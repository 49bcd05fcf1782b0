"""Conversions of pixels and values, resizing, and composed pages."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from taming.errors import UserError
from taming.fonts import font_for, shortened
from taming.pictures import (
    bar_picture,
    code_picture,
    enlarged,
    grid,
    resize,
    resize_and_crop,
    text_images,
    to_gray,
    to_pillow,
    to_rgb_pixels,
    to_uint8,
    to_uint8_array,
    to_values,
    to_values_array,
)

ALL_PIXELS = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16)


def values_beyond_the_range() -> Tensor:
    """Every half pixel, where roundings differ, values beside them, and values out of range."""
    halves = torch.arange(-8, 520) / 255 - 1
    beside = torch.cat((halves.nextafter(halves - 1), halves, halves.nextafter(halves + 1)))
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    return torch.cat((beside, noise)).reshape(1, 1, 4, -1)


# ---------------------------------------------------------------------- values <-> pixels


def test_pixels_survive_as_values() -> None:
    values = to_values(ALL_PIXELS)
    assert values.dtype == torch.float32 and values.min() == -1 and values.max() == 1
    assert torch.equal(to_uint8(values), ALL_PIXELS)
    array = ALL_PIXELS.numpy()
    assert np.array_equal(to_uint8_array(to_values_array(array)), array)


def test_tensors_and_arrays_agree_bit_for_bit() -> None:
    assert np.array_equal(to_values(ALL_PIXELS).numpy(), to_values_array(ALL_PIXELS.numpy()))
    values = values_beyond_the_range()
    assert np.array_equal(to_uint8(values).numpy(), to_uint8_array(values.numpy()))


def test_pixels_are_scaled_as_earlier_versions_did() -> None:
    """Training data and numbers of evaluations depend on the last bit."""
    values = to_values(ALL_PIXELS)
    assert torch.equal(values, ALL_PIXELS / 127.5 - 1)
    assert torch.equal(values[0], to_values(ALL_PIXELS[0]))  # a single image takes another way
    scaled = np.divide(ALL_PIXELS.numpy(), np.float32(127.5), dtype=np.float32) - np.float32(1)
    assert np.array_equal(values.numpy(), scaled)


def test_values_are_rounded_as_earlier_versions_did() -> None:
    values = values_beyond_the_range()
    pixels = to_uint8(values)
    assert torch.equal(pixels, ((values + 1) * 127.5).round().clamp(0, 255).to(torch.uint8))
    array = values.numpy()
    rounded = np.clip(np.rint((array + 1) * 127.5), 0, 255).astype(np.uint8)
    assert np.array_equal(to_uint8_array(array), rounded)
    assert np.array_equal(
        rounded, ((array.clip(-1, 1) + 1) * 127.5).round().astype(np.uint8)
    )  # of previews


def test_pixels_are_left_alone() -> None:
    assert to_uint8(ALL_PIXELS) is ALL_PIXELS
    array = ALL_PIXELS.numpy()
    assert to_uint8_array(array) is array


def test_half_precision_is_widened_before_rounding() -> None:
    values = values_beyond_the_range().bfloat16()
    assert torch.equal(to_uint8(values), to_uint8(values.float()))


def test_gray_pixels_are_pillows() -> None:
    pixels = torch.randint(256, (1, 3, 32, 32), generator=torch.Generator().manual_seed(0)).byte()
    expected = np.asarray(Image.fromarray(pixels[0].permute(1, 2, 0).numpy()).convert("L"))
    gray = to_gray(pixels)
    assert gray.shape == (1, 1, 32, 32)
    # Pillow's weights have 16 bits
    assert (gray[0, 0].int() - torch.from_numpy(expected.astype(np.int32))).abs().max() <= 1
    same = ALL_PIXELS.expand(1, 3, 16, 16)
    assert torch.equal(to_gray(same), ALL_PIXELS)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_of_pillow(channels: int, mode: str) -> None:
    image = to_pillow(to_values(ALL_PIXELS[0].expand(channels, 16, 16)).requires_grad_())
    assert image.mode == mode and image.size == (16, 16)
    assert np.array_equal(np.asarray(image).reshape(16, 16, -1)[..., 0], ALL_PIXELS[0, 0])


def test_other_numbers_of_channels_are_no_image() -> None:
    with pytest.raises(UserError, match="gives 2 channels"):
        to_pillow(torch.zeros(2, 4, 4))


# ---------------------------------------------------------------------- resizing


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, channels), np.uint8)


def test_resizing_is_pillows_and_counts_all_pixels() -> None:
    pixels = noise(20, 30)
    expected = Image.fromarray(pixels).resize((15, 5), Image.Resampling.BILINEAR)
    assert np.array_equal(resize(pixels, (5, 15)), np.asarray(expected))
    stripes = np.zeros((16, 16), np.float32)
    stripes[:, ::4] = 1
    assert np.allclose(resize(stripes, (4, 4))[:, 1:3], 0.25, atol=0.01)  # not 0 or 1


@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 1), (20, 30, 3), (20, 30, 4)])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_shapes_and_dtypes_are_kept(shape: tuple[int, ...], dtype: type) -> None:
    image = noise(20, 30, 4)[..., : shape[2] if len(shape) == 3 else 1].reshape(shape).astype(dtype)
    resized = resize(image, (10, 12))
    assert resized.shape == (10, 12, *shape[2:]) and resized.dtype == dtype
    assert resize(image, (20, 30)) is image


def test_channels_are_resized_apart() -> None:
    planes = noise(20, 30, 5).astype(np.float32)
    resized = resize(planes, (10, 12))
    for channel in range(5):
        assert np.array_equal(resized[..., channel], resize(planes[..., channel], (10, 12)))


def test_what_does_not_fit_is_cut_off_at_both_ends() -> None:
    columns = np.repeat(np.arange(40, dtype=np.float32)[None], 10, axis=0)
    cropped = resize_and_crop(columns, (10, 10))
    assert np.array_equal(cropped, columns[:, 15:25])
    assert np.array_equal(resize_and_crop(columns.T, (10, 10)), cropped.T)
    assert resize_and_crop(noise(10, 40), (5, 7)).shape == (5, 7, 3)
    wide = noise(30, 50)  # 26.7 columns are 27
    assert np.array_equal(resize_and_crop(wide, (16, 16)), resize(wide, (16, 27))[:, 5:21])
    assert resize_and_crop(noise(4, 3), (9, 9)).shape == (9, 9, 3)


def test_small_pictures_are_enlarged_without_blur() -> None:
    picture = Image.fromarray(noise(8, 5))
    large = enlarged(picture, 40)
    assert large.size == (25, 40)
    assert np.array_equal(np.asarray(large)[::5, ::5], noise(8, 5))
    assert enlarged(picture, 15) is picture  # cannot be doubled


# ---------------------------------------------------------------------- composing


def square(value: float, side: int = 10) -> Tensor:
    return torch.full((3, side, side), value)


def pixel(page: Image.Image, x: int, y: int) -> int:
    (red, _, _) = page.getpixel((x, y))  # type: ignore[misc]
    return int(red)


def test_cells_of_a_grid_are_a_gap_apart() -> None:
    page = grid([[square(-1), square(0)], [square(-1), square(-1)]], gap=4)
    assert page.mode == "RGB" and page.size == (4 + 10 + 4 + 10 + 4,) * 2
    gaps = [0, 1, 2, 3, 14, 15, 16, 17, 28, 29, 30, 31]
    assert [x for x in range(32) if pixel(page, x, 8) == 255] == gaps
    assert [y for y in range(32) if pixel(page, 8, y) == 255] == gaps
    assert pixel(page, 18, 4) == 128 and pixel(page, 4, 18) == 0


def test_columns_are_as_wide_as_their_widest_cell() -> None:
    page = grid([[square(-1, 6), square(-1, 20)], [square(-1, 12)]], gap=2)
    assert page.size == (2 + 12 + 2 + 20 + 2, 2 + 20 + 2 + 12 + 2)
    assert pixel(page, 2, 24) == pixel(page, 16, 2) == 0
    assert pixel(page, 16, 24) == 255  # the second row has one cell


def test_a_column_of_nothing_is_a_wider_gap() -> None:
    page = grid([[square(-1), None, square(-1)]], gap=3)
    assert page.width == 3 + 10 + 3 + 3 + 10 + 3


def test_every_kind_of_picture_is_a_cell() -> None:
    gray, rgb = noise(10, 10, 1)[..., 0], noise(10, 10)
    pillow = Image.fromarray(gray)
    page = np.asarray(grid([[gray, rgb, pillow, square(1)]], gap=0, background="black"))
    assert np.array_equal(page[:, :10], np.repeat(gray[..., None], 3, axis=2))
    assert np.array_equal(page[:, 10:20], rgb)
    assert np.array_equal(page[:, 20:30], page[:, :10])
    assert (page[:, 30:] == 255).all()


def test_cells_of_a_side_show_small_pixels_as_squares_and_shrink_large_ones() -> None:
    page = grid([[noise(4, 4), noise(100, 50)]], side=20, gap=0)
    assert page.size == (20 + 10, 20)
    assert np.array_equal(np.asarray(page)[::5, :20:5], noise(4, 4))


def test_titles_and_captions_take_a_line_each() -> None:
    plain, titled = grid([[square(-1, 60)]]), grid([[square(-1, 60)]], ["title"])
    captioned = grid([[("caption", square(-1, 60))]])
    assert titled.size == (plain.width, plain.height + 22)
    assert captioned.size == (plain.width, plain.height + 18)
    assert np.asarray(titled)[:22].min() < 255 and np.asarray(plain)[:8].min() == 255
    assert np.asarray(captioned)[8:26].min() < 255
    assert np.array_equal(np.asarray(titled)[30:], np.asarray(plain)[8:])


def test_titles_of_some_columns_reach_to_the_next() -> None:
    text = "a title that needs both columns"
    cells = [[square(1, 150), square(1, 150), square(1, 150)]]
    font = font_for("a", 14)
    assert 150 < font.getlength(text) < 308
    page = np.asarray(grid(cells, {0: text, 2: "end"}))
    inked = np.flatnonzero((page[:22] < 255).any(axis=(0, 2)))
    assert inked.min() < 20 and ((inked > 170) & (inked < 308)).any() and inked.max() > 320


def test_long_titles_lose_their_middle() -> None:
    page = np.asarray(grid([[square(1, 50), square(1, 50)]], ["a very long title " * 4, "b"]))
    between = page[:22, 58:66]  # nothing is written over the gap
    assert between.min() == 255
    font = font_for("a", 12)
    text = "".join(map(chr, range(97, 123)))
    shown = shortened(text, 60, font)
    head, tail = shown.split("…")
    assert text.startswith(head) and text.endswith(tail) and 0 <= len(head) - len(tail) <= 1
    assert font.getlength(shown) <= 60 and shortened(text, 999, font) == text


def test_names_in_other_letters_are_written() -> None:
    """Pillow's own font has one box for all of them."""
    pytest.importorskip("matplotlib")
    written = [np.asarray(grid([[square(1, 50)]], [name]))[:22] for name in ("ä", "ß", "Ж", "Ł")]
    assert len({page.tobytes() for page in written}) == 4
    assert all(page.min() < 128 for page in written)


def test_a_text_is_a_cell() -> None:
    page = np.asarray(grid([["two\nlines"]], side=80))
    assert page.shape == (96, 96, 3) and page.min() < 100
    many = np.asarray(grid([["\n".join("line" for _ in range(50))]], side=80))
    assert many.shape == (96, 96, 3)


def test_texts_as_images() -> None:
    images = text_images(["3", "17"], (64, 96))
    assert images.shape == (2, 3, 64, 96) and images.dtype == torch.float32
    assert images.min() < -0.5 and images.max() == 1
    assert not torch.equal(images[0], images[1])
    assert torch.equal(images[:, 0], images[:, 2])  # black on white
    dark = (images[0, 0] < 0).nonzero().float().mean(dim=0)
    assert (dark - torch.tensor([31.5, 47.5])).abs().max() < 3  # in the middle


def test_equal_codes_have_equal_colors() -> None:
    indices = torch.tensor([[0, 5, 0], [5, 900, 1]])
    picture = np.asarray(code_picture(indices))
    assert picture.shape == (2, 3, 3)
    assert np.array_equal(picture[0, 0], picture[0, 2])
    assert np.array_equal(picture[0, 1], picture[1, 0])
    assert len({tuple(color) for color in picture.reshape(-1, 3)}) == 4
    # A code has its color whatever the other codes are.
    assert np.array_equal(np.asarray(code_picture(indices[:1]))[0], picture[0])


def test_bars_are_as_high_as_their_values() -> None:
    page = np.asarray(bar_picture(torch.tensor([0.0, 1.0, 2.0, 4.0]), (40, 100)))
    heights = (page[..., 0] != 255).sum(axis=0)
    assert list(heights[[0, 10, 20, 30]]) == [0, 25, 50, 100]
    page = np.asarray(bar_picture(torch.tensor([1.0, 1e-6]), (40, 100)))
    assert list((page[..., 0] != 255).sum(axis=0)[[0, 30]]) == [100, 1]  # it is not nothing
    many = torch.zeros(1000)
    many[503] = many[:25] = 1  # one of a pixel's 25 bars, and all of another's
    page = np.asarray(bar_picture(many, (40, 10)))
    heights = (page[..., 0] != 255).sum(axis=0)
    assert list(np.flatnonzero(heights)) == [0, 20] and heights[0] == heights[20] == 10


def test_pixels_are_those_of_a_picture_that_is_saved_and_read() -> None:
    values = torch.linspace(-1, 1, 4 * 6).reshape(4, 2, 3)
    for channels in (1, 3, 4):
        own = values[:channels]
        expected = np.asarray(to_pillow(own).convert("RGB")).transpose(2, 0, 1)
        np.testing.assert_array_equal(to_rgb_pixels(own), expected)
