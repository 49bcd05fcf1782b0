"""Draw images in the browser: pick an example or upload one, choose how, and watch it grow.

streamlit run scripts/sample_conditional.py -- -r logs/<run>
"""

from __future__ import annotations

import io
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Streamlit puts the script's own folder on the path, not the one that the package is in.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import streamlit as st
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from taming.errors import UserError, sentence
from taming.models.pictures import condition_pictures
from taming.sampling import Progress, SampleSettings, sample_images
from taming.sampling.animation import Recorder, to_gif, to_mp4
from taming.sampling.arguments import make_parser, parse
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import cut_to_tokens, read_condition, read_picture, request_for
from taming.sampling.examples import data_config, open_dataset, read_example
from taming.sampling.folder import to_pillow
from taming.sampling.load import choose_device, choose_dtype, load_transformer
from taming.sampling.settings import SCHEDULES
from taming.sampling.sizes import pixels_per_token

IMAGE_TYPES = ["png", "jpg", "jpeg", "webp"]


@dataclass
class Start:
    """What drawing starts from: an image [1, C, H, W] or none, a condition or none, and the size
    in tokens."""

    x: Tensor | None
    c: Tensor | None
    shape: tuple[int, int]


def read_arguments() -> tuple[Namespace, list[str]]:
    parser = make_parser("Draw images in the browser.")
    parser.add_argument("-c", "--config", nargs="+", default=[], metavar="YAML")
    parser.add_argument(
        "--ignore_base_data", action="store_true", help="take the data from --base and --config"
    )
    return parse(parser)


@st.cache_resource(show_spinner="Loading the model")
def load(flags: str, _args: Namespace, _overrides: list[str]) -> tuple[Any, Any, str]:
    """The model, its data (or None), and a line about them; `flags` tells calls apart."""
    base = [*_args.base, *_args.config]
    device = choose_device(_args.device)
    dtype = choose_dtype(_args.precision, device)
    model_base = _args.base if _args.ignore_base_data else base
    model, run, step = load_transformer(_args.resume, model_base, device, _overrides, dtype)
    about = f"{run.folder.name}, step {step}, on {device}"
    try:
        dataset = open_dataset(data_config(run, base, _overrides, _args.ignore_base_data))
    except UserError as error:
        return model, None, f"{about}; no examples: {sentence(error)}"
    return model, dataset, about


def choose_start(model: Any, dataset: Any) -> Start:
    sources = ["an example", "an upload"] if dataset is not None else ["an upload"]
    if st.sidebar.radio("Start from", sources, key="source") == "an example":
        number = st.sidebar.number_input("Example", 0, len(dataset) - 1, 0, key="example")
        example = read_example(model, dataset, int(number))
        start = Start(example.x, example.c, example.shape)
    else:
        start = read_uploads(model)
    classes = getattr(model.cond_stage_model, "n_classes", None)
    if classes is not None:
        own = 0 if start.c is None else int(start.c[0])
        label = st.sidebar.number_input("Class", 0, classes - 1, own, key=f"class of {own}")
        start.c = read_condition(model, str(int(label)), (0, 0))
    return scaled(model, start, st.sidebar.slider("Scale", 0.5, 4.0, 1.0, 0.25, key="scale"))


def read_uploads(model: Any) -> Start:
    factor = pixels_per_token(model)
    _, height, width = model.latent_shape()
    channels = model.first_stage_model.encoder.conv_in.in_channels
    picture = st.sidebar.file_uploader("Image to complete", IMAGE_TYPES, key="image")
    x = None
    if picture is not None:
        with stored(picture) as path:
            x = cut_to_tokens(read_picture(path, channels), factor)
        height, width = x.shape[2] // factor, x.shape[3] // factor
    c = None
    if hasattr(model.cond_stage_model, "encoder") and not model.be_unconditional:
        file = st.sidebar.file_uploader(model.cond_stage_key, IMAGE_TYPES, key="condition")
        if file is not None:
            with stored(file) as path:
                height, width = (height, width) if x is not None else tokens_of(path, factor)
                c = read_condition(model, path, (height * factor, width * factor))
    return Start(x, c, (height, width))


@contextmanager
def stored(upload: Any) -> Iterator[str]:
    """The upload as a file on disk, while the context lasts."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / Path(upload.name).name
        path.write_bytes(upload.getvalue())
        yield str(path)


def tokens_of(path: str, factor: int) -> tuple[int, int]:
    try:
        with Image.open(path) as image:
            return image.height // factor, image.width // factor
    except OSError:
        raise UserError(f"{Path(path).name} is no image") from None


def scaled(model: Any, start: Start, scale: float) -> Start:
    if scale == 1:
        return start
    factor = pixels_per_token(model)
    height, width = (max(1, round(side * scale)) for side in start.shape)
    size = (height * factor, width * factor)
    labels = hasattr(model.cond_stage_model, "colorize")
    x = None if start.x is None else F.interpolate(start.x, size, mode="bilinear")
    c = start.c
    if c is not None and c.dim() == 4:
        c = F.interpolate(c, size, mode="nearest-exact" if labels else "bilinear")
    return Start(x, c, (height, width))


def choose_settings(model: Any) -> tuple[SampleSettings, int, str]:
    """How tokens are drawn, the seed, and what part of the image is kept."""
    side = st.sidebar
    temperature = side.slider("Temperature", 0.0, 2.0, 1.0, 0.05, key="temperature")
    codes = model.n_codes
    top_k = side.number_input("Top k", 1, codes, min(100, codes), key="top_k")
    top_p = side.slider("Top p", 0.01, 1.0, 1.0, 0.01, key="top_p")
    guidance, schedule = 1.0, "constant"
    if model.cond_drop:
        guidance = side.slider("Guidance", 0.0, 10.0, 1.0, 0.25, key="guidance")
        schedule = side.selectbox("Schedule of the guidance", list(SCHEDULES), key="schedule")
    seed = int(side.number_input("Seed", 0, 2**31, 0, key="seed"))
    keep = side.selectbox("Keep of the image", ["nothing", *HALVES], key="keep")
    settings = SampleSettings(temperature, int(top_k), top_p, guidance, schedule)
    return settings, seed, str(keep)


def show_start(model: Any, start: Start) -> None:
    columns = st.columns(2)
    if start.x is not None:
        columns[0].image(to_pillow(start.x[0]), caption="image", width=256)
    if start.c is not None:
        factor, device = pixels_per_token(model), model.device
        size = (start.shape[0] * factor, start.shape[1] * factor)
        c = start.c.to(device)
        quant, _ = model.encode_to_c(c)
        for name, picture in condition_pictures(model.cond_stage_model, c, quant, size).items():
            columns[1].image(to_pillow(picture[0].float()), caption=name, width=256)


def draw(model: Any, start: Start, settings: SampleSettings, seed: int, keep: str) -> Recorder:
    known = None
    if keep != "nothing":
        if start.x is None:
            raise UserError("there is no image to keep a part of; upload one, or keep nothing")
        size = (start.x.shape[2], start.x.shape[3])
        known = known_indices(model, start.x, keep_mask(keep, size, pixels_per_token(model)))
    request = request_for(model, start.c, 0, start.shape, known)
    place, bar = st.empty(), st.progress(0.0)

    def show(image: Image.Image, progress: Progress) -> None:
        place.image(image, width=512)
        bar.progress(progress.drawn / progress.total)

    recorder = Recorder(model, start.shape, on_frame=show)
    samples = sample_images(
        model, [request], settings, 1, seed, on_step=recorder, shape=start.shape
    )
    recorder.frames.append(to_pillow(next(samples).image))
    place.empty()
    bar.empty()
    return recorder


def show_result(frames: list[Image.Image]) -> None:
    st.image(frames[-1], caption="sample", width=512)
    png = io.BytesIO()
    frames[-1].save(png, "PNG")
    st.download_button("Image (PNG)", png.getvalue(), "sample.png", "image/png")
    st.download_button("Animation (GIF)", to_gif(frames), "sample.gif", "image/gif")
    film = to_mp4(frames)
    if film is not None:
        st.download_button("Animation (MP4)", film, "sample.mp4", "video/mp4")


def show() -> None:
    args, overrides = read_arguments()
    model, dataset, about = load(repr((vars(args), overrides)), args, overrides)
    st.title("Draw an image")
    st.caption(about)
    start = choose_start(model, dataset)
    settings, seed, keep = choose_settings(model)
    show_start(model, start)
    if st.button("Draw", key="draw"):
        st.session_state.frames = draw(model, start, settings, seed, keep).frames
    if "frames" in st.session_state:
        show_result(st.session_state.frames)


def main() -> None:
    st.set_page_config(page_title="Draw an image")
    try:
        show()
    except UserError as error:
        st.error(sentence(error))


if __name__ == "__main__":
    main()
