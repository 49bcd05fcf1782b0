"""The demo, run by streamlit's own test bench."""

from __future__ import annotations

import io
import json
import os
import runpy
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image

from taming.errors import UserError
from taming.sampling import SampleSettings
from taming.sampling.folder import RECORD
from taming.sampling.inputs import SampleInputs
from tests.kit.demo import SCRIPT, app, captions, error_of, note_calls, sampled, served_locally
from tests.kit.images import write_image
from tests.kit.models import FIRST_STAGE, tiny_model, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import SEGMENTED, write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes

pytest.importorskip("streamlit")
config = pytest.importorskip("streamlit.config")
WIDE: dict[str, Any] = {
    "target": "taming.modules.transformer.mingpt.GPT",
    "params": {"vocab_size": 64, "block_size": 32, "n_layer": 2, "n_head": 2, "n_embd": 16},
}
LABELS: dict[str, Any] = {
    "cond_stage_config": {
        "target": "taming.models.vqgan.VQSegmentationModel",
        "params": {
            **FIRST_STAGE["params"],
            "n_labels": 4,
            "ddconfig": {**FIRST_STAGE["params"]["ddconfig"], "in_channels": 4, "out_ch": 4},
        },
    },
    "cond_stage_key": "segmentation",
    "transformer_config": WIDE,
}
COORDINATES: dict[str, Any] = {
    "cond_stage_config": {
        "target": "taming.modules.misc.coord.CoordStage",
        "params": {"n_embed": 20, "down_factor": 2},
    },
    "cond_stage_key": "coord",
    "transformer_config": WIDE,
}
FIRST_MODULE = """
import runpy, sys

class Stop:
    def find_spec(self, name, path=None, target=None):
        if name.startswith("taming.demo."):
            sys.exit(name)

sys.meta_path.insert(0, Stop())
runpy.run_path(sys.argv[1], run_name="__main__")
"""
# Changes to the model, and the names under the pictures of its condition.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "class": ({}, 1),
    "picture": (SEGMENTED, 2),
    "labels": (LABELS, 2),
    "coordinates": (COORDINATES, 2),
    "none": ({"cond_stage_config": "__is_unconditional__"}, 0),
    "scenes": (SCENES, 1),
}


@pytest.fixture(autouse=True)
def local_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    yield from served_locally(tmp_path, monkeypatch)


@pytest.mark.parametrize("kind", list(KINDS))
def test_every_kind_of_condition(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes, pictures = KINDS[kind]
    run = tiny_run(tmp_path / "run", transformer_config(**changes))
    scenes = kind == "scenes"
    data = write_scenes(tmp_path) if scenes else write_data(tmp_path / "data.yaml")
    calls = note_calls(monkeypatch)
    page = app(monkeypatch, run, "-b", str(data))
    assert not page.exception and not page.error
    assert "result" not in page.session_state
    assert len(captions(page)) == 1 + pictures
    if not scenes:
        page.number_input(key="example").set_value(1)
    page.slider(key="temperature").set_value(0.9)
    page.slider(key="scale").set_value(1.5)
    assert sampled(page).size == (12, 12)
    result = page.session_state.result
    assert "12 x 12 pixels, seed 0, temperature 0.9" in captions(page)[-1]
    assert "None" not in captions(page)[-1]
    with Image.open(io.BytesIO(result.files["GIF"][0])) as film:
        assert (film.n_frames > 10, film.size) == (True, (384, 384))  # type: ignore[attr-defined]
    with Image.open(io.BytesIO(result.files["PNG"][0])) as file:
        assert (file.size, json.loads(file.info[RECORD])["temperature"]) == ((12, 12), 0.9)
    page.slider(key="scale").set_value(0.5)
    page.selectbox(key="keep").set_value("top-half")
    assert sampled(page).size == (4, 4)
    assert "what is kept of the image" in captions(page)
    assert "keep top-half" in captions(page)[-1]
    ((first,), _, _), ((second,), settings, _) = calls
    assert first.known is None and (second.known >= 0).tolist() == [[True] * 2, [False] * 2]
    assert settings.temperature == 0.9
    assert kind != "class" or first.label == second.label == 1  # as the example


def test_a_box_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tiny_run(tmp_path / "run")
    page = app(monkeypatch, run, "-b", str(write_data(tmp_path / "data.yaml")))
    page.selectbox(key="keep").set_value("a box").run()
    box = page.text_input(key="box 0,0,8,4")
    assert sampled(page).size == (8, 8)
    box.set_value("0,0,9,4").run()
    assert "is not inside of the image" in page.error[0].value


def test_a_model_without_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tiny_run(tmp_path / "run", transformer_config(cond_drop=0.1)))
    assert "no examples" in page.caption[0].value
    page.slider(key="guidance").set_value(2.0)
    page.number_input(key="class of 0").set_value(3)
    page.selectbox(key="schedule").set_value("cosine")
    page.number_input(key="top_k").set_value(7)
    page.slider(key="top_p").set_value(0.9)
    calls = note_calls(monkeypatch)
    assert sampled(page).size == (8, 8)
    assert page.selectbox(key="schedule").options != []
    assert {box.key for box in page.selectbox} == {"schedule", "schedule of B"}
    (((request,), settings, _),) = calls
    assert request.label == 3 and settings == SampleSettings(1.0, 7, 0.9, 2.0, "cosine")


def test_several_images_are_a_gallery(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    page = app(monkeypatch, run, "-b", str(data))
    assert "transformer samples the codes" in page.markdown[0].value
    page.number_input(key="seed").set_value(5)
    first, calls = sampled(page), note_calls(monkeypatch)
    page.number_input(key="count").set_value(6)
    assert sampled(page).tobytes() == first.tobytes()
    result = page.session_state.result
    assert [name for name in captions(page) if name.startswith("image ")][-6:] == [
        f"image {number}" for number in range(1, 7)
    ]
    assert len({image.tobytes() for image in result.images}) == 6
    with zipfile.ZipFile(io.BytesIO(result.files["ZIP"][0])) as archive:
        with Image.open(archive.open("000005.png")) as last:
            assert last.tobytes() == result.images[5].tobytes()
            assert json.loads(last.info[RECORD])["number"] == 5
    ((requests, _, options),) = calls
    assert len(requests) == 6 and (options["batch_size"], options["seed"]) == (4, 5)

    def fail(*_: Any, **__: Any) -> None:
        raise UserError("not this time")

    monkeypatch.setattr("taming.demo.drawing.sample_images", fail)
    page.button(key="sample").click().run()
    assert error_of(page) == "not this time" and "result" not in page.session_state


def test_pictures_of_a_condition_are_kept_for_it_alone() -> None:
    conditions = [torch.tensor([1]), torch.tensor([2]), None]
    keys = {SampleInputs((4, 4), c=c).condition_hash for c in conditions}
    assert len(keys | {SampleInputs((4, 5)).condition_hash}) == 4


@pytest.mark.parametrize("reduce", [True, False])
def test_large_files_are_reduced_if_it_is_asked_for(
    reduce: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def note(*arguments: Any) -> Any:
        given.append(arguments)

    given: list[Any] = []
    side = SimpleNamespace(file_uploader=lambda *_, **__: None, checkbox=lambda *_, **__: reduce)
    from taming.demo import runs, sources

    monkeypatch.setattr(sources, "st", SimpleNamespace(sidebar=side))
    monkeypatch.setattr(sources, "inputs_of_files", note)
    model = tiny_model()
    sources.choose_files(runs.Loaded(model, None, {}, ""))
    assert given == [(model, None, None, None, reduce)]


def test_classes_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(10):
        write_image(tmp_path / f"images/{'abcde'[number % 5]}_thing/{number}.png", 8, 8)
    dataset = {"target": "taming.data.folder.ImageFolderTrain"}
    dataset["params"] = {"root": str(tmp_path / "images"), "size": 8}
    page = app(monkeypatch, tiny_run(tmp_path / "run", validation=dataset))
    (chosen,) = [box for box in page.selectbox if box.label == "Class"]
    assert chosen.options[3] == "3: d_thing"
    chosen.set_value("3: d_thing").run()
    assert sampled(page).size == (8, 8)


def test_examples_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = tiny_run(tmp_path / "run")
    examples = (
        "{target: main.DataModuleFromConfig, params: {batch_size: 1, validation: {target: %s}}}"
    )
    for target, words in (
        ("taming.data.coco.Examples", "data/coco_examples.txt"),
        ("taming.data.coco.Exampels", "did you mean 'Examples'"),
    ):
        page = app(monkeypatch, run, "--ignore_base_data", f"data={examples % target}")
        assert words in error_of(page) and not page.exception
        assert sampled_anyway(page).size == (8, 8)
    page = app(monkeypatch, run, "--ignore_base_data")
    assert "no 'data' section" in error_of(page)


def sampled_anyway(page: Any) -> Image.Image:
    """The sample of a page that goes on beside an error."""
    page.button(key="sample").click().run()
    return page.session_state.result.image


def test_mistakes_are_told_on_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = app(monkeypatch, tmp_path / "nothing")
    assert "there is no run" in page.error[0].value


def test_it_is_not_open_to_the_network_by_accident(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tiny_run(tmp_path / "run")
    config.set_option("server.address", None)
    text = error_of(app(monkeypatch, run))
    assert "opens this page to all of your network" in text and "localhost" in text
    config.set_option("server.address", "0.0.0.0")
    assert not app(monkeypatch, run).error


def test_started_from_the_repository_it_is_local() -> None:
    code = "from streamlit import config as c; o = c.get_config_options(); "
    code += "print(o['server.address'].value, o['server.maxUploadSize'].value)"
    variables = {k: v for k, v in os.environ.items() if not k.startswith("STREAMLIT")}
    command = [sys.executable, "-c", code]
    root = SCRIPT.parents[1]
    output = subprocess.run(command, cwd=root, env=variables, capture_output=True, text=True)
    assert output.stdout.split() == ["localhost", "20"], output.stderr


def test_a_package_is_no_folder_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In an installation the script is within the package, whose files have common names."""
    script = tmp_path / "taming" / "scripts" / SCRIPT.name
    script.parent.mkdir(parents=True)
    shutil.copyfile(SCRIPT, script)
    monkeypatch.setattr(sys, "path", [*sys.path])
    runpy.run_path(str(script))
    assert str(script.parents[1]) not in sys.path
    shutil.move(script.parent, tmp_path)  # a clone
    runpy.run_path(str(tmp_path / "scripts" / SCRIPT.name))
    assert sys.path[-1] == str(tmp_path)


def test_text_fields_open_no_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = tmp_path / "mask.png"
    Image.new("L", (8, 8)).save(mask)
    data = write_data(tmp_path / "data.yaml")
    page = app(monkeypatch, tiny_run(tmp_path / "run"), "-b", str(data))
    page.selectbox(key="keep").set_value("a box").run()
    for path in (str(mask), "/etc/passwd", str(tmp_path)):
        (box,) = (field for field in page.text_input if field.key.startswith("box"))
        box.set_value(path).run()
        assert error_of(page).startswith("--keep takes top-half")
        assert "grays" not in error_of(page) and "mask.png has" not in error_of(page)


def test_samples_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run, data = tiny_run(tmp_path / "run"), write_data(tmp_path / "data.yaml")
    monkeypatch.setattr("taming.demo.sources.pixels_per_token", lambda model: 5000)
    text = error_of(app(monkeypatch, run, "-b", str(data)))
    assert text == "the sample has 20000 x 20000 pixels; 25,000,000 are allowed"


@pytest.mark.parametrize(
    ("changes", "link", "settings"),
    [
        ({"order": "random"}, "", {}),
        ({"order": "random"}, "order=random", {"order": "random"}),
        ({"order": "random"}, "order=raster&steps=5", {"order": "raster", "steps": 5}),
        ({"attention": "full"}, "", {"steps": 8}),
        ({"attention": "full"}, "steps=3", {"steps": 3}),
    ],
)
def test_models_of_several_orders_are_sampled_in_them(
    changes: dict[str, Any],
    link: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    full = {"attention": "full", "block_size": 17}
    gpt = full if "attention" in changes else {"target_positions": True}
    order = {name: value for name, value in changes.items() if name == "order"}
    config = transformer_config({"vocab_size": 24, **gpt}, **order)
    page = app(monkeypatch, tiny_run(tmp_path / "run", config), link=link)
    calls = note_calls(monkeypatch)
    sampled(page)
    ((_, used, _),) = calls
    assert used == SampleSettings(top_k=used.top_k, **settings)


def test_the_page_waits_for_what_the_command_imports() -> None:
    """`taming demo` begins with this module in a thread of its own."""
    line = [sys.executable, "-c", FIRST_MODULE, str(SCRIPT)]
    said = subprocess.run(line, capture_output=True, text=True).stderr.splitlines()
    assert said[-1] == "taming.demo.arguments"


DRAWING = """
import atexit, sys, time
from threading import Thread

import torch

from taming.demo.__main__ import run_server

def draw():
    layer, x = torch.nn.Conv2d(64, 64, 3), torch.rand(8, 64, 64, 64)
    with torch.no_grad():
        while True:
            layer(x)

def server():
    atexit.register(print, "cleaned")
    Thread(target=draw, daemon=True).start()
    time.sleep(0.5)
    sys.exit(int(sys.argv[1]))

run_server(server)
"""


@pytest.mark.parametrize("code", [0, 3])
def test_a_server_that_ends_while_something_is_drawn(code: int) -> None:
    """With its own code, not by an abort."""
    line = [sys.executable, "-c", DRAWING, str(code)]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout, ended.stderr) == (code, "cleaned\n", "")
