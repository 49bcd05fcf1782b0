"""Drawing: samples of what is chosen, and parts of a sample drawn again."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import streamlit as st
from PIL import Image
from torch import Tensor

from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import enlarged, to_pillow
from taming.sampling import (
    Progress,
    Request,
    Sample,
    SampleSettings,
    request_for_inputs,
    sample_images,
)
from taming.sampling.animation import Recorder, to_gif, to_mp4
from taming.sampling.completion import known_indices
from taming.sampling.engine import raster_indices
from taming.sampling.folder import png_info
from taming.sampling.inputs import SampleInputs

BATCH_SIZE = 4  # sampled at once
CAPTION_KEYS = (
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "guidance",
    "keep",
    "steps",
    "prompts",
)  # under the samples


@dataclass(frozen=True)
class Drawn:
    """Samples of one press of a button.

    Attributes:
        indices: int64 (h, w) of each image, row by row.
        requests: what was sampled, of which parts can be sampled again.
        record: how all of them were sampled; `changes` are those of single images afterwards.
        link: what was chosen, for the page's address.
        frames: what the first image looked like while it was drawn.
    """

    run: str
    images: tuple[Image.Image, ...]
    indices: tuple[Tensor, ...]
    requests: tuple[Request, ...]
    record: Mapping[str, Any]
    link: Mapping[str, str]
    frames: tuple[Image.Image, ...] = ()
    changes: Mapping[int, Sequence[Mapping[str, Any]]] = field(default_factory=dict)

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]

    @property
    def seed(self) -> int:
        """The seed of the samples."""
        return int(self.record["seed"])

    @property
    def caption(self) -> str:
        """How they were sampled."""
        width, height = self.image.size
        shown = [key for key in CAPTION_KEYS if self.record.get(key) is not None]
        shown = [key for key in shown if key != "guidance" or self.record[key] != 1]
        settings = [f"{key.replace('_', ' ')} {_as_text(self.record[key])}" for key in shown]
        count = sum(map(len, self.changes.values()))
        again = [f"{count} region{'s' * (count > 1)} drawn again"] if count else []
        return f"{width} x {height} pixels, {', '.join([*settings, *again])}"

    @cached_property
    def pngs(self) -> list[bytes]:
        """The images as files, which say how they were made."""
        records = [
            {**self.record, "number": request.number}
            | ({"changes": list(self.changes[place])} if place in self.changes else {})
            for place, request in enumerate(self.requests)
        ]
        return [as_png(*pair) for pair in zip(self.images, records, strict=True)]

    @cached_property
    def files(self) -> dict[str, tuple[bytes, str]]:
        """Contents and media types by format: the images, and films of how a single one grew."""
        if len(self.images) > 1:
            names = [f"{number:06}.png" for number in range(len(self.images))]
            return {"ZIP": (zipped(dict(zip(names, self.pngs, strict=True))), "application/zip")}
        films = [enlarged(frame) for frame in [*self.frames, *self.images]]
        files = {"PNG": (self.pngs[0], "image/png"), "GIF": (to_gif(films), "image/gif")}
        film = to_mp4(films)
        if film is not None:
            files["MP4"] = (film, "video/mp4")
        return files


def _as_text(value: object) -> str:
    """A setting under an image: of prompts their names, and weights other than 1."""
    if not isinstance(value, list):
        return str(value)
    return " + ".join(name if w == 1 else f"{name}:{w:g}" for name, w in value)


def as_png(image: Image.Image, record: Mapping[str, Any]) -> bytes:
    """A PNG that holds `record`."""
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=png_info(dict(record)))
    return content.getvalue()


def zipped(files: Mapping[str, bytes]) -> bytes:
    """An archive of files by name."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return content.getvalue()


def requests_for_inputs(
    model: Net2NetTransformer, inputs: SampleInputs, kept: Tensor | None, count: int
) -> list[Request]:
    """Samples 0 to `count` - 1, which keep the tokens `kept` of the image."""
    known = None if inputs.x is None or kept is None else known_indices(model, inputs.x, kept)
    request = request_for_inputs(model, inputs, known)
    return [replace(request, number=number) for number in range(count)]


def sample(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    seed: int,
    shape: tuple[int, int],
) -> tuple[list[Sample], list[Image.Image]]:
    """Samples of `shape` (in tokens), and what the first of them looked like before."""
    place, bar = st.empty(), st.progress(0.0)
    samples: list[Sample] = []

    def show(image: Image.Image, progress: Progress) -> None:
        share = (len(samples) + progress.done / progress.total) / len(requests)
        of = f" of image {len(samples) + 1}" if len(requests) > 1 else ""
        place.image(enlarged(image), caption="sampling")
        bar.progress(min(share, 1.0), f"{progress.done} of {progress.total} tokens{of}")

    recorder = Recorder(model, shape, on_frame=show)
    samples.extend(
        sample_images(
            model,
            requests,
            settings,
            batch_size=BATCH_SIZE,
            seed=seed,
            on_step=recorder,
            shape=shape,
        )
    )
    place.empty()
    bar.empty()
    return samples, recorder.frames


def draw(
    model: Net2NetTransformer,
    requests: Sequence[Request],
    settings: SampleSettings,
    seed: int,
    *,
    shape: tuple[int, int],
    run: str,
    link: Mapping[str, str],
    keep: str | None = None,
) -> Drawn:
    """Sample the requests; `keep` says in words what of an image was kept."""
    samples, frames = sample(model, requests, settings, seed, shape)
    record = {"seed": seed, **settings.describe()} | ({"keep": keep} if keep else {})
    return Drawn(
        run,
        images=tuple(to_pillow(one.image) for one in samples),
        indices=tuple(raster_indices(model, one).view(shape) for one in samples),
        requests=tuple(requests),
        record=record,
        link=dict(link),
        frames=tuple(frames),
    )


def draw_again(
    model: Net2NetTransformer,
    drawn: Drawn,
    number: int,
    kept: Tensor,
    settings: SampleSettings,
    *,
    seed: int,
) -> Drawn:
    """The same, with those codes of image `number` sampled again that are not `kept`, bool (h, w).

    With a `seed` that was not used for these images it is something new, see `History.next_seed`.
    """
    before = drawn.indices[number]
    earlier = list(drawn.changes.get(number, ()))
    known = before.masked_fill(~kept, -1)
    request = replace(drawn.requests[number], known=known)
    (one,), frames = sample(model, [request], settings, seed, (before.shape[0], before.shape[1]))
    change = {"seed": seed, **settings.describe(), "codes": int((~kept).sum())}
    images, indices = list(drawn.images), list(drawn.indices)
    images[number] = to_pillow(one.image)
    indices[number] = raster_indices(model, one).view(before.shape)
    return replace(
        drawn,
        images=tuple(images),
        indices=tuple(indices),
        changes={**drawn.changes, number: [*earlier, change]},
        frames=(*drawn.frames, *frames) if len(images) == 1 else drawn.frames,
    )
