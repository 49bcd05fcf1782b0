from __future__ import annotations

from dataclasses import MISSING, dataclass, field

import pytest

from taming.command_line import Parser, add_flags, flag, from_flags, parse, parse_numbers
from taming.errors import UserError


@dataclass(frozen=True)
class Brush:
    width: float = flag(1.0, "in pixels", "-w", hidden=("--brush-width",))
    soft: bool = flag(False, "without an edge")


@dataclass(frozen=True, kw_only=True)
class Painting:
    subject: str = flag(MISSING, "what to paint", "-s")
    brush: Brush = field(default_factory=Brush)
    layers: tuple[int, ...] | None = flag(None, "comma list", parse=parse_numbers)
    colors: tuple[str, ...] = flag((), "names", nargs="+")
    signed: bool = False


def read(*flags: str, **defaults: object) -> tuple[Painting, list[str]]:
    parser = Parser()
    add_flags(parser, Painting, **defaults)
    args, rest = parse(parser, flags)
    return from_flags(Painting, args, signed=True), rest


def test_dataclasses_inside_dataclasses() -> None:
    painting, rest = read("-s", "sea", "--soft", "--brush-width", "2.5", "a.b=1")
    assert painting == Painting(subject="sea", brush=Brush(2.5, True), signed=True)
    assert rest == ["a.b=1"]
    assert read("-s", "sea", width=4.0)[0].brush.width == 4.0


def test_lists_become_tuples() -> None:
    painting, _ = read("-s", "sea", "--layers", "3, 1,3,", "--colors", "blue", "green")
    assert (painting.layers, painting.colors) == ((3, 1), ("blue", "green"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: -s/--subject"),
        (["-s", "sea", "--layers", "two"], "--layers: a list takes numbers .*, not 'two'"),
        (["-s", "sea", "--width", "wide"], "invalid float value"),
        (["-s", "sea", "--frame"], "unknown argument --frame"),
        (["-s", "sea", "land"], "unknown argument land"),
    ],
)
def test_one_sentence_for_wrong_flags(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(*flags)


def test_help_shows_defaults_and_hides_earlier_spellings() -> None:
    parser = Parser()
    add_flags(parser, Painting, colors=("red", "blue"))
    text = parser.format_help()
    assert "in pixels (default 1.0)" in text and "names (default red,blue)" in text
    assert "--brush-width" not in text
