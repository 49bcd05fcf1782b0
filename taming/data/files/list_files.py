"""Text files with an image path per line: reading them, and making those that are absent."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote

from taming.atomic_files import atomic_path
from taming.data.columns import StringTable
from taming.data.files.find import EXTENSIONS, in_threads, relative_names, split_off
from taming.data.options import OnError
from taming.errors import UserError, absence
from taming.shipped import run_script
from taming.user_files import regular, with_home

log = logging.getLogger(__name__)


def write_lines(file: str | Path, lines: Iterable[str]) -> None:
    """Write a text file through `atomic_path`; file names that are no valid UTF-8 are kept."""
    with atomic_path(file, advice="make its folder writable") as partial:
        partial.write_bytes(b"".join(os.fsencode(f"{line}\n") for line in lines))


def quoted(name: str) -> str:
    """A file name as a line of a list: in quotes, as JSON has them, if it would be read otherwise.

    That is so for line breaks in it, white space at its ends, and quotes at its beginning.
    """
    plain = name == name.strip() and not name.startswith('"') and not {"\n", "\r"} & set(name)
    return name if plain else json.dumps(name)


def unquoted(line: str) -> str:
    """The file name that `quoted` made a line of; other lines as they are."""
    if not (len(line) > 1 and line.startswith('"') and line.endswith('"')):
        return line
    try:
        return str(json.loads(line))
    except ValueError:
        return line


def write_list(file: str | Path, names: Iterable[str]) -> None:
    """Write a list of files, one a line; any name is read back as it is."""
    write_lines(file, map(quoted, names))


# ---------------------------------------------------------------------- reading


def read_image_list(
    list_file: str | Path,
    dataset: str,
    locate: Callable[[str], str | None] | None = None,
    on_error: OnError = "raise",
) -> StringTable:
    """Paths of a text file with one path per line, without blank lines and outer white space.

    A line in quotes is read as `write_list` writes it, unless a file has these quotes in its name.

    Args:
        dataset: its name, for error messages.
        locate: from a line to what the table holds, None if there is no such file. By default a
            relative path is looked up in the working directory, then beside the list file.
        on_error: "skip" counts, logs and leaves out files that do not exist.

    Raises:
        UserError: if the list is missing or empty, or names files that do not exist.
    """
    file = with_home(Path(list_file))
    if not file.is_file():
        own = quote(str(list_file)) if file.is_dir() else "FOLDER"
        raise UserError(
            f"{dataset}: {absence('list file', list_file)}; give a text file with one image path "
            f"per line, such as {run_script('make_image_list')} {own} writes"
        )
    find = locate or partial(_beside, file.parent)
    missing, first = 0, ""

    def search(line: tuple[int, str]) -> tuple[tuple[int, str], str | None]:
        name = unquoted(line[1])
        path = find(line[1])
        return line, find(name) if path is None and name != line[1] else path

    def existing() -> Iterator[str]:
        nonlocal missing, first
        searched = in_threads(_lines(file), search, f"looking for the files of {file.name}")
        for (number, line), path in searched:
            if path is not None:
                yield path
            else:
                missing, first = missing + 1, first or f"line {number} of {file}: {line}"

    table = StringTable(existing())
    if not missing and not len(table):
        raise UserError(
            f"{dataset}: the list file {list_file} is empty; write one image path per line into it"
        )
    if missing:
        counts = f"{missing} of the {missing + len(table)} listed files are missing"
        if on_error == "raise" or not len(table):
            advice = "put the files there or correct the list"
            raise UserError(f"{dataset}: {first} does not exist ({counts}); {advice}")
        log.warning("%s: %s does not exist (%s and left out)", dataset, first, counts)
    return table


def _lines(file: Path) -> Iterator[tuple[int, str]]:
    with open(file, "rb") as raw:
        wide = raw.read(2) in (b"\xff\xfe", b"\xfe\xff")  # as Windows' shell redirects
    encoding = "utf-16" if wide else "utf-8-sig"
    with open(file, encoding=encoding, errors="replace" if wide else "surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            if path := line.strip():
                yield number, path


def _beside(folder: Path, line: str) -> str | None:
    line = with_home(line)
    places = (line, os.path.join(folder, line))
    return next((place for place in places if os.path.isfile(place)), None)


@dataclass(frozen=True)
class Listed:
    """Files of a list: their names, relative to a folder, and where they are."""

    names: StringTable
    paths: StringTable


Choices = Callable[[str], Sequence[str]]


def as_it_is(line: str) -> tuple[str, ...]:
    """The names that a line may stand for: itself."""
    return (line,)


def read_names(
    list_file: str | Path,
    root: str | Path,
    dataset: str,
    on_error: OnError = "raise",
    choices: Choices = as_it_is,
) -> Listed:
    """The files of a list whose lines are relative to `root`; see `read_image_list`.

    `choices` gives the names that a line may stand for; the first one that exists is taken.
    """
    root = with_home(str(root))

    def locate(line: str) -> str | None:
        names = (name for name in choices(line) if os.path.isfile(os.path.join(root, name)))
        return next(names, None)

    names = read_image_list(list_file, f"{dataset} with files below {root}", locate, on_error)
    return Listed(names, StringTable(os.path.join(root, name) for name in names))


def read_pairs(
    file: Path, meaning: str, convert: Callable[[str], str | None] = str
) -> dict[str, str]:
    """From lines of two words, which a `meaning` such as "image synset" describes.

    Raises `UserError` for other lines, and those whose second word `convert` returns None for.
    """
    pairs: dict[str, str] = {}
    for number, line in _lines(regular(file)):
        words = line.split()
        value = convert(words[1]) if len(words) == 2 else None
        if value is None:
            raise UserError(f"line {number} of {file} is not {meaning!r}: {line!r}")
        pairs[words[0]] = value
    return pairs


# ---------------------------------------------------------------------- making


@dataclass(frozen=True)
class ListPair:
    """The two list files of a dataset, made from the files in `root` where they are absent.

    Those in the subfolder `val_folder` are for validation, or a fixed `validation_fraction`.
    """

    train: str
    validation: str
    root: str
    extensions: tuple[str, ...]
    validation_fraction: float = 0.0
    val_folder: str = ""

    def read(
        self, training: bool, dataset: str, on_error: OnError, choices: Choices = as_it_is
    ) -> Listed:
        """The list of one split; see `read_names`."""
        self._make_missing(dataset, on_error, choices)
        list_file = self.train if training else self.validation
        return read_names(list_file, self.root, dataset, on_error, choices)

    def _make_missing(self, dataset: str, on_error: OnError, choices: Choices) -> None:
        """Write the lists that are absent, with a warning; raises `UserError` without files, and
        where the list that is there names others."""
        files = {True: Path(self.train), False: Path(self.validation)}
        absent = [training for training, file in files.items() if not file.is_file()]
        if not absent:
            return
        names = self._names(dataset)
        if len(absent) == 2:
            validation = self._validation_names(names)
        else:  # the absent list gets what the other one does not name
            listed = self._listed(files[not absent[0]], set(names), dataset, on_error, choices)
            own = self._validation_names(names) if self.val_folder else None
            if absent[0]:
                validation = listed | (own or set())
            else:
                validation = (set(names) if own is None else own) - listed
        for training in absent:
            chosen = [name for name in names if (name in validation) != training]
            write_list(files[training], chosen)
            made = f"{files[training]}, {len(chosen)} of the {len(names)} files in {self.root}"
            message = "%s: made %s; a published list, if put there, is used instead"
            log.warning(message, dataset, made)

    def _listed(
        self, file: Path, names: set[str], dataset: str, on_error: OnError, choices: Choices
    ) -> set[str]:
        """Which `names` a list has, however it writes them; see `read_image_list` for others."""

        def found(line: str) -> str | None:
            places = (os.path.join(self.root, name) for name in choices(line))
            spelled = (os.path.relpath(place, self.root).replace(os.sep, "/") for place in places)
            return next((name for name in spelled if name in names), None)

        def locate(line: str) -> str | None:
            name = found(line) or found(unquoted(line))
            # Where a folder says which split a file is of, no line needs to be understood.
            return "" if name is None and self.val_folder else name

        return set(
            read_image_list(file, f"{dataset} with files below {self.root}", locate, on_error)
        )

    def _names(self, dataset: str) -> list[str]:
        if not Path(self.root).is_dir():
            raise UserError(
                f"{dataset}: {absence('folder', self.root)}; put the images there, or a "
                "symbolic link to their folder"
            )
        names = relative_names(self.root, self.extensions)
        if not names:
            raise UserError(
                f"{dataset}: {self.root} has no files ending in {', '.join(self.extensions)}; put "
                "the images there"
            )
        return names

    def _validation_names(self, names: list[str]) -> set[str]:
        if self.val_folder:
            return {name for name in names if Path(name).parts[0] == self.val_folder}
        return split_off(names, self.validation_fraction, seed=0)


def write_image_lists(
    folders: Sequence[str | Path],
    output: str | Path,
    test_fraction: float = 0.05,
    seed: int = 0,
    damage_of: Callable[[str], str] = lambda path: "",
) -> tuple[int, int, list[str]]:
    """Write `train.txt` and `test.txt` in `output`, absolute paths of the images below `folders`,
    of each of which a share is for testing.

    Files that `damage_of` says something of are left out. Returns how many images each lists, and
    what was said; raises `UserError` if there is no such folder, or fewer than two images in one.
    """
    train, test, damaged = [], [], []
    given = {os.path.abspath(with_home(Path(one))): one for one in folders}
    for folder, called in given.items():
        names, said = _whole_images(folder, called, damage_of)
        chosen = split_off(names, test_fraction, seed)
        train += [os.path.join(folder, name) for name in names if name not in chosen]
        test += [os.path.join(folder, name) for name in sorted(chosen)]
        damaged += said
    for file, listed in (("train.txt", train), ("test.txt", test)):
        write_list(Path(output, file), listed)
    return len(train), len(test), damaged


def _whole_images(
    folder: str, called: str | Path, damage_of: Callable[[str], str]
) -> tuple[list[str], list[str]]:
    """The names of a folder's images, and what is said of those that are left out."""
    if not os.path.isdir(folder):
        raise UserError(absence("folder", called))
    found = relative_names(folder)
    paths = (os.path.join(folder, name) for name in found)
    said = list(in_threads(paths, damage_of, "checking"))
    names = [name for name, text in zip(found, said, strict=True) if not text]
    damaged = [text for text in said if text]
    if len(names) < 2:
        unread = f" that can be read, and {len(damaged)} others ({damaged[0]})" if damaged else ""
        raise UserError(
            f"{called} has {len(names)} image files{unread}; give a folder with at least two "
            f"({', '.join(EXTENSIONS)}), at any depth"
        )
    return names, damaged
