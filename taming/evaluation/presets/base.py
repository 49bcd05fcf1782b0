"""What a preset is: published numbers, and how they were made, each with the place it is from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

PAPER = "arXiv 2012.09841v3"
SCENES_PAPER = "arXiv 2105.06458"
SUPPLEMENT = "supplement, section A, and captions"
README = "README of the published code"
NOT_PUBLISHED = "not published"
Value = str | int | float | tuple[int, ...] | None
# What scripts call a parameter that have no flag of its name; without a value they do as published.
ALSO_CALLED = {"reference_size": "size"}


def as_flag(value: object) -> str:
    """A value as a flag takes it."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


@dataclass(frozen=True)
class Parameter:
    """A setting, named as the flag that sets it, if there is one, and where it is published.

    `value` is what the preset sets; None leaves it to the script.
    """

    name: str
    value: Value
    source: str

    @property
    def text(self) -> str:
        """The value as a flag takes it."""
        return as_flag(self.value)

    def given_in(self, flags: Mapping[str, Any]) -> Any:
        """What a script's parsed flags set it to; the published value if they do not say."""
        if self.name in flags:
            return flags[self.name]
        other = flags.get(ALSO_CALLED.get(self.name, ""))
        if isinstance(other, tuple) and len(set(other)) == 1:
            return other[0]  # of height and width
        return self.value if other is None else other

    def kept_by(self, given: Any) -> bool:
        """Whether a flag's value is the published one; further metrics change none of these."""
        if self.name == "metrics" and isinstance(given, tuple):
            return set(self.text.split(",")) <= set(given)
        return as_flag(given) == self.text


@dataclass(frozen=True)
class Number:
    """A published number; `metric` as `flattened` results have it."""

    metric: str
    value: float
    source: str
    spread: float | None = None  # what stands behind +-
    of: str = ""  # of what else than the preset's model, which is not measured here
    by: str = ""  # who measured it, if not those who made the model

    @property
    def text(self) -> str:
        """The number, and its spread, as published."""
        return f"{self.value:g}" if self.spread is None else f"{self.value:g} +- {self.spread:g}"


@dataclass(frozen=True)
class Preset:
    """A row of a table: its numbers, and every parameter of how they were made."""

    name: str  # as `--preset` takes it
    what: str  # of what and on which data
    numbers: tuple[Number, ...]
    parameters: tuple[Parameter, ...]
    script: str | None  # of the folder scripts, without .py; None: nothing here measures it
    model: str | None = None  # as scripts/download_models.py takes it; None: none is published
    config: str | None = None  # the YAML of the data, in the folder configs
    conditions: bool = False  # whether the conditions are of the data of `config`
    note: str = ""

    def parameter(self, name: str) -> Value:
        """The value of a parameter; None without one."""
        return next((entry.value for entry in self.parameters if entry.name == name), None)

    @property
    def of_data_alone(self) -> bool:
        """Whether real images are compared with real images."""
        return self.parameter("samples_split") is not None

    @property
    def measured(self) -> tuple[Number, ...]:
        """The numbers of the preset's model."""
        return tuple(number for number in self.numbers if not number.of)

    def overridden(self, given: Mapping[str, Any]) -> dict[str, str]:
        """What counts in place of published values, by name, of a script's parsed flags `given`."""
        found = [(one, one.given_in(given)) for one in self.parameters if one.value is not None]
        return {
            one.name: "none" if value is None else as_flag(value)
            for one, value in found
            if not one.kept_by(value)
        }

    def describe(self, given: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        """Numbers and parameters with their sources, as JSON values.

        If flags were `given` in place of some of them, each row has the one that counts.
        """
        numbers = [
            {
                "name": f"published {number.metric}" + (f", {number.of}" if number.of else ""),
                "value": number.text,
                "source": number.source + (f", measured by {number.by}" if number.by else ""),
            }
            for number in self.numbers
        ]
        settings = [
            {
                "name": entry.name,
                "value": NOT_PUBLISHED if entry.value is None else entry.text,
                "source": entry.source,
            }
            for entry in self.parameters
        ]
        if changed := self.overridden(given or {}):
            settings = [{**row, "given": changed.get(row["name"], "")} for row in settings]
            numbers = [{**row, "given": ""} for row in numbers]
        return [*numbers, *settings]


def with_source(
    parameters: Sequence[Parameter], **values: tuple[Value, str]
) -> tuple[Parameter, ...]:
    """`parameters` with other values and sources for some names, and further ones after them."""
    changed = {name: Parameter(name, *pair) for name, pair in values.items()}
    kept = tuple(changed.pop(entry.name, entry) for entry in parameters)
    return (*kept, *changed.values())
