"""The command line of the page, which is read, and completed by shells, without Streamlit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from taming.command_line import flag, from_flags, parse
from taming.errors import UserError, reason_of
from taming.guidance.arguments import Guide
from taming.sampling.arguments import DataArguments, RunArguments, make_parser
from taming.user_files import read_text

DESCRIPTION = "Sample images in the browser."


@dataclass(frozen=True, kw_only=True)
class PageArguments(RunArguments):
    """The command line of the page: `RunArguments` of any number of runs."""

    resume: tuple[str, ...] = flag(  # type: ignore[assignment]
        (), "a run: its folder or checkpoint; may be repeated; default: those in logs/", "-r",
        repeated=True,
    )  # fmt: skip
    label_names: str | None = flag(
        None,
        "what a segmentation's labels are called: a text file with a line per label; the color in "
        "which it is painted may be before it, as in the palette.txt of rendered landscapes",
    )

    def of(self, run: str) -> RunArguments:
        """The arguments for one run."""
        given = {field.name: vars(self)[field.name] for field in fields(RunArguments)}
        return RunArguments(**{**given, "resume": run})

    @property
    def names(self) -> list[str]:
        """The lines of `--label_names`."""
        if self.label_names is None:
            return []
        try:
            return read_text(self.label_names).splitlines()
        except (OSError, ValueError) as error:
            reason = reason_of(error) if isinstance(error, OSError) else "it is no text in UTF-8"
            raise UserError(
                f"--label_names: {self.label_names} cannot be read ({reason})"
            ) from None


def read_page_arguments(
    argv: Sequence[str] | None = None,
) -> tuple[PageArguments, DataArguments, Guide]:
    """The command line."""
    parser = make_parser(DESCRIPTION, DataArguments, Guide, run=PageArguments)
    args, overrides = parse(parser, argv)
    page = from_flags(PageArguments, args, overrides=tuple(overrides))
    return page, from_flags(DataArguments, args), from_flags(Guide, args)
