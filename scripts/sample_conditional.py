"""Draw images in the browser: pick an example or upload one, choose how, and watch it grow.

streamlit run scripts/sample_conditional.py -- -r logs/<run>
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tempfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Streamlit puts the script's own folder on the path, not the one that the package is in.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import streamlit as st
from PIL import Image, PngImagePlugin
from torch import Tensor

from taming.devices import choose_device, choose_dtype
from taming.errors import UserError, sentence
from taming.sampling import Progress, SampleSettings, sample_images
from taming.sampling.animation import Recorder, enlarged, to_gif, to_mp4
from taming.sampling.arguments import make_parser, parse
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import read_condition
from taming.sampling.examples import data_config, open_dataset
from taming.sampling.folder import RECORD, to_pillow
from taming.sampling.load import load_transformer
from taming.sampling.settings import SCHEDULES
from taming.sampling.sizes import pixels_per_token
from taming.sampling.starts import (
    Start,
    has_scenes,
    pictures_of,
    reads_files,
    request_of,
    scaled,
    start_of_example,
    start_of_files,
)

IMAGE_TYPES = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"]
TOLD = ("seed", "temperature", "top_k", "top_p", "keep")  # under the sample
LAYOUT_TYPES = ["yaml", "yml", "json"]


@dataclass(frozen=True)
class Result:
    """A drawn image.

    Attributes:
        caption: how it was drawn.
        files: contents and media types by format: the image, and films of how it grew.
    """

    image: Image.Image
    caption: str
    files: dict[str, tuple[bytes, str]]


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
    side = st.sidebar
    sources = ["an example", "an upload"] if dataset is not None else ["an upload"]
    if side.radio("Start from", sources, key="source", horizontal=True) == "an example":
        number = side.number_input("Example", 0, len(dataset) - 1, 0, key="example")
        start = start_of_example(model, dataset, int(number))
    else:
        start = choose_files(model, dataset)
    classes = getattr(model.cond_stage_model, "n_classes", None)
    if classes is not None:
        own = 0 if start.c is None else int(start.c[0])
        label = side.number_input("Class", 0, classes - 1, own, key=f"class of {own}")
        start = replace(start, c=read_condition(model, str(int(label))))
    factor = side.slider("Scale", 0.5, 4.0, 1.0, 0.25, key="scale", help="of the image's sides")
    return scaled(model, start, factor)


def choose_files(model: Any, dataset: Any) -> Start:
    side, condition = st.sidebar, None
    image = side.file_uploader("Image to complete", IMAGE_TYPES, key="image")
    if reads_files(model, dataset):
        types = LAYOUT_TYPES if has_scenes(model, dataset) else IMAGE_TYPES
        condition = side.file_uploader(f"Condition: {model.cond_stage_key}", types, key="condition")
    reduce = side.checkbox("Reduce large images to the size of training", True, key="reduce")
    with stored(image, condition) as (image_path, condition_path):
        return start_of_files(model, dataset, image_path, condition_path, reduce)


@contextmanager
def stored(*uploads: Any) -> Iterator[list[str | None]]:
    """The uploads as files on disk while the context lasts; errors name them as people do."""
    with tempfile.TemporaryDirectory() as folder:
        paths: list[str | None] = []
        for number, upload in enumerate(uploads):
            paths.append(None)
            if upload is not None:
                path = Path(folder) / str(number) / Path(upload.name).name
                path.parent.mkdir()
                path.write_bytes(upload.getvalue())
                paths[-1] = str(path)
        try:
            yield paths
        except UserError as error:
            message = str(error)
            for number in range(len(uploads)):
                message = message.replace(f"{folder}/{number}/", "")
            raise UserError(message) from None


def choose_settings(model: Any) -> tuple[SampleSettings, int]:
    """How tokens are drawn, and the seed."""
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
    return SampleSettings(temperature, int(top_k), top_p, guidance, schedule), seed


def choose_kept(model: Any, start: Start) -> tuple[str | None, Tensor | None]:
    """What is kept of the image, in words, and which tokens those are: bool (h, w)."""
    if start.x is None:
        return None, None
    keep = st.sidebar.selectbox("Keep of the image", ["nothing", *HALVES, "a box"], key="keep")
    height, width = start.x.shape[2:]
    if keep == "nothing":
        return None, None
    if keep == "a box":
        box = f"0,0,{width},{height // 2}"
        keep = st.sidebar.text_input("x0,y0,x1,y1, in pixels", box, key=f"box {box}")
    return keep, keep_mask(keep, (height, width), pixels_per_token(model))


def key_of(start: Start) -> str:
    digest = hashlib.sha256(repr((start.shape, start.scene)).encode())
    if start.c is not None:
        digest.update(start.c.contiguous().numpy().data)
    return digest.hexdigest()


@st.cache_data(show_spinner="Reading the condition", max_entries=20)
def condition_pictures(
    key: str, flags: str, _model: Any, _dataset: Any, _start: Start
) -> dict[str, Image.Image]:
    """What the condition looks like, by name; `key` and `flags` tell calls apart."""
    pictures = pictures_of(_model, _dataset, _start)
    return {name: enlarged(to_pillow(picture)) for name, picture in pictures.items()}


def show_start(
    model: Any, start: Start, kept: Tensor | None, pictures: dict[str, Image.Image]
) -> Any:
    """The image and the condition in columns, as far as there are any; the sample's column."""
    columns = st.columns(1 + (start.x is not None) + bool(pictures))
    if start.x is not None:
        name, x = "image", start.x[0]
        if kept is not None:
            factor = pixels_per_token(model)
            x = x.where(kept.repeat_interleave(factor, 0).repeat_interleave(factor, 1), 0.0)
            name = "what is kept of the image"
        columns[0].image(enlarged(to_pillow(x)), caption=name)
    for name, picture in pictures.items():
        columns[-2].image(picture, caption=name)
    return columns[-1]


def draw(
    model: Any, dataset: Any, start: Start, settings: SampleSettings, seed: int, kept: Tensor | None
) -> list[Image.Image]:
    """The image as it grows, the finished one last."""
    known = None if start.x is None or kept is None else known_indices(model, start.x, kept)
    request = request_of(model, dataset, start, known)
    place, bar = st.empty(), st.progress(0.0)

    def show(image: Image.Image, progress: Progress) -> None:
        text = f"{progress.drawn} of {progress.total} tokens"
        place.image(enlarged(image), caption="drawing")
        bar.progress(progress.drawn / progress.total, text)

    recorder = Recorder(model, start.shape, on_frame=show)
    samples = sample_images(
        model, [request], settings, 1, seed, on_step=recorder, shape=start.shape
    )
    recorder.frames.append(to_pillow(next(samples).image))
    place.empty()
    bar.empty()
    return recorder.frames


def finished(frames: list[Image.Image], record: dict[str, Any]) -> Result:
    info, png, films = PngImagePlugin.PngInfo(), io.BytesIO(), [enlarged(f) for f in frames]
    info.add_text(RECORD, json.dumps(record))
    frames[-1].save(png, "PNG", pnginfo=info)
    files = {"PNG": (png.getvalue(), "image/png"), "GIF": (to_gif(films), "image/gif")}
    film = to_mp4(films)
    if film is not None:
        files["MP4"] = (film, "video/mp4")
    width, height = frames[-1].size
    told = [f"{key.replace('_', ' ')} {record[key]}" for key in TOLD if key in record]
    return Result(frames[-1], f"{width} x {height} pixels, {', '.join(told)}", files)


def show_result(result: Result) -> None:
    st.image(enlarged(result.image), caption=result.caption)
    columns = st.columns(len(result.files))
    for column, (name, (content, kind)) in zip(columns, result.files.items(), strict=True):
        column.download_button(name, content, f"sample.{name.lower()}", kind, key=name)


def show() -> None:
    args, overrides = read_arguments()
    flags = repr((vars(args), overrides))
    model, dataset, about = load(flags, args, overrides)
    st.title("Draw an image")
    st.caption(about)
    start = choose_start(model, dataset)
    keep, kept = choose_kept(model, start)
    settings, seed = choose_settings(model)
    asked = st.button("Draw", key="draw", type="primary")
    pictures = condition_pictures(key_of(start), flags, model, dataset, start)
    with show_start(model, start, kept, pictures):
        if asked:
            st.session_state.pop("result", None)
            frames = draw(model, dataset, start, settings, seed, kept)
            record = {"seed": seed, **asdict(settings)} | ({"keep": keep} if keep else {})
            st.session_state.result = finished(frames, record)
        if "result" in st.session_state:
            show_result(st.session_state.result)


def main() -> None:
    st.set_page_config(page_title="Draw an image", layout="wide")
    try:
        show()
    except UserError as error:
        st.error(sentence(error))


if __name__ == "__main__":
    main()
