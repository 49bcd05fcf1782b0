"""scripts/gallery.py at small size, and the pictures of docs/gallery.md."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
from PIL import Image

from scripts.gallery import GROUPS, Options, groups_of, main, make_apart
from taming.errors import UserError
from taming.gallery.pictures import PICTURES, Album, spread
from taming.gallery.workshop import AUTO, Workshop, precision_here
from tests.support import ROOT

PAGE = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
MOST_BYTES = 4_000_000  # of all pictures together


def test_pictures_are_on_the_page_and_small() -> None:
    files = list((ROOT / "docs" / "gallery").iterdir())
    assert files and {path.stem for path in files} <= PICTURES.keys()
    assert sum(path.stat().st_size for path in files) < MOST_BYTES
    for path in files:
        assert f"](gallery/{path.name})" in PAGE
        Image.open(path).verify()


def test_each_picture_has_its_command_on_the_page() -> None:
    for name in PICTURES:
        assert f"python scripts/gallery.py --only {name}`" in PAGE


def test_a_picture_is_made_once_from_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--outdir", str(tmp_path), "--small", "--only", "landscapes"]
    main(words)
    picture = tmp_path / "small" / "landscapes.webp"  # nothing of it is taken for the real ones
    with Image.open(picture) as image:
        assert image.width > 8 * 128 and image.height > 3 * 128
    picture.unlink()
    capsys.readouterr()
    main(words)
    assert "taming examples" not in capsys.readouterr().out  # the data are there
    main(words)
    assert capsys.readouterr().out == f"landscapes is in {tmp_path / 'small'}\n"
    configs = tmp_path.with_name("changed")
    shutil.copytree(ROOT / "configs" / "gallery", configs / "gallery")
    monkeypatch.setattr("taming.gallery.pictures.shipped", lambda folder: configs)
    with (configs / "gallery" / "vqgan.yaml").open("a") as file:
        file.write("# a comment is no change\n")
    main(words)
    assert capsys.readouterr().out == f"landscapes is in {tmp_path / 'small'}\n"
    with (configs / "gallery" / "vqgan.yaml").open("a") as file:
        file.write("other: 1\n")
    main(words)
    assert capsys.readouterr().out.startswith(f"{picture}: ")  # drawn again
    here, other = precision_here(AUTO), "16-mixed"
    albums = [
        Album(picture.parent, picture.parent / "work", seed, precision)
        for seed, precision in ((23, here), (24, here), (23, other))
    ]
    assert [album.has("landscapes") for album in albums] == [True, False, False]
    assert [path.name for path in tmp_path.iterdir()] == ["small"]


@pytest.mark.parametrize("total", [8, 16, 96, 192])  # of --small, and of depth and labels in full
def test_maps_that_are_shown_are_there_and_of_several_places(total: int) -> None:
    shown = spread(total)
    assert len(set(shown)) == 6 and set(shown) <= set(range(total))
    assert len({place % 8 for place in shown}) >= 4


def test_an_unknown_picture(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(["--outdir", str(tmp_path), "--only", "clases"])
    assert "there is no picture clases; did you mean 'classes'?" in capsys.readouterr().err


def test_what_is_made_side_by_side(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [name for group in GROUPS for name in group]
    assert len(names) == len(set(names)) and set(names) < PICTURES.keys()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    assert groups_of(["boxes", "completion", "landscapes", "classes"]) == [
        ("classes", "completion"),
        ("boxes",),
    ]
    assert groups_of(["completion", "classes"]) == []  # one transformer
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert groups_of(["boxes", "classes"]) == []
    monkeypatch.setattr("torch.get_num_threads", lambda: 2)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert groups_of(["boxes", "classes"]) == []


def test_a_picture_that_fails_apart_has_a_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What all need is made before, and not as an assertion, which `python -O` leaves out."""
    shop, made = Workshop(tmp_path), list[str]()
    monkeypatch.setattr(Workshop, "render", lambda self: made.append("landscapes"))
    monkeypatch.setattr(Workshop, "train", lambda self, name: made.append(name))
    with pytest.raises(UserError, match=r"bocses failed; .*bocses.log tells why"):
        make_apart(Options(outdir=tmp_path), shop, [("bocses",)])
    assert "error: there is no picture bocses" in (tmp_path / "bocses.log").read_text()
    assert made == ["landscapes", "vqgan"]
    for path in (ROOT / "scripts/gallery.py", *(ROOT / "taming/gallery").glob("*.py")):
        assert not re.search(r"^ *assert .*\bshop\b", path.read_text(), re.MULTILINE), path


@pytest.mark.slow  # trains every model for two steps
@pytest.mark.parametrize("precision", ["32"])
def test_every_picture_is_made(precision: str, tmp_path: Path) -> None:
    words = ["--outdir", str(tmp_path), "--small", "--precision", precision]
    main(words)
    outdir = tmp_path / "small"
    made = {path.stem: path for path in outdir.iterdir() if path.is_file()}
    assert made.keys() == PICTURES.keys()
    runs = list((outdir / "work" / "logs").iterdir())
    with Image.open(made["panorama"]) as image:
        assert image.width > 160  # wider than the window
    with Image.open(made["drawing"]) as film:
        assert film.n_frames > 20
    made["classes"].unlink()
    main(words)
    assert made["classes"].is_file()
    assert list((outdir / "work" / "logs").iterdir()) == runs  # nothing was trained again


def test_what_is_made_of_later_runs_has_names_of_its_own(tmp_path: Path) -> None:
    for name in ("2026-01-01T00-00-00_vqgan", "2026-01-02T00-00-00_vqgan", "2026-01-03T00-00-00_x"):
        (tmp_path / "logs" / name).mkdir(parents=True)
    shop = Workshop(tmp_path)
    assert shop.later("logs/2026-01-01T00-00-00_vqgan", "logs/2026-01-03T00-00-00_x") == ""
    assert shop.later("logs/2026-01-02T00-00-00_vqgan") == "_2026-01-02T00-00-00"
