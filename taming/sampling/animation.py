"""Images while they are sampled: pictures of unfinished indices, and films of them."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence

import numpy as np
import torch
from PIL import Image

from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import to_pillow
from taming.sampling.engine import Progress

FRAMES_PER_SECOND = 10


class Recorder:
    """An `on_step` of `sample_images` that decodes the batch's first image, about `frames` times.

    `shape` is the image's in tokens; `on_frame` is called with every picture.
    """

    def __init__(
        self,
        model: Net2NetTransformer,
        shape: tuple[int, int],
        frames: int = 40,
        on_frame: Callable[[Image.Image, Progress], None] | None = None,
    ) -> None:
        self.model, self.shape, self.most_frames, self.on_frame = model, shape, frames, on_frame
        self.frames: list[Image.Image] = []
        self._decoded = 0

    @torch.no_grad()
    def __call__(self, progress: Progress) -> None:
        due = progress.done * self.most_frames // progress.total
        if due == self._decoded:
            return
        self._decoded = due
        channels, _, _ = self.model.latent_shape()
        indices = progress.indices[:1].clone()
        image = self.model.decode_to_picture(indices, (1, channels, *self.shape))
        self.frames.append(to_pillow(image[0].float()))
        if self.on_frame is not None:
            self.on_frame(self.frames[-1], progress)


def to_gif(frames: Sequence[Image.Image]) -> bytes:
    """The frames as a GIF that starts over after a second on the last one."""
    buffer = io.BytesIO()
    durations = [1000 // FRAMES_PER_SECOND] * (len(frames) - 1) + [1000]
    frames[0].save(
        buffer, "GIF", save_all=True, append_images=frames[1:], duration=durations, loop=0
    )
    return buffer.getvalue()


def to_mp4(frames: Sequence[Image.Image]) -> bytes | None:
    """The frames as an MP4; None if imageio or ffmpeg is not installed."""
    try:
        import imageio.v3 as imageio
        import imageio_ffmpeg  # noqa: F401  # what imageio writes films with
    except ImportError:
        return None
    pictures = np.stack([np.asarray(frame.convert("RGB")) for frame in frames])
    _, height, width, _ = pictures.shape
    # The usual pixel format needs even sides.
    pictures = np.pad(pictures, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), "edge")
    buffer = io.BytesIO()
    imageio.imwrite(
        buffer, pictures, extension=".mp4", fps=FRAMES_PER_SECOND, macro_block_size=1, codec="h264"
    )
    return buffer.getvalue()
