"""Scripts that cannot write what they made: full disks and places that are no folders."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scripts import complete, make_samples, make_scene_samples, reconstruct, sample_fast
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data
from tests.scripts.test_make_scene_samples import SCENES, write_scenes

resource = pytest.importorskip("resource")


@contextmanager
def no_room(size: int = 0) -> Iterator[None]:
    """Files cannot grow beyond `size` bytes: writing fails in the system, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


Command = tuple[Callable[[Sequence[str]], None], list[str], list[str]]


@pytest.fixture(
    scope="module", params=["sample_fast", "make_samples", "scenes", "complete", "reconstruct"]
)
def command(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """A script's main, its flags, and those with which it makes fewer files."""
    folder: Path = tmp_path_factory.mktemp("made")
    run = str(tiny_run(folder / "run"))
    pixels = np.random.default_rng(0).integers(0, 255, (8, 8, 3), np.uint8)
    for name in ("a.png", "b.png"):
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).save(folder / "images" / name)
    image = str(folder / "images" / "a.png")
    if request.param == "sample_fast":
        return sample_fast.main, ["-r", run, "--classes", "1", "-n", "3"], ["-n", "1"]
    if request.param == "make_samples":
        data = write_data(folder / "data.yaml", 2)
        return make_samples.main, ["-r", run, "-b", str(data)], ["-n", "1"]
    if request.param == "complete":
        flags = ["--image", image, "--keep", "top-half", "--condition", "1", "-n", "3"]
        return complete.main, ["-r", run, *flags], ["-n", "1"]
    if request.param == "reconstruct":
        return reconstruct.main, ["-r", run, str(folder / "images")], ["-n", "1"]
    scenes = str(tiny_run(folder / "scenes", transformer_config(**SCENES)))
    flags = ["-b", str(write_scenes(folder)), "-R", "8,8", "-N", "3"]
    return make_scene_samples.main, ["-r", scenes, *flags], ["-N", "1"]


def fails(main: Callable[[Sequence[str]], None], flags: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2


def test_a_full_disk_costs_nothing_that_was_made(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, flags, fewer = command
    flags = [*flags, "--device", "cpu", "-o", str(tmp_path / "out")]
    main([*flags, *fewer])
    before = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert before
    capsys.readouterr()
    with no_room():
        fails(main, flags)
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("error: cannot write ") and "finished samples stay" in error
    assert all(path.read_bytes() == content for path, content in before.items())
    assert not list((tmp_path / "out").rglob("*.partial"))
    main(flags)
    after = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert len(after) > len(before)
    assert all(after[path] == content for path, content in before.items())


def test_a_place_that_is_no_folder_is_named_before_work_begins(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("mine")
    main, flags, _ = command
    for place in ("file", "file/deeper"):
        fails(main, [*flags, "--device", "cpu", "-o", str(tmp_path / place)])
        error = capsys.readouterr().err.splitlines()[-1]
        assert error.startswith("error: nothing can be written to ")
        assert f"{tmp_path / 'file'} is a file, not a folder; choose another" in error
    assert (tmp_path / "file").read_text() == "mine"


def test_metrics_that_find_no_room(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    run = tiny_run(tmp_path / ("run" * 60))  # which metrics.json names, and pictures do not
    with no_room(450 + len(str(tmp_path))):  # enough for a picture of 8 x 8 pixels
        fails(reconstruct.main, ["-r", str(run), str(tmp_path), "-n", "1", "--device", "cpu"])
    assert "metrics.json (File too large)" in capsys.readouterr().err
    (picture,) = run.rglob("*.png")
    assert Image.open(picture).size == (8, 8)
    assert not list(run.rglob("metrics*"))
