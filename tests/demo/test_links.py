"""Links to what is chosen, both ways; which runs there are; history and comparison."""

from __future__ import annotations

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
import torch
from PIL import Image

from taming.demo import history
from taming.demo.links import NAMES
from taming.errors import UserError
from taming.sampling import SampleSettings
from taming.sampling.folder import RECORD
from tests.kit.demo import app, as_read, captions, error_of, linked, note_calls, sampled
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data

GUIDED = transformer_config(cond_drop=0.1)


def page_of(monkeypatch: pytest.MonkeyPatch, link: str = "") -> Any:
    run = Path("run")
    if not run.exists():
        tiny_run(run, GUIDED)
    return app(monkeypatch, run, "-b", str(write_data(Path("data.yaml"))), link=link)


# ---------------------------------------------------------------------- runs


def test_what_is_pressed_is_not_drawn_from_another_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the chosen one is gone, that is said; the next press is of the one that is shown."""
    for name in ("one", "two"):
        tiny_run(Path("logs", name), GUIDED)
    calls = note_calls(monkeypatch)
    page = app(monkeypatch, None, link="run=one")
    sampled(page)
    Path("logs/one").rename("elsewhere")
    page.button(key="sample").click().run()
    assert len(calls) == 1 and not page.exception
    assert [w.value for w in page.warning] == ["the run one is not there any more; choose another"]
    assert linked(page)["run"] == "two"
    sampled(page)
    assert len(calls) == 2 and not page.warning


def test_a_page_that_is_opened_anew_has_the_newest_weights(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = tiny_run(Path("run"), GUIDED)
    page = app(monkeypatch, run)
    assert page.caption[0].value.startswith("run, step 7, on cpu")
    [checkpoint] = Path("run/checkpoints").iterdir()
    written = checkpoint.stat().st_mtime_ns
    content = torch.load(checkpoint, weights_only=False)
    torch.save({**content, "global_step": 99}, checkpoint)
    os.utime(checkpoint, ns=(0, written + 10**9))
    page.run()
    [text] = [caption.value for caption in page.caption if "step" in caption.value]
    assert "step 7, on cpu" in text and text.endswith(
        "a newer checkpoint is there: reload the page"
    )
    text = app(monkeypatch, run).caption[0].value
    assert text.startswith("run, step 99, on cpu") and "newer" not in text


# ---------------------------------------------------------------------- links


LINK = "run=run&source=an example&example=1&class=4&scale=1.5&keep=a box&box=0,0,12,6&"
LINK += "temperature=0.5&top_k=7&top_p=0.9&guidance=2.0&schedule=cosine&seed=11&count=2"


def test_a_link_is_what_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = note_calls(monkeypatch)
    page = page_of(monkeypatch, LINK)
    assert not page.warning
    assert sampled(page).size == (12, 12)
    ((requests, settings, options),) = calls
    assert settings == SampleSettings(0.5, 7, 0.9, 2.0, "cosine")
    assert (options["seed"], len(requests), requests[0].label) == (11, 2, 4)
    assert (requests[0].known >= 0)[:3].all() and (requests[0].known < 0)[3:].all()
    assert linked(page) == dict(part.split("=") for part in LINK.split("&"))
    assert page.code[0].value.startswith("?run=run&")


def test_the_address_that_is_shown_opens_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is that in the browser, below a path, by https or behind a proxy as well."""
    from streamlit.runtime.context import ContextProxy

    place = "https://example.org/demo/"
    monkeypatch.setattr(ContextProxy, "url", property(lambda _: place[:-1]))
    page = page_of(monkeypatch, LINK)
    address = page.code[0].value
    assert address.startswith(f"{place}?run=run&") and "scale=1.5" in address
    query = dict(parse_qsl(urlsplit(address).query))
    again = page_of(monkeypatch, "&".join(f"{name}={value}" for name, value in query.items()))
    assert not again.warning and again.code[0].value == address and linked(again) == linked(page)


def test_the_address_follows_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(monkeypatch)
    page.number_input(key="seed").set_value(8)
    page.number_input(key="example").set_value(1).run()
    assert {"seed": "8", "example": "1", "class": "1"}.items() <= linked(page).items()
    page.number_input(key="class of 1").set_value(3).run()
    assert linked(page)["class"] == "3"
    for example in (0, 1):  # whose class is its own again
        page.number_input(key="example").set_value(example).run()
    assert {"seed": "8", "example": "1", "class": "1"}.items() <= linked(page).items()
    assert set(linked(page)) <= set(NAMES)


@pytest.mark.parametrize(
    ("link", "words"),
    [
        ("seed=many", "the link's seed is 'many'; it is no whole number"),
        ("seed=-1", "the link's seed is '-1'; it must be from 0 to 2147483648"),
        ("temperature=nan", "the link's temperature is 'nan'; it must be from 0.0 to 2.0"),
        ("scale=1e99", "the link's scale is '1e99'; it must be from 0.5 to 4.0"),
        ("class=9", "the link's class is '9'; it must be from 0 to 4"),
        ("example=3", "the link's example is '3'; it must be from 0 to 2"),
        ("source=a painting", "the link's source is 'a painting'; there is no such one"),
        ("schedule=cosin", "there is no such one; did you mean 'cosine'?"),
        ("run=/etc", "the link's run is '/etc'; the only run here is run"),
        ("begin=1", "the link gives the example to begin with, which has no use here"),
        ("sed=1", "the link has 'sed', which is unknown; did you mean 'seed'?"),
        ("![x](http://e/p.png)=1", "the link has '![x](http://e/p.png)', which is unknown"),
    ],
)
def test_bad_values_of_a_link_are_told(
    link: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = page_of(monkeypatch, f"{link}&count=2")
    (warning,) = page.warning
    assert words in as_read(warning.value)
    assert not page.exception and page.number_input(key="count").value == 2
    name = link.partition("=")[0]
    assert linked(page).get(name) != link.partition("=")[2]
    sampled(page)
    assert not page.run().warning


def test_texts_of_others_are_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    """An image in a link would be fetched by everybody who opens it."""
    image, name = "![x](http://e/p.png)", "my__best__run*"
    tiny_run(Path(name), GUIDED)
    data = str(write_data(Path("data.yaml")))
    page = app(monkeypatch, Path(name), "-b", data, link=f"seed={image}&keep=a box&box={image}")
    texts = [*page.warning, *page.error, page.caption[0]]
    assert len(texts) == 3
    page.selectbox(key="keep").set_value("nothing").run()
    sampled(page)
    texts += [caption for caption in page.caption if "best" in caption.value]
    assert len(texts) == 5 and any(as_read(text.value).startswith("**1. my__") for text in texts)
    for text in texts:
        assert image not in text.value and "__" not in text.value, text.value
    shown = [as_read(text.value) for text in texts]
    assert image in shown[0] and image in shown[1] and shown[2].startswith(f"{name}, step 7")


# ---------------------------------------------------------------------- runs


def test_the_runs_in_logs_are_there_to_choose(monkeypatch: pytest.MonkeyPatch) -> None:
    write_data(Path("data.yaml"))
    assert "there is no run of a transformer in logs/" in error_of(app(monkeypatch, None))
    tiny_run(Path("logs/1_first"), FIRST_STAGE)
    Path("logs/nothing").mkdir()
    tiny_run(Path("logs/2_classes"))
    page = app(monkeypatch, None, "-b", "data.yaml")
    assert not page.error and "2_classes, step 7" in as_read(page.caption[0].value)
    tiny_run(Path("logs/3_none"), transformer_config(cond_stage_config="__is_unconditional__"))
    tiny_run(Path("own/2_classes"))
    page = app(monkeypatch, Path("own/2_classes"), "-b", "data.yaml", link="run=3_none&seed=2")
    chosen = page.selectbox(key="run")
    assert chosen.options == ["own/2_classes", "3_none", "logs/2_classes"]
    assert "3_none, step 7" in as_read(page.caption[0].value) and linked(page)["run"] == "3_none"
    assert "class" not in linked(page)
    chosen.set_value("logs/2_classes").run()
    assert linked(page)["run"] == "logs/2_classes" and linked(page)["class"] == "0"
    flags = ("-r", "own/2_classes", "-b", "data.yaml")
    page = app(monkeypatch, Path("logs/3_none"), *flags)
    assert page.selectbox(key="run").options == ["3_none", "own/2_classes", "logs/2_classes"]
    page = app(monkeypatch, None, "-b", "data.yaml", link="run=3_nun")
    assert "did you mean '3_none'?" in as_read(page.warning[0].value)


def test_a_published_model_is_there_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the name that the command line gives, and not by its folder in logs/ as well."""
    name = "cin_transformer"
    tiny_run(Path("logs/2021-04-03T19-39-50_cin_transformer"))
    page = app(monkeypatch, Path(name), "-b", str(write_data(Path("data.yaml"))))
    assert not page.error and linked(page)["run"] == name
    assert "run" not in [box.key for box in page.selectbox]  # there is nothing to choose


# ---------------------------------------------------------------------- history, comparison


def test_what_was_drawn_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(monkeypatch, "seed=1")
    sampled(page)
    first = page.session_state.result
    page.number_input(key="seed").set_value(2)
    page.slider(key="temperature").set_value(0.5)
    page.number_input(key="class of 0").set_value(3)
    sampled(page)
    assert [number for number, _ in page.session_state.history.entries] == [2, 1]
    page.button(key="restore 1").click().run()
    assert page.session_state.result is first
    assert {"seed": "1", "temperature": "1.0", "class": "0"}.items() <= linked(page).items()
    assert page.number_input(key="seed").value == 1
    with zipfile.ZipFile(io.BytesIO(page.session_state.history.archive())) as archive:
        names = archive.namelist()
        assert names == ["001_run_seed1/000000.png", "002_run_seed2/000000.png"]
        with Image.open(archive.open(names[1])) as file:
            assert json.loads(file.info[RECORD])["temperature"] == 0.5
    page.button(key="clear history").click().run()
    assert page.session_state.history.entries == [] and page.session_state.result is first


def test_an_entry_whose_run_is_gone_is_shown_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "one_more"):
        tiny_run(Path("logs", name), GUIDED)
    page = app(monkeypatch, None, link="run=one&seed=7&guidance=2.0")
    sampled(page)
    first = page.session_state.result
    Path("logs/one").rename("elsewhere")
    sentences = [
        "the run of this entry, one, is not there any more; its image is shown, but nothing can be "
        "drawn with it"
    ]
    for noticed in (False, True):  # that it is gone, before the entry is restored
        page.button(key="restore 1").click().run()
        assert [as_read(warning.value) for warning in page.warning] == sentences, noticed
        assert page.session_state.result is first and linked(page)["run"] == "one_more"
        assert error_of(page).startswith("the run of this image, one, is not there any more, so")
        assert page.button(key="undo").disabled
        sampled(page)
        assert not page.warning and page.session_state.result.run == "logs/one_more"
    Path("elsewhere").rename("logs/one")
    page.button(key="restore 1").click().run()
    assert not page.warning and not page.error and linked(page)["run"] == "one"


def test_the_history_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(monkeypatch)
    sampled(page)
    drawn = page.session_state.result
    kept = history.History()
    for _ in range(history.MOST_ENTRIES + 5):
        kept.add(drawn)
    assert (len(kept.entries), kept.entries[0][0]) == (history.MOST_ENTRIES, kept.count)
    monkeypatch.setattr(history, "MOST_PIXELS", 3 * 64)
    kept.add(drawn)
    assert len(kept.entries) == 3 and kept.entries[0][0] == kept.count


def test_two_settings_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    page = page_of(monkeypatch, "seed=4&count=2&keep=top-half")
    calls = note_calls(monkeypatch)
    page.slider(key="temperature of B").set_value(0.0)
    page.slider(key="guidance of B").set_value(3.0)
    page.button(key="compare").click().run()
    assert not page.exception and not page.error
    (one, first, _), (two, second, _) = calls
    assert first == SampleSettings(1.0, 20, 1.0) and second == SampleSettings(0.0, 20, 1.0, 3.0)
    assert [options["seed"] for _, _, options in calls] == [4, 4]
    assert one == two and all((a.known == b.known).all() for a, b in zip(one, two, strict=True))
    a, b = page.session_state.comparison
    assert page.session_state.result is a and a.images != b.images
    assert b.link == {**a.link, "temperature": "0.0", "guidance": "3.0"}
    shown = [caption.value for caption in page.caption]
    assert any(text.startswith("**B**: 8 x 8 pixels, seed 4, temperature 0.0") for text in shown)
    page.button(key="restore 1").click().run()
    assert page.session_state.result is b and page.slider(key="temperature").value == 0.0
    assert captions(page)[-1] == "image 2"


FULL = {"attention": "full", "block_size": 17, "vocab_size": 24}
IN_STEPS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "masked": (transformer_config(FULL), {"steps": 4}),
    "any": (
        transformer_config({"target_positions": True}, order="random"),
        {"order": "raster", "steps": 3},
    ),
}


@pytest.mark.parametrize("name", IN_STEPS)
def test_what_b_has_no_choice_of_is_as_it_is_of_a(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    config, way = IN_STEPS[name]
    run = tiny_run(Path(name), config)
    link = "&".join(f"{key}={value}" for key, value in way.items())
    page = app(monkeypatch, run, link=link)
    calls = note_calls(monkeypatch)
    page.button(key="compare").click().run()
    assert not page.exception and not page.error
    (_, first, _), (_, second, _) = calls
    assert first == SampleSettings(1.0, 20, 1.0, **way)
    assert second == SampleSettings(0.7, 20, 1.0, **way)
    drawn = page.session_state.comparison[1]
    link = "&".join(f"{key}={value}" for key, value in drawn.link.items())
    assert sampled(app(monkeypatch, run, link=link)) == drawn.image  # as the link of B says


def test_annealed_models_have_rows_as_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformer_config({"target_positions": True}, order="annealed")
    page = app(monkeypatch, tiny_run(Path("annealed"), config))
    assert page.selectbox(key="order").value == "raster"


def test_files_of_names_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from taming.demo.arguments import PageArguments

    Path("latin").write_bytes(b"\xe4")
    for path, words in (("gone", "No such file"), ("latin", "no text in UTF-8")):
        with pytest.raises(UserError, match=words):
            assert PageArguments(label_names=path).names
