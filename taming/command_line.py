"""Flags of the scripts: a parser with errors of one sentence, and flags made from dataclasses.

A setting is written down once, as a field of a frozen dataclass:

    @dataclass(frozen=True)
    class Blur:
        radius: float = flag(1.0, "in pixels", "-r")

    add_flags(parser, Blur)
    blur = from_flags(Blur, parser.parse_args())
"""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import types
import typing
from collections.abc import Callable, Iterable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any, ClassVar, NoReturn, TypeVar

from taming.errors import UserError
from taming.shipped import as_called
from taming.trust import checked_names, trusted
from taming.user_files import with_home, word_with_home
from taming.weight_choice import EMA, INT8, RAW, WeightChoice, chosen_weights

T = TypeVar("T")
Arguments = argparse.ArgumentParser | argparse._ArgumentGroup


class Extend(argparse.Action):
    """Several values, of all times that the flag is given."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        before = vars(namespace)[self.dest]
        earlier = [] if before is self.default else before
        vars(namespace)[self.dest] = [*earlier, *(values or ())]


class Parser(argparse.ArgumentParser):
    """An `ArgumentParser` whose refusals are a `UserError`.

    What `--trust`, `--weights` and `--parts` say holds from the parsing on.
    """

    program: ClassVar[str | None] = None  # the name in usage lines, if it is not the file's
    asked: ClassVar[list[Parser] | None] = None  # gets the parser, see `parser_of`

    def __init__(self, **options: Any) -> None:
        if "\n\n" in (options.get("description") or ""):  # paragraphs, which stay such
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(**{"prog": self.program, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        return self._read(super().parse_known_args, args, namespace)

    def parse_known_intermixed_args(self, args: Any = None, namespace: Any = None) -> Any:
        # Some versions of Python call the other from here, those since 3.12.7 do not.
        return self._read(super().parse_known_intermixed_args, args, namespace)

    def _read(self, parse: Callable[..., Any], args: Any, namespace: Any) -> Any:
        if Parser.asked is not None:
            Parser.asked.append(self)
            raise _Asked
        if any("\0" in text for text in args or ()):  # from Python: the system allows none
            self.error("an argument has a character of code 0")
        words = [word_with_home(word) for word in (sys.argv[1:] if args is None else args)]
        namespace, rest = parse(words, namespace)
        values = vars(namespace)
        trusted.set(tuple(values.get("trust", ())))
        weights, parts = values.get("weight_set"), tuple(values.get("weight_parts", ()))
        names = set((weights or RAW).split(","))
        if "extractor_weights" in values and not names <= {RAW, EMA, INT8}:
            if (named := values["extractor_weights"]) is not None:
                self.error(f"--weights {weights} and --extractor_weights {named} both name a file")
            # As it was called before; taken out, as some Pythons parse mixed arguments twice.
            values.update(extractor_weights=Path(weights), weight_set=None)
            weights = None
        chosen_weights.set(WeightChoice.parse(weights, parts) if weights or parts else None)
        return namespace, rest

    def format_help(self) -> str:
        return as_called(super().format_help())

    def flags(self) -> dict[str, int]:
        """All that `--help` shows, and how many values have to follow: 0, 1, or 2 for several."""
        shown = [a for a in self._actions if a.help != argparse.SUPPRESS]
        return {n: {None: 1, 0: 0, "?": 0}.get(a.nargs, 2) for a in shown for n in a.option_strings}

    def choices(self) -> dict[str, list[str]]:
        """The words of which one has to stand behind a flag, or in a place of another name."""
        named = [(n, a.choices) for a in self._actions for n in a.option_strings or [a.dest]]
        return {name: [*words] for name, words in named if words is not None}

    def error(self, message: str) -> NoReturn:
        _, unrecognized, words = message.partition("unrecognized arguments: ")
        if unrecognized:
            self.refuse(words.split(" ")[0])
        raise UserError(f"{message} (see --help)")

    def refuse(self, word: str, more: Iterable[str] = ()) -> NoReturn:
        """Raise `UserError` for a word that is no flag, with the nearest one, also of `more`."""
        flag, flags = word.partition("=")[0], [*self.flags(), *more]
        close = difflib.get_close_matches(flag, flags, n=1) if flag.startswith("-") else []
        self.error(f"unknown argument {word}" + (f"; did you mean {close[0]}?" if close else ""))


class _Asked(BaseException):
    """Ends a command that was only called for its parser."""


def parser_of(main: Callable[[Sequence[str]], object], *words: str) -> Parser | None:
    """The first parser that `main(words)` asks, doing nothing else then; None if it asks none."""
    found = Parser.asked = list[Parser]()
    try:
        with suppress(_Asked), redirect_stdout(None):  # a help may come first
            main(words)
    finally:
        Parser.asked = None
    return found[0] if found else None


def parse(
    parser: Parser, argv: Sequence[str] | None = None
) -> tuple[argparse.Namespace, list[str]]:
    """The flags, and the `key.path=value` overrides among the rest; `UserError` for others."""
    args, rest = parser.parse_known_args(argv)
    rest = [*take_overrides(args), *rest]
    unknown = [text for text in rest if text.startswith("-") or not is_override(text)]
    if unknown:
        parser.refuse(unknown[0])
    return args, rest


def take_overrides(args: argparse.Namespace) -> list[str]:
    """Overrides after the files of --base and --config, whose lists end where these begin."""
    taken = []
    for name in vars(args).keys() & {"base", "config"}:
        words = vars(args)[name]
        taken += [word for word in words if is_override(word)]
        vars(args)[name] = [word for word in words if not is_override(word)]
    return taken


def is_override(word: str) -> bool:
    """Whether a word of a command line is `key.path=value`, not a file with such a name."""
    key, equals, _ = word.partition("=")
    return bool(equals) and not os.path.exists(with_home(word)) and "/" not in key


def add_trust_flag(parser: Arguments) -> None:
    """`--trust`, for programs that read configs: what these may name, see `taming.trust`."""
    parser.add_argument(
        "--trust",
        type=lambda text: checked_names(_parse_names(text)),
        action="extend",
        default=[],
        metavar="PACKAGE",
        help="let configs name classes of this package too: of a run from elsewhere, run its code",
    )


def add_weight_flags(parser: Arguments, parts: bool = True) -> None:
    """`--weights` and `--parts`, for programs that load weights, see `taming.weight_choice`."""
    parser.add_argument(
        "--weights",
        dest="weight_set",
        metavar=f"{RAW}|{EMA}|{INT8}",
        help="which weights of a file that has a moving average (EMA) of them too (default: ema); "
        f"{INT8}: sample with either in 8 bits, on a CPU, as {INT8} or {RAW},{INT8}",
    )
    options: dict[str, Any] = {"type": _parse_names, "action": "extend", "default": []}
    options["help"] = (
        "load these parts of the model alone, as encoder,quant_conv; others are random"
    )
    if parts:
        parser.add_argument("--parts", dest="weight_parts", metavar="PART", **options)


# ---------------------------------------------------------------------- values


def _parse_names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def parse_switch(text: str) -> bool:
    """True or False of yes/no, true/false, t/f, y/n, 1/0."""
    on, off = ("true", "yes", "t", "y", "1"), ("false", "no", "f", "n", "0")
    if text.lower() not in (*on, *off):
        raise argparse.ArgumentTypeError(f"'{text}' is neither true nor false")
    return text.lower() in on


def parse_size(text: str) -> tuple[int, int]:
    """(height, width) in pixels of "height,width", or of one number for a square."""
    parts = [part.strip() for part in text.split(",")]
    if len(parts) not in (1, 2) or not all(part.isdecimal() and int(part) for part in parts):
        raise UserError(f"a size is height,width in pixels, such as 256,384, not '{text}'")
    return int(parts[0]), int(parts[-1])


def parse_numbers(text: str) -> tuple[int, ...]:
    """Numbers of a comma list (a trailing comma is fine), without repetitions."""
    parts = [part.strip() for part in text.split(",") if part.strip()]
    if others := [part for part in parts if not part.isdecimal()]:
        raise UserError(f"a list takes numbers such as 0,1,7, not '{others[0]}'")
    if not parts:
        raise UserError("the list of numbers is empty; leave the flag out instead")
    return tuple(dict.fromkeys(int(part) for part in parts))


# ---------------------------------------------------------------------- dataclasses as flags


@dataclass(frozen=True)
class Flag:
    """How a field of a dataclass appears on the command line; see `flag`."""

    help: str  # what follows the flag in `--help`; the default is added
    names: tuple[str, ...] = ()  # further spellings that `--help` shows, such as "-k"
    hidden: Sequence[str] = ()  # earlier spellings, still understood
    parse: Callable[[str], Any] | None = None  # from text to the value; default: the field's type
    metavar: str | None = None  # what stands for the value in `--help`
    nargs: str | None = None  # "*" or "+" for several values; the field is a tuple
    repeated: bool = False  # whether it may be given several times; the field is a tuple


def flag(default: Any, help: str, *names: str, **options: Any) -> Any:
    """A field of a frozen dataclass that is a command-line flag as well; `options` are of `Flag`.
    With `default=MISSING` (of `dataclasses`) the flag is required."""
    return field(default=default, metadata={"flag": Flag(help, names, **options)})


def add_flags(parser: Arguments, settings: type, **defaults: Any) -> None:
    """A flag `--<field>` for every `flag` field of the dataclass, and of dataclasses inside it;
    `defaults` are other default values than the fields'."""
    hints = typing.get_type_hints(settings)
    for entry in fields(settings):
        if is_dataclass(kind := hints[entry.name]) and isinstance(kind, type):
            add_flags(parser, kind, **defaults)
        elif "flag" in entry.metadata:
            _add_flag(parser, entry, kind, defaults.get(entry.name, entry.default))


def _add_flag(parser: Arguments, entry: Field[Any], kind: Any, default: Any) -> None:
    spec: Flag = entry.metadata["flag"]
    options: dict[str, Any] = {"dest": entry.name}
    if kind is bool:
        options["action"] = "store_true"
    else:
        several = spec.nargs is not None or spec.repeated
        parse = _naming(entry.name, spec.parse) or (str if several else _type_of(kind))
        options |= {"type": parse, "metavar": spec.metavar, "nargs": spec.nargs}
        # argparse would ask for the flag also when one of its hidden spellings is there.
        options["required"] = default is MISSING and not spec.hidden
    help = _help(spec.help, default)
    if spec.repeated:
        del options["nargs"]
        options["action"], default = "append", [] if default is MISSING else list(default)
    elif spec.nargs:
        options["action"] = Extend
    names = (*spec.names, f"--{entry.name}")
    parser.add_argument(*names, default=default, help=help, **options)
    options.pop("required", None)
    for name in spec.hidden:
        parser.add_argument(name, default=argparse.SUPPRESS, help=argparse.SUPPRESS, **options)


def _naming(name: str, parse: Callable[[str], Any] | None) -> Callable[[str], Any] | None:
    """`parse`, with the flag's name before its errors."""
    if parse is None:
        return None

    def parse_flag(text: str) -> Any:
        try:
            return parse(text)
        except UserError as error:
            raise UserError(f"--{name}: {error}") from None

    return parse_flag


def _help(text: str, default: Any) -> str:
    """The text with its default, with percent signs as argparse wants them."""
    if default is MISSING:
        text += " (required)"
    elif default is not None and default is not False and default != ():
        value = ",".join(map(str, default)) if isinstance(default, tuple) else default
        text = f"{text} (default {value})"
    return text.replace("%", "%%")


def _type_of(kind: Any) -> type:
    """int of `int | None`."""
    if isinstance(kind, types.UnionType) or typing.get_origin(kind) is typing.Union:
        (kind,) = (part for part in typing.get_args(kind) if part is not type(None))
    return kind


def from_flags(settings: type[T], args: argparse.Namespace, **rest: Any) -> T:
    """The dataclass with what the flags of `add_flags` say; `rest` are its fields without a flag.

    Raises:
        UserError: if a required flag is missing, and for values that the dataclass refuses.
    """
    hints = typing.get_type_hints(settings)
    values = dict(rest)
    for entry in fields(settings):  # type: ignore[arg-type]
        if entry.name in rest:
            continue
        if is_dataclass(kind := hints[entry.name]) and isinstance(kind, type):
            values[entry.name] = from_flags(kind, args)
        elif "flag" in entry.metadata:
            if (value := getattr(args, entry.name)) is MISSING:
                raise UserError(f"--{entry.name} is missing (see --help)")
            values[entry.name] = tuple(value) if isinstance(value, list) else value
    return settings(**values)
