from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from taming.pictures import to_pillow
from taming.sampling import Request, sample_images
from taming.sampling.animation import Recorder, to_gif, to_mp4
from tests.kit.models import tiny_model


def frames(count: int = 3) -> list[Image.Image]:
    shades = np.linspace(0, 255, count).astype(np.uint8)
    return [Image.fromarray(np.full((7, 9, 3), shade)) for shade in shades]


@pytest.mark.parametrize("shape", [(4, 4), (4, 6)])
def test_a_recorder_sees_the_image_grow(shape: tuple[int, int]) -> None:
    model, seen = tiny_model(), []
    recorder = Recorder(model, shape, 8, lambda image, progress: seen.append(progress.done))
    requests = [Request(0, (1,), 1), Request(1, (1,), 1)]
    sample, _ = sample_images(model, requests, on_step=recorder, shape=shape)
    assert len(recorder.frames) == len(seen) == 8
    assert seen == sorted(seen)
    assert seen[-1] == shape[0] * shape[1]
    last = np.asarray(recorder.frames[-1]).astype(int)
    assert np.abs(last - np.asarray(to_pillow(sample.image))).max() <= 1
    assert (np.asarray(recorder.frames[0]) != np.asarray(recorder.frames[-1])).any()


def test_gif() -> None:
    with Image.open(io.BytesIO(to_gif(frames()))) as film:
        assert (film.size, film.n_frames) == ((9, 7), 3)  # type: ignore[attr-defined]
        assert film.info["loop"] == 0  # for ever
        durations = []
        for number in range(3):
            film.seek(number)
            durations.append(film.info["duration"])
    assert durations == [100, 100, 1000]  # milliseconds


def test_mp4() -> None:
    pytest.importorskip("imageio_ffmpeg")
    import imageio.v3 as imageio

    film = to_mp4(frames(5))
    assert film is not None
    decoded = imageio.imread(io.BytesIO(film), extension=".mp4")
    assert decoded.shape == (5, 8, 10, 3)
    assert imageio.immeta(io.BytesIO(film), extension=".mp4")["fps"] == 10
    wide = to_mp4([Image.new("RGB", (10, 7))])
    assert wide is not None
    assert imageio.imread(io.BytesIO(wide), extension=".mp4").shape == (1, 8, 10, 3)
    assert decoded[0].mean() < 30 and decoded[-1].mean() > 220
