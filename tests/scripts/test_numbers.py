"""Numbers and places that no script can use: one sentence, before anything is computed."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from scripts import (
    complete,
    evaluate_first_stage,
    evaluate_transformer,
    extract_depth,
    extract_submodel,
    make_example_data,
    make_image_list,
    preview_data,
    reconstruct,
)
from tests.kit.images import write_images
from tests.kit.models import FIRST_STAGE, unconditional_config
from tests.kit.runs import tiny_run

HUGE = "99999999999999999999"
DIGITS = {"target": "taming.data.digits.DigitsValidation", "params": {"size": 8}}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, images, and wrong files, whatever the scripts need."""
    folder = tmp_path_factory.mktemp("room")
    tiny_run(folder / "run", unconditional_config(), validation=DIGITS)
    tiny_run(folder / "stage", FIRST_STAGE)
    write_images(folder / "images", 2)
    (folder / "data.yaml").write_text(
        "data: {target: main.DataModuleFromConfig, params: {batch_size: 2, train: "
        "{target: taming.data.digits.DigitsTrain, params: {size: 8}}}}"
    )
    (folder / "text.txt").write_text("hello")
    return folder


COMPLETE = "-r run --image images/000.png --keep top-half --device cpu"
DEPTH = "--images images --model text.txt --device cpu"
CASES = [
    (
        complete.main,
        f"{COMPLETE} --batch_size {HUGE}",
        "--batch_size must be at most 1,000,000,000",
    ),
    (complete.main, f"{COMPLETE} -n {HUGE}", "--num_samples must be at most 1,000,000,000"),
    (reconstruct.main, f"-r stage images -n {HUGE}", "--num_images must be at most"),
    (reconstruct.main, "-r stage text.txt", "text.txt is a file, not a folder"),
    (evaluate_first_stage.main, f"-r stage --images images --size {HUGE}", "are too large"),
    (evaluate_transformer.main, f"-r run --device cpu --seed {HUGE}", "at most 63 bits"),
    (preview_data.main, f"-b data.yaml -n {HUGE}", "--num_items must be at most"),
    (preview_data.main, "-b data.yaml -n 0", "--num_items must be at least 1"),
    (preview_data.main, f"-b data.yaml -s {HUGE}", "a seed must have at most 63 bits"),
    (preview_data.main, "-b images", "images is a folder, not a config file"),
    (make_example_data.main, f"--train {HUGE}", "--train must be from 5 to 5,000"),
    (make_example_data.main, "--validation 0", "--validation must be from 1 to 5,000"),
    (make_example_data.main, "-o text.txt/x", "text.txt/x/data"),
    (make_image_list.main, "gone", "there is no folder gone"),
    (extract_depth.main, "--images gone --device cpu", "--images: there is no folder gone"),
    (extract_depth.main, DEPTH, "it is no TorchScript file, or damaged"),
    (
        extract_submodel.main,
        ". out.ckpt encoder",
        " holds no checkpoints/last.ckpt: it is no run",
    ),
]


@pytest.mark.parametrize(("main", "words", "message"), CASES)
def test_one_sentence(
    main: Callable[[list[str]], None],
    words: str,
    message: str,
    room: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(room)
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert stop.value.code == 2 and len(told) == 1 and message in told[0]
