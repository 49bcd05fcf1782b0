"""Bars of sampling, where there is something to wait for."""

from __future__ import annotations

import pytest

from taming.sampling.bars import ImageBar, TokenBar


@pytest.mark.parametrize("images", [0, 1])
def test_a_bar_is_shown_if_there_are_images(
    images: int, capsys: pytest.CaptureFixture[str]
) -> None:
    for bar in (ImageBar(images), TokenBar(images, 4)):
        with bar:
            bar.image(images)
        assert bool(capsys.readouterr().err) == bool(images)
