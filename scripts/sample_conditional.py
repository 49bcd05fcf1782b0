"""Sample images in the browser: pick an example or upload one, choose how, and watch it grow.

streamlit run scripts/sample_conditional.py -- -r logs/<run>
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

# Streamlit puts the script's own folder on the path, not the one that the package is in.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import streamlit as st
from PIL import Image
from torch import Tensor

from taming.data.files.images import image_mode_and_size
from taming.data.seeding import SeededDataset
from taming.errors import UserError, sentence
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import enlarged, to_pillow
from taming.sampling import Progress, SampleSettings, request_for_inputs, sample_images
from taming.sampling.animation import Recorder, to_gif, to_mp4
from taming.sampling.arguments import DataArguments, RunArguments, make_parser, read_arguments
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import read_condition
from taming.sampling.folder import png_info
from taming.sampling.inputs import (
    SampleInputs,
    condition_images,
    has_scenes,
    inputs_of_example,
    inputs_of_files,
    reads_files,
    scaled,
)
from taming.sampling.settings import SCHEDULES
from taming.sampling.sizes import pixels_per_token

MOST_BYTES = 20 * 2**20  # of an uploaded file
MOST_PIXELS = 25_000_000  # of an uploaded image, and of a sample
IMAGE_TYPES = ["png", "jpg", "jpeg", "webp", "bmp", "tif", "tiff"]
CAPTION_KEYS = ("seed", "temperature", "top_k", "top_p", "keep")  # under the sample
LAYOUT_TYPES = ["yaml", "yml", "json"]


@dataclass(frozen=True)
class Result:
    """A sampled image.

    Attributes:
        caption: how it was sampled.
        files: contents and media types by format: the image, and films of how it grew.
    """

    image: Image.Image
    caption: str
    files: dict[str, tuple[bytes, str]]


Loaded = tuple[Net2NetTransformer, SeededDataset | None, str]


@st.cache_resource(show_spinner="Loading the model")
def load(run_arguments: RunArguments, data: DataArguments) -> Loaded:
    """The model, its data (or None), and a line about them."""
    model, run, step, _ = data.load(run_arguments)
    text = f"{run.folder.name}, step {step}, on {model.device}"
    try:
        return model, data.open(run, run_arguments), text
    except UserError as error:
        return model, None, f"{text}; no examples: {sentence(error)}"


def choose_inputs(model: Net2NetTransformer, dataset: SeededDataset | None) -> SampleInputs:
    side = st.sidebar
    sources = ["an example", "an upload"] if dataset is not None else ["an upload"]
    source = side.radio("Start from", sources, key="source", horizontal=True)
    if dataset is not None and source == "an example":
        number = side.number_input("Example", 0, len(dataset) - 1, 0, key="example")
        inputs = inputs_of_example(model, dataset, int(number))
    else:
        inputs = choose_files(model, dataset)
    if model.n_classes is not None:
        own = 0 if inputs.c is None else int(inputs.c[0])
        label = side.number_input("Class", 0, model.n_classes - 1, own, key=f"class of {own}")
        inputs = replace(inputs, c=read_condition(model, str(int(label))))
    factor = side.slider("Scale", 0.5, 4.0, 1.0, 0.25, key="scale", help="of the image's sides")
    height, width = (int(factor * n) * pixels_per_token(model) for n in inputs.shape)
    require_pixels(height, width, "the sample")
    return scaled(model, inputs, factor)


def choose_files(model: Net2NetTransformer, dataset: SeededDataset | None) -> SampleInputs:
    side, condition = st.sidebar, None
    image = side.file_uploader("Image to complete", IMAGE_TYPES, key="image")
    if reads_files(model, dataset):
        types = LAYOUT_TYPES if has_scenes(model, dataset) else IMAGE_TYPES
        condition = side.file_uploader(f"Condition: {model.cond_stage_key}", types, key="condition")
    reduce = side.checkbox("Reduce large images to the size of training", True, key="reduce")
    with stored(image, condition) as (image_path, condition_path):
        return inputs_of_files(model, dataset, image_path, condition_path, reduce)


@contextmanager
def stored(*uploads: Any) -> Iterator[list[str | None]]:
    """The uploads as files on disk while the context lasts; errors have the names they came by."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            yield [
                None if upload is None else store(upload, Path(folder) / str(number))
                for number, upload in enumerate(uploads)
            ]
        except UserError as error:
            message = str(error)
            for number in range(len(uploads)):
                message = message.replace(f"{folder}/{number}/", "")
            raise UserError(message) from None


def safe_name(name: str) -> str:
    """What a browser calls a file, as a name in a folder here."""
    last = re.sub(r"[^\w .-]", "_", re.split(r"[/\\]", name)[-1])
    return f"upload{last[-100:]}" if last.startswith(".") or not last else last[-100:]


def store(upload: Any, folder: Path) -> str:
    """Write an upload, unless it is too large, into a new folder; returns its path."""
    path = folder / safe_name(upload.name)
    content = upload.getvalue()
    if len(content) > MOST_BYTES:
        raise UserError(f"{path} has more than {MOST_BYTES // 2**20} MiB")
    folder.mkdir()
    path.write_bytes(content)
    if path.suffix.lower().lstrip(".") in IMAGE_TYPES:
        require_pixels(*image_mode_and_size(str(path))[1], str(path))  # as its header says
    return str(path)


def require_pixels(height: int, width: int, what: str) -> None:
    if height * width > MOST_PIXELS:
        raise UserError(f"{what} has {width} x {height} pixels; {MOST_PIXELS:,} are allowed")


def choose_settings(model: Net2NetTransformer) -> tuple[SampleSettings, int]:
    """How tokens are sampled, and the seed."""
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


def choose_kept(
    model: Net2NetTransformer, inputs: SampleInputs
) -> tuple[str | None, Tensor | None]:
    """What is kept of the image, in words, and which tokens those are: bool (h, w)."""
    if inputs.x is None:
        return None, None
    keep = st.sidebar.selectbox("Keep of the image", ["nothing", *HALVES, "a box"], key="keep")
    height, width = inputs.x.shape[2:]
    if keep == "nothing":
        return None, None
    if keep == "a box":
        box = f"0,0,{width},{height // 2}"
        keep = st.sidebar.text_input("x0,y0,x1,y1, in pixels", box, key=f"box {box}")
    return keep, keep_mask(keep, (height, width), pixels_per_token(model), read_files=False)


def key_of(inputs: SampleInputs) -> str:
    digest = hashlib.sha256(repr((inputs.shape, inputs.scene)).encode())
    if inputs.c is not None:
        digest.update(inputs.c.contiguous().numpy().data)
    return digest.hexdigest()


@st.cache_data(show_spinner="Reading the condition", max_entries=20)
def condition_pictures(
    key: str,
    run_arguments: RunArguments,
    _model: Net2NetTransformer,
    _dataset: SeededDataset | None,
    _inputs: SampleInputs,
) -> dict[str, Image.Image]:
    """What the condition looks like, by name; `key` and `run_arguments` tell calls apart."""
    images = condition_images(_model, _inputs, _dataset)
    return {name: enlarged(to_pillow(image)) for name, image in images.items()}


def show_inputs(
    model: Net2NetTransformer,
    inputs: SampleInputs,
    kept: Tensor | None,
    pictures: dict[str, Image.Image],
) -> Any:
    """The image and the condition in columns, as far as there are any; the sample's column."""
    columns = st.columns(1 + (inputs.x is not None) + bool(pictures))
    if inputs.x is not None:
        name, x = "image", inputs.x[0]
        if kept is not None:
            factor = pixels_per_token(model)
            x = x.where(kept.repeat_interleave(factor, 0).repeat_interleave(factor, 1), 0.0)
            name = "what is kept of the image"
        columns[0].image(enlarged(to_pillow(x)), caption=name)
    for name, picture in pictures.items():
        columns[-2].image(picture, caption=name)
    return columns[-1]


def sample(
    model: Net2NetTransformer,
    inputs: SampleInputs,
    settings: SampleSettings,
    seed: int,
    kept: Tensor | None,
) -> list[Image.Image]:
    """The image as it grows, the finished one last."""
    known = None if inputs.x is None or kept is None else known_indices(model, inputs.x, kept)
    request = request_for_inputs(model, inputs, known)
    place, bar = st.empty(), st.progress(0.0)

    def show(image: Image.Image, progress: Progress) -> None:
        text = f"{progress.done} of {progress.total} tokens"
        place.image(enlarged(image), caption="sampling")
        bar.progress(progress.done / progress.total, text)

    recorder = Recorder(model, inputs.shape, on_frame=show)
    samples = sample_images(
        model,
        [request],
        settings,
        batch_size=1,
        seed=seed,
        on_step=recorder,
        shape=inputs.shape,
    )
    recorder.frames.append(to_pillow(next(samples).image))
    place.empty()
    bar.empty()
    return recorder.frames


def finished(frames: list[Image.Image], record: dict[str, Any]) -> Result:
    png, films = io.BytesIO(), [enlarged(frame) for frame in frames]
    frames[-1].save(png, "PNG", pnginfo=png_info(record))
    files = {"PNG": (png.getvalue(), "image/png"), "GIF": (to_gif(films), "image/gif")}
    film = to_mp4(films)
    if film is not None:
        files["MP4"] = (film, "video/mp4")
    width, height = frames[-1].size
    settings = [f"{key.replace('_', ' ')} {record[key]}" for key in CAPTION_KEYS if key in record]
    return Result(frames[-1], f"{width} x {height} pixels, {', '.join(settings)}", files)


def show_result(result: Result) -> None:
    st.image(enlarged(result.image), caption=result.caption)
    columns = st.columns(len(result.files))
    for column, (name, (content, kind)) in zip(columns, result.files.items(), strict=True):
        column.download_button(name, content, f"sample.{name.lower()}", kind, key=name)


def require_local_server() -> None:
    """Refuse to work where streamlit listens on all interfaces because nobody said otherwise."""
    if not st.get_option("server.address"):
        raise UserError(
            "streamlit opens this page to all of your network: start it from the repository's "
            "folder, or with --server.address localhost before the script's name; to open it on "
            "purpose, name an address there, such as 0.0.0.0"
        )


def show() -> None:
    require_local_server()
    parser = make_parser("Sample images in the browser.", DataArguments)
    run_arguments, data = read_arguments(parser, DataArguments, None)
    model, dataset, text = load(run_arguments, data)
    st.title("Sample an image")
    st.caption(text)
    inputs = choose_inputs(model, dataset)
    keep, kept = choose_kept(model, inputs)
    settings, seed = choose_settings(model)
    pressed = st.button("Sample", key="sample", type="primary")
    pictures = condition_pictures(key_of(inputs), run_arguments, model, dataset, inputs)
    with show_inputs(model, inputs, kept, pictures):
        if pressed:
            st.session_state.pop("result", None)
            frames = sample(model, inputs, settings, seed, kept)
            record = {"seed": seed, **asdict(settings)} | ({"keep": keep} if keep else {})
            st.session_state.result = finished(frames, record)
        if "result" in st.session_state:
            show_result(st.session_state.result)


def main() -> None:
    st.set_page_config(page_title="Sample an image", layout="wide")
    try:
        show()
    except UserError as error:
        st.error(sentence(error))


if __name__ == "__main__":
    main()
