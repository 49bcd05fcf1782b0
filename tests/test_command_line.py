"""Parsers, values of flags, and flags made from dataclasses."""

from __future__ import annotations

import argparse
import contextvars
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, field
from pathlib import Path

import pytest

from taming.command_line import (
    Extend,
    Parser,
    add_flags,
    add_weight_flags,
    flag,
    from_flags,
    parse,
    parse_numbers,
    parse_size,
    parse_switch,
    parser_of,
)
from taming.completion_script import words_of
from taming.errors import UserError
from taming.sampling.sizes import add_side_flags
from taming.weight_choice import WeightChoice, weight_choice


@dataclass(frozen=True)
class Blur:
    radius: float = flag(1.0, "in pixels", "-r", hidden=("--blur-radius",))
    rounds: int = flag(0, "how often, 0 %: never")
    inverse: bool = flag(False, "sharpen instead", hidden=("--sharpen",))

    def __post_init__(self) -> None:
        if self.radius < 0:
            raise UserError("a radius is 0 or more")


@dataclass(frozen=True)
class Plan:
    count: int | None = flag(None, "how many images", metavar="N")
    size: tuple[int, int] = flag((8, 12), "height,width", parse=parse_size)
    blur: Blur = field(default_factory=Blur)
    files: tuple[str, ...] = flag((), "any number of them", nargs="+")
    device: str = "cpu"  # no flag


@dataclass(frozen=True)
class Copy:
    source: str = flag(MISSING, "the image", "-i")
    target: str = flag(MISSING, "the copy", hidden=("--to",))


def parser_for(settings: type, **defaults: object) -> Parser:
    parser = Parser(prog="program")
    add_flags(parser, settings, **defaults)
    return parser


def plan(*argv: str, **rest: object) -> Plan:
    return from_flags(Plan, parser_for(Plan).parse_args(argv), **rest)


def test_without_flags_the_object_is_the_default_one() -> None:
    assert plan() == Plan()


def test_flags_reach_fields_of_nested_dataclasses() -> None:
    changed = plan("--count", "3", "--size", "16,20", "-r", "2.5", "--rounds", "4", "--inverse")
    assert changed == Plan(3, (16, 20), Blur(2.5, 4, True))
    assert plan("--files", "a.png", "b.png").files == ("a.png", "b.png")


def test_fields_without_a_flag_are_set_by_the_script() -> None:
    assert plan(device="cuda").device == "cuda"
    assert plan("-r", "3", blur=Blur(7.0)).blur == Blur(7.0)


def test_earlier_spellings_are_understood_but_not_shown() -> None:
    assert plan("--blur-radius", "3").blur.radius == 3.0
    assert plan("--sharpen").blur.inverse
    assert plan("--blur-radius", "3", "--radius", "4").blur.radius == 4.0  # the last one counts
    shown = parser_for(Plan).format_help()
    assert "--radius" in shown and "--blur-radius" not in shown and "--sharpen" not in shown


def test_help_says_each_default_once() -> None:
    shown = " ".join(parser_for(Plan).format_help().split())
    # Python 3.13 and later write `-r, --radius RADIUS`.
    assert re.search(r"-r( RADIUS)?, --radius RADIUS in pixels \(default 1\.0\)", shown)
    assert "--rounds ROUNDS how often, 0 %: never (default 0)" in shown
    assert "--size SIZE height,width (default 8,12)" in shown
    assert "--count N how many images --size" in shown  # None is no value to show
    assert "--inverse sharpen instead --files" in shown


def test_scripts_may_have_other_defaults() -> None:
    parser = parser_for(Plan, radius=5.0, count=2)
    assert "(default 5.0)" in parser.format_help()
    assert from_flags(Plan, parser.parse_args([])) == Plan(2, blur=Blur(5.0))
    assert from_flags(Plan, parser.parse_args(["-r", "1"])) == Plan(2)


def test_the_dataclass_refuses_values_out_of_range() -> None:
    with pytest.raises(UserError, match="a radius is 0 or more"):
        plan("--radius", "-1")


def test_flags_go_into_groups_of_help_as_well() -> None:
    parser = Parser()
    add_flags(parser.add_argument_group("blurring"), Blur)
    assert "blurring:" in parser.format_help()
    assert from_flags(Blur, parser.parse_args(["--rounds", "2"])) == Blur(rounds=2)


def test_required_flags() -> None:
    def copy(*argv: str) -> Copy:
        return from_flags(Copy, parser_for(Copy).parse_args(argv))

    assert copy("-i", "a", "--target", "b") == copy("--source", "a", "--to", "b") == Copy("a", "b")
    with pytest.raises(UserError, match=r"required: -i/--source \(see --help\)"):
        copy("--to", "b")
    with pytest.raises(UserError, match="--target is missing"):
        copy("-i", "a")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (("--count", "many"), r"argument --count: invalid int value: 'many' \(see --help\)"),
        (("--size", "8x12"), "--size: a size is height,width in pixels"),
        (("--count",), "expected one argument"),
    ],
)
def test_values_of_the_wrong_kind_are_one_sentence(argv: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        plan(*argv)


def test_overrides_are_told_from_unknown_flags() -> None:
    args, overrides = parse(parser_for(Blur), ["-r", "2", "model.params.n_embed=3", "a.b=--c"])
    assert args.radius == 2.0 and overrides == ["model.params.n_embed=3", "a.b=--c"]
    for unknown, hint in (
        ("--raduis=3", "; did you mean --radius?"),
        ("--blorry", " "),  # a hidden spelling is no advice
        ("--colour", " "),
        ("word", " "),
    ):
        with pytest.raises(UserError) as caught:
            parse(parser_for(Blur), [unknown])
        assert str(caught.value).startswith(f"unknown argument {unknown}{hint}")
    with pytest.raises(UserError, match="unknown argument --raduis; did you mean --radius"):
        parser_for(Blur).parse_args(["--raduis", "3"])  # of scripts without overrides


@pytest.mark.parametrize("text", ["true", "True", "yes", "t", "Y", "1"])
def test_switches_on(text: str) -> None:
    assert parse_switch(text)


@pytest.mark.parametrize("text", ["false", "no", "F", "n", "0"])
def test_switches_off(text: str) -> None:
    assert not parse_switch(text)


def test_switches_are_nothing_else() -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="'maybe' is neither"):
        parse_switch("maybe")


def test_sizes() -> None:
    assert parse_size("256") == (256, 256) and parse_size("16, 384") == (16, 384)
    for text in ("", "0", "16,0", "16,", "1,2,3", "16x16", "-4,4", "1.5"):
        with pytest.raises(UserError, match="height,width"):
            parse_size(text)


def test_sides_may_be_given_apart() -> None:
    parser = Parser()
    parser.add_argument("--size", type=parse_size, default=None)
    add_side_flags(parser)
    for words in (["--height", "8", "--width", "12"], ["--size", "8,9", "--width", "12"]):
        assert parser.parse_args(words).size == (8, 12)
    assert parser.parse_args(["--width", "12"]).size == (None, 12)


def test_lists_of_numbers() -> None:
    assert parse_numbers("0, 1,7,") == (0, 1, 7)
    assert parse_numbers("3,1,3") == (3, 1)  # without repetitions, in the order of the user
    for text, message in (
        ("0,x", "not 'x'"),
        ("-1", "not '-1'"),
        (",", "is empty"),
        ("\u00b2", "not"),
    ):
        with pytest.raises(UserError, match=message):
            parse_numbers(text)


def test_flags_with_several_values_may_be_given_several_times() -> None:
    parser = Parser()
    add_flags(parser, Plan)
    args, _ = parse(parser, ["--files", "a", "b", "--files", "c"])
    assert from_flags(Plan, args).files == ("a", "b", "c")
    assert from_flags(Plan, parse(parser, [])[0]).files == ()
    assert from_flags(Plan, parse(parser, ["--files", "d"])[0]).files == ("d",)


@dataclass(frozen=True)
class Sweep:
    points: tuple[str, ...] = flag(("z",), "each is tried", repeated=True)


def test_flags_that_are_repeated() -> None:
    def points(*argv: str) -> tuple[str, ...]:
        return from_flags(Sweep, parser_for(Sweep).parse_args(argv)).points

    assert points() == ("z",) and points("--points", "a", "--points", "b,c") == ("z", "a", "b,c")


WAYS_TO_PARSE = ("parse_args", "parse_known_args", "parse_intermixed_args")
WAYS_TO_PARSE += ("parse_known_intermixed_args",)


@pytest.mark.parametrize("way", WAYS_TO_PARSE)
def test_which_weights_are_loaded_holds_from_the_parsing_on(way: str) -> None:
    def chosen(*argv: str) -> WeightChoice:
        parser = Parser()
        add_weight_flags(parser)
        getattr(parser, way)(argv)
        return weight_choice()

    for argv, expected in (
        ((), WeightChoice()),
        (("--weights", "raw"), WeightChoice("raw")),
        (("--weights", "int8"), WeightChoice(int8=True)),
        (("--weights", "int8,ema"), WeightChoice("ema", int8=True)),
        (("--parts", "encoder, quant_conv", "--parts", "x"), ("encoder", "quant_conv", "x")),
    ):
        found = contextvars.copy_context().run(chosen, *argv)
        assert expected in (found, found.parts)


@pytest.mark.parametrize("way", ["parse_args", "parse_intermixed_args"])
def test_weights_of_an_extractor_are_a_file_of_another_name(way: str) -> None:
    def chosen(*argv: str) -> tuple[Path | None, WeightChoice]:
        parser = Parser()
        add_weight_flags(parser)
        parser.add_argument("--extractor_weights", type=Path)
        return getattr(parser, way)(argv).extractor_weights, weight_choice()

    def found(*argv: str) -> tuple[Path | None, WeightChoice]:
        return contextvars.copy_context().run(chosen, *argv)

    file = Path("net.pth")
    assert found("--weights", "raw,int8") == (None, WeightChoice("raw", int8=True))
    assert found("--weights", "net.pth") == (file, WeightChoice())
    both = ("--extractor_weights", "net.pth", "--weights")
    assert found(*both, "raw") == (file, WeightChoice("raw"))
    with pytest.raises(UserError, match=r"other.pth and --extractor_weights net.pth both name"):
        found(*both, "other.pth")


def test_another_flag_of_that_name_chooses_nothing() -> None:
    parser = Parser()
    parser.add_argument("--weights")
    parser.add_argument("--parts")
    args = parser.parse_args(["--weights", "net.pt", "--parts", "all"])
    assert (args.weights, args.parts, weight_choice()) == ("net.pt", "all", WeightChoice())


def test_overrides_may_follow_the_files_of_base(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("b=c.yaml").touch()
    parser = Parser()
    parser.add_argument("-b", "--base", nargs="*", action=Extend, default=[])
    args, overrides = parse(parser, ["-b", "a.yaml", "b=c.yaml", "x.y=1", "-b", "./d=e.yaml"])
    assert args.base == ["a.yaml", "b=c.yaml", "./d=e.yaml"]
    parser.add_argument("-c", "--config", nargs="+", action=Extend, default=[])
    args, more = parse(parser, ["-c", "a.yaml", "x.y=1"])
    assert args.config == ["a.yaml"] and more == ["x.y=1"]
    parser.add_argument("--keys", nargs="*", action=Extend, default=["all"])
    assert parse(parser, [])[0].keys == ["all"]
    assert parse(parser, ["--keys", "b", "--keys", "c"])[0].keys == ["b", "c"]
    assert overrides == ["x.y=1"]
    assert parse(parser, ["model.path=a=b"])[1] == ["model.path=a=b"]


@pytest.mark.parametrize("way", ["parse_args", "parse_intermixed_args"])
def test_the_users_folder_is_known_by_its_sign(monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    parser = Parser()
    parser.add_argument("--outdir")
    parser.add_argument("folder")
    for words in (["--outdir=~/out", "~/in"], ["--outdir", "~/out", "~/in"]):
        args = getattr(parser, way)(words)
        assert (args.outdir, args.folder) == ("/home/ada/out", "/home/ada/in")
    assert parser.parse_args(["a~b"]).folder == "a~b"


def test_a_command_is_asked_for_its_parser(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing else of it is done, and nothing that it prints before is seen."""
    done: list[str] = []

    def main(words: Sequence[str]) -> None:
        print("before")
        parser = parser_for(Blur)
        parser.description = " ".join(words)
        parser.parse_args(words)
        done.append("after")

    parser = parser_of(main, "some", "words")
    assert parser is not None and parser.description == "some words"
    assert words_of(main) == ["--help", "--inverse", "--radius", "--rounds", "-h", "-r"]
    assert done == [] and capsys.readouterr().out == ""
    assert parser_of(lambda _: done.append("no parser")) is None and words_of(lambda _: None) == []
    assert parser_for(Blur).parse_args([]).radius == 1.0  # as usual afterwards
