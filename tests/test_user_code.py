"""What code of users raises is said in one sentence, with the line that it comes from."""

from __future__ import annotations

import errno
import os
import runpy
from pathlib import Path

import pytest

from taming.errors import DamagedImage, Stopped, UserError, described, line_of
from taming.trust import is_dotted
from taming.user_code import calling, is_ours, name_of

CODE = """
def outer():
    return inner()


def inner():
    return is_dotted(7)
"""


class Own:
    pass


def raised(file: Path) -> Exception:
    """Of a function of the user's, by one of ours that it calls."""
    file.write_text(CODE)
    with pytest.raises(TypeError) as caught:
        runpy.run_path(str(file), {"is_dotted": is_dotted})["outer"]()
    return caught.value


def test_the_last_line_of_the_users_own_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert described(raised(Path("own.py"))).endswith("(own.py, line 7)")
    elsewhere = described(raised(tmp_path / "own.py"))
    assert elsewhere.startswith("TypeError: ") and f"({tmp_path}/own.py, line 7)" in elsewhere
    assert described(KeyError("a")) == "KeyError: 'a'"
    package = tmp_path / "lib/site-packages"
    package.mkdir(parents=True)
    assert line_of(raised(package / "own.py")).filename == __file__  # type: ignore[union-attr]


@pytest.mark.parametrize("error", [UserError("no"), DamagedImage("no"), Stopped(15)])
def test_what_has_its_own_meaning_stays(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, calling(Own, "own"):
        raise error
    assert caught.value is error


def test_files_that_the_system_refuses_are_said_by_the_command() -> None:
    with pytest.raises(PermissionError), calling(Own, "own"):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), "x.txt")
    with pytest.raises(UserError, match="own raises FileNotFoundError: .*test_user_code.py, line"):
        with calling(Own, "own"):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT), "x.txt")


def test_whose_a_class_is() -> None:
    assert is_ours(UserError) and not is_ours(Own)
    assert name_of(Own) == "tests.test_user_code.Own"
    with pytest.raises(UserError, match="own raises SystemExit: 3"), calling(Own, "own"):
        raise SystemExit(3)
