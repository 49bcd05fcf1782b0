"""What becomes of errors at the end of a command."""

from __future__ import annotations

import errno
import os
import tempfile
from concurrent.futures import Future
from pathlib import Path

import pytest

from taming.errors import (
    DamagedImage,
    Stopped,
    UserError,
    absence,
    command,
    end_with_damaged,
    interruptible,
    is_full,
    reason_of,
    sentence,
)


def said(error: BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[object, str]:
    """The exit code of a command that raises this, and its last words."""

    @command
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as caught:
        fail()
    return caught.value.code, capsys.readouterr().err


def of_system(name: str, file: str | None = "x.txt") -> OSError:
    number = vars(errno)[name]
    return OSError(number, os.strerror(number), file)


def test_mistakes_of_users_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(UserError("no\nsuch thing"), capsys) == (2, "error: no such thing\n")
    assert said(Stopped(15, "saved"), capsys) == (143, "saved\n")
    assert said(Stopped(2), capsys) == (130, "")


def test_interruptions_say_what_is_kept(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(KeyboardInterrupt(), capsys) == (130, "interrupted\n")

    @command
    @interruptible("all of it is kept")
    @interruptible("half of it is kept")
    def stopped() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as caught:
        stopped()
    assert caught.value.code == 130
    assert capsys.readouterr().err == "interrupted; half of it is kept\n"


@pytest.mark.parametrize(
    "name",
    ["EACCES", "EDQUOT", "EEXIST", "EIO", "EISDIR", "ENAMETOOLONG", "ENOSPC", "ENOTDIR", "EROFS"],
)
def test_what_users_can_mend_about_files(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    error = of_system(name)
    expected = f"error: x.txt cannot be used ({error.strerror})\n"
    assert said(error, capsys) == (2, expected)
    assert is_full(error) == (name in ("EDQUOT", "ENOSPC")) and not is_full(ValueError())
    if name in ("EDQUOT", "EIO", "ENOSPC"):  # of reading or writing
        nameless = f"error: a file cannot be used ({error.strerror})\n"
        assert said(of_system(name, None), capsys) == (2, nameless)


@pytest.mark.parametrize("error", [of_system("ENOENT"), of_system("EACCES", None), KeyError("a")])
def test_bugs_keep_their_traceback(error: Exception) -> None:
    future: Future[None] = Future()  # it raises where no line is a user's
    future.set_exception(error)
    with pytest.raises(type(error)):
        command(future.result)()


def test_what_users_own_code_raises_is_a_sentence(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(Path(__file__).parent)
    code, text = said(KeyError("a"), capsys)
    (kept,) = tmp_path.iterdir()
    assert code == 2
    assert text == f"error: KeyError: 'a' (test_errors.py, line 32); the way there is in {kept}\n"
    assert "Traceback (most recent call last)" in kept.read_text()


@pytest.mark.parametrize("kind", [UserError, DamagedImage])
def test_sentences_out_of_the_traceback_of_a_worker(kind: type[UserError]) -> None:
    name = kind.__name__
    text = f"Caught {name} in DataLoader worker 0. Traceback: taming.errors.{name}: a is b"
    assert sentence(kind(text)) == "a is b" and sentence(kind("plain: text")) == "plain: text"


def test_what_is_in_the_place_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert absence("folder", tmp_path / "file") == f"{tmp_path}/file is a file, not a folder"
    assert absence("config file", tmp_path) == f"{tmp_path} is a folder, not a config file"
    assert absence("folder", tmp_path / "gone") == f"there is no folder {tmp_path}/gone"


def test_reasons_without_a_number() -> None:
    assert reason_of(OSError("it is so")) == "it is so" and reason_of(OSError()) == "OSError"


def test_images_that_were_left_out(capsys: pytest.CaptureFixture[str]) -> None:
    end_with_damaged([])
    for names, count in ((["a"], "1 image"), (["a", "b"], "2 images")):
        with pytest.raises(SystemExit) as caught:
            end_with_damaged(names)
        *listed, last = capsys.readouterr().err.splitlines()
        assert caught.value.code == 1 and listed == [f"left out: {name}" for name in names]
        assert last == f"error: {count} could not be used; all others were"
