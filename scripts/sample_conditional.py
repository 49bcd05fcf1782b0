"""Sample images in the browser: pick an example or upload one, choose how, and watch it grow.

streamlit run scripts/sample_conditional.py -- -r logs/<run>
"""

from __future__ import annotations

import hashlib
import io
import sys
import zipfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

# Streamlit puts the script's own folder on the path, not the one that the package is in.
sys.path.append(str(Path(__file__).resolve().parents[1]))

import streamlit as st

ABOUT = """
A transformer samples the codes of an image one after another, and the VQGAN turns them into pixels.
Choose what to start from in the sidebar, an example of the model's data or a file of your own, then
press *Sample*. The same seed and settings give the same image again; a *temperature* below 1 and a
smaller *top k* make images more alike and cleaner, a larger *scale* makes them larger than those of
training.
"""

if __name__ == "__main__":  # before the imports below, which take seconds
    st.set_page_config(page_title="Sample an image", layout="wide")
    st.title("Sample an image")
    st.markdown(ABOUT)

from PIL import Image
from torch import Tensor

from taming.data.imagenet_classes import NAMES, SYNSETS
from taming.data.seeding import SeededDataset
from taming.errors import UserError, sentence
from taming.models.cond_transformer import Net2NetTransformer
from taming.pictures import enlarged, to_pillow
from taming.sampling import (
    Progress,
    Request,
    SampleSettings,
    request_for_inputs,
    sample_images,
)
from taming.sampling.animation import Recorder, to_gif, to_mp4
from taming.sampling.arguments import DataArguments, RunArguments, make_parser, read_arguments
from taming.sampling.completion import HALVES, keep_mask, known_indices
from taming.sampling.conditions import read_condition
from taming.sampling.folder import png_info
from taming.sampling.inputs import (
    SampleInputs,
    class_names,
    condition_images,
    has_scenes,
    inputs_of_example,
    inputs_of_files,
    reads_files,
    scaled,
)
from taming.sampling.load import open_dataset
from taming.sampling.settings import SCHEDULES
from taming.sampling.sizes import pixels_per_token
from taming.sampling.uploads import IMAGE_TYPES, require_pixels, stored

MOST_IMAGES, BATCH_SIZE = 16, 4  # of one press of the button, and sampled at once
CAPTION_KEYS = ("seed", "temperature", "top_k", "top_p", "keep")  # under the sample
LAYOUT_TYPES = ["yaml", "yml", "json"]


@dataclass(frozen=True)
class Result:
    """Sampled images.

    Attributes:
        caption: how they were sampled.
        files: contents and media types by format: the images, and films of how a single one grew.
    """

    images: list[Image.Image]
    caption: str
    files: dict[str, tuple[bytes, str]]

    @property
    def image(self) -> Image.Image:
        """The first image."""
        return self.images[0]


class Loaded(NamedTuple):
    """A model, its data (or None), its classes' names by number, and what to say of them."""

    model: Net2NetTransformer
    dataset: SeededDataset | None
    names: dict[int, str]
    text: str
    problem: str = ""  # why data that were to be there cannot be used


@st.cache_resource(show_spinner="Loading the model")
def load(run_arguments: RunArguments, data: DataArguments) -> Loaded:
    """The model and its data."""
    model, run, step, _ = data.load(run_arguments)
    text = f"{run.folder.name}, step {step}, on {model.device}"
    try:
        section = data.section(run, run_arguments)
    except UserError as error:
        if data.ignore_base_data:
            raise
        return Loaded(model, None, {}, f"{text}; no examples: {sentence(error)}")
    try:
        dataset = open_dataset(section, data.split)
    except UserError as error:
        own = model.n_classes == len(SYNSETS) and "taming.data.imagenet." in str(section)
        names = [NAMES[synset] for synset in SYNSETS] if own else []
        return Loaded(model, None, dict(enumerate(names)), text, sentence(error))
    return Loaded(model, dataset, class_names(dataset), text)


def choose_inputs(loaded: Loaded) -> SampleInputs:
    side, model, dataset = st.sidebar, loaded.model, loaded.dataset
    sources = ["an example", "an upload"] if dataset is not None else ["an upload"]
    source = side.radio("Start from", sources, key="source", horizontal=True)
    if dataset is not None and source == "an example":
        number = side.number_input("Example", 0, len(dataset) - 1, 0, key="example")
        inputs = inputs_of_example(model, dataset, int(number))
    else:
        inputs = choose_files(model, dataset)
    if model.n_classes is not None:
        own = 0 if inputs.c is None else int(inputs.c[0])
        label = choose_class(model.n_classes, own, loaded.names)
        inputs = replace(inputs, c=read_condition(model, str(label)))
    factor = side.slider("Scale", 0.5, 4.0, 1.0, 0.25, key="scale", help="of the image's sides")
    height, width = (int(factor * n) * pixels_per_token(model) for n in inputs.shape)
    require_pixels(height, width, "the sample")
    return scaled(model, inputs, factor)


def choose_class(count: int, own: int, names: dict[int, str]) -> int:
    """A class by its name, or by its number where there are no names; `own` is the example's."""
    side, key = st.sidebar, f"class of {own}"
    if not names:
        return int(side.number_input("Class", 0, count - 1, own, key=key))
    with_names = [
        f"{number}: {names[number]}" if number in names else str(number) for number in range(count)
    ]
    chosen = side.selectbox("Class", with_names, own, key=key)
    return with_names.index(chosen)


def choose_files(model: Net2NetTransformer, dataset: SeededDataset | None) -> SampleInputs:
    side, condition = st.sidebar, None
    image = side.file_uploader("Image to complete", IMAGE_TYPES, key="image")
    if reads_files(model, dataset):
        types = LAYOUT_TYPES if has_scenes(model, dataset) else IMAGE_TYPES
        condition = side.file_uploader(f"Condition: {model.cond_stage_key}", types, key="condition")
    reduce = side.checkbox("Reduce large images to the size of training", True, key="reduce")
    with stored(image, condition) as (image_path, condition_path):
        return inputs_of_files(model, dataset, image_path, condition_path, reduce)


def choose_settings(model: Net2NetTransformer) -> tuple[SampleSettings, int, int]:
    """How tokens are sampled, the seed, and how many images."""
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
    count = int(side.number_input("Images", 1, MOST_IMAGES, 1, key="count"))
    return SampleSettings(temperature, int(top_k), top_p, guidance, schedule), seed, count


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
    requests: list[Request],
    settings: SampleSettings,
    seed: int,
    shape: tuple[int, int],
) -> tuple[list[Image.Image], list[Image.Image]]:
    """The sampled images of `shape` (in tokens), and what the first of them looked like before."""
    place, bar = st.empty(), st.progress(0.0)
    images: list[Image.Image] = []

    def show(image: Image.Image, progress: Progress) -> None:
        share = (len(images) + progress.done / progress.total) / len(requests)
        of = f" of image {len(images) + 1}" if len(requests) > 1 else ""
        place.image(enlarged(image), caption="sampling")
        bar.progress(min(share, 1.0), f"{progress.done} of {progress.total} tokens{of}")

    recorder = Recorder(model, shape, on_frame=show)
    samples = sample_images(
        model,
        requests,
        settings,
        batch_size=BATCH_SIZE,
        seed=seed,
        on_step=recorder,
        shape=shape,
    )
    images.extend(to_pillow(sample.image) for sample in samples)
    place.empty()
    bar.empty()
    return images, recorder.frames


def finished(
    images: list[Image.Image], frames: list[Image.Image], record: dict[str, Any]
) -> Result:
    width, height = images[0].size
    settings = [f"{key.replace('_', ' ')} {record[key]}" for key in CAPTION_KEYS if key in record]
    caption = f"{width} x {height} pixels, {', '.join(settings)}"
    pngs = [as_png(image, record | {"number": number}) for number, image in enumerate(images)]
    if len(images) > 1:
        return Result(images, caption, {"ZIP": (zipped(pngs), "application/zip")})
    films = [enlarged(frame) for frame in [*frames, *images]]
    files = {"PNG": (pngs[0], "image/png"), "GIF": (to_gif(films), "image/gif")}
    film = to_mp4(films)
    if film is not None:
        files["MP4"] = (film, "video/mp4")
    return Result(images, caption, files)


def as_png(image: Image.Image, record: dict[str, Any]) -> bytes:
    content = io.BytesIO()
    image.save(content, "PNG", pnginfo=png_info(record))
    return content.getvalue()


def zipped(pngs: list[bytes]) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for number, png in enumerate(pngs):
            archive.writestr(f"{number:06}.png", png)
    return content.getvalue()


def show_result(result: Result) -> None:
    captions = [f"image {number}" for number in range(1, len(result.images) + 1)]
    st.image(
        [enlarged(image) for image in result.images],
        caption=[result.caption] if len(captions) == 1 else captions,
    )
    if len(captions) > 1:
        st.caption(result.caption)
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
    loaded = load(run_arguments, data)
    model, dataset = loaded.model, loaded.dataset
    st.caption(loaded.text)
    if loaded.problem:
        st.error(f"the examples cannot be opened: {loaded.problem}")
    inputs = choose_inputs(loaded)
    keep, kept = choose_kept(model, inputs)
    settings, seed, count = choose_settings(model)
    pressed = st.button("Sample", key="sample", type="primary")
    pictures = condition_pictures(key_of(inputs), run_arguments, model, dataset, inputs)
    with show_inputs(model, inputs, kept, pictures):
        if pressed:
            st.session_state.pop("result", None)
            requests = requests_for_inputs(model, inputs, kept, count)
            images, frames = sample(model, requests, settings, seed, inputs.shape)
            record = {"seed": seed, **settings.describe()} | ({"keep": keep} if keep else {})
            st.session_state.result = finished(images, frames, record)
        if "result" in st.session_state:
            show_result(st.session_state.result)


def requests_for_inputs(
    model: Net2NetTransformer, inputs: SampleInputs, kept: Tensor | None, count: int
) -> list[Request]:
    """Samples 0 to `count` - 1, which keep the tokens `kept` of the image."""
    known = None if inputs.x is None or kept is None else known_indices(model, inputs.x, kept)
    request = request_for_inputs(model, inputs, known)
    return [replace(request, number=number) for number in range(count)]


def main() -> None:
    try:
        show()
    except UserError as error:
        st.error(sentence(error))


if __name__ == "__main__":
    main()
