"""Values of a config against the types that its parameters have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
import torch

from taming.config import instantiate_from_config
from taming.config_values import (
    Count,
    FilePath,
    Fraction,
    Length,
    Misfit,
    Positive,
    Range,
    StepOrShare,
    fitted,
)
from taming.config_values import FractionBelowOne as Range01
from taming.errors import UserError
from tests.kit.models import VQGAN, ddconfig, first_stage_config

COUNTS = "whole numbers from 1 to 2,147,483,647"


@pytest.mark.parametrize(
    ("value", "hint", "result"),
    [
        (3, int, 3),
        (1e4, int, 10000),
        (np.int64(3), int, np.int64(3)),
        (3, float, 3),
        (0.5, float, 0.5),
        ("a", str, "a"),
        (Path("a"), str, Path("a")),
        ("a", str | Path, "a"),
        (True, bool, True),
        (None, int | None, None),
        (2.0, int | float, 2.0),
        ([1, 2.0], Sequence[int], [1, 2]),
        ((1, 2), Sequence[int], (1, 2)),
        ({"a": 1}, Mapping[str, Any], {"a": 1}),
        ("raise", Literal["raise", "skip"], "raise"),
        (-1, Literal[-1] | Count, -1),
        (3.0, Count, 3),
        (None, Count | None, None),
        ([1, 2.0], Sequence[Count], [1, 2]),
        (0, Fraction, 0),
        (1.0, Fraction, 1.0),
        ("a/b", FilePath, "a/b"),
        ("10%", StepOrShare, 0.1),
        ("2.5 %", StepOrShare | None, 0.025),
        ("0%", StepOrShare, 0),
        (1.0, StepOrShare, 1),
        ("anything", torch.Tensor, "anything"),
        ("anything", Any, "anything"),
    ],
)
def test_values_that_fit(value: Any, hint: Any, result: Any) -> None:
    assert fitted(value, hint) == result
    assert type(fitted(value, hint)) is type(result)


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1.5, int, "a whole number"),
        (
            "100%",
            StepOrShare,
            "a whole number from 0 to 2,147,483,647 or a number above 0 to below 1",
        ),
        (
            "ten%",
            StepOrShare,
            "a whole number from 0 to 2,147,483,647 or a number above 0 to below 1",
        ),
        ("10%", Fraction, "a number from 0 to 1"),
        (True, int, "a whole number"),
        (True, float, "a number"),
        (None, int, "a whole number"),
        ("3", int, "a whole number"),
        (float("inf"), int, "a whole number"),
        (float("nan"), int | None, "a whole number or null"),
        ("a", float, "a number"),
        (1, str, "a text"),
        (1, bool, "true or false"),
        (1e-4, str | Path, "a text"),
        ("abc", Sequence[str], "a list of texts"),
        (["a"], Sequence[Positive | Count], f"a list of numbers above 0 or {COUNTS}"),
        (
            0.5,
            Annotated[Sequence[int | float], Length(2, 2)],
            "a list of whole numbers or numbers of 2 entries",
        ),
        ([1, "a"], Sequence[int], "a list of whole numbers"),
        ([1], Mapping[str, Any], "a mapping"),
        ("stop", Literal["raise", "skip"], "raise or skip"),
        (True, Literal[1, 2], "1 or 2"),
        (float("nan"), float, "a finite number"),
        (10**400, float, "a finite number"),
        (float("nan"), Fraction, "a number from 0 to 1"),
        (float("-inf"), Positive | None, "a number above 0 or null"),
        ("x", Range01 | None, "a number from 0 to below 1 or null"),
        (0, Count, "from 1 to 2,147,483,647"),
        (-4, Count | None, "from 1 to 2,147,483,647"),
        (0, Positive, "above 0"),
        (1.0, Range01, "from 0 to below 1"),
        (3, Annotated[int, Range(most=2)], "at most 2"),
        (3, Annotated[int, Range(below=3)], "below 3"),
        (-1, Annotated[float, Range(0)], "from 0 on"),
        ([1, 0], Sequence[Count], "a list of whole numbers from 1 to 2,147,483,647"),
        ([], Annotated[Sequence[int], Length(1, 2)], "of 1 to 2 entries"),
        ([1, 2, 3], Annotated[Sequence[int], Length(1, 2)], "of 1 to 2 entries"),
        ("x", Annotated[Sequence[int], Length(1, 2)], "a list of whole numbers of 1 to 2 entries"),
    ],
)
def test_values_that_do_not(value: Any, hint: Any, expected: str) -> None:
    with pytest.raises(Misfit) as caught:
        fitted(value, hint)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_embed": 1.5}, "model.params.n_embed: a whole number .* not 1.5"),
        ({"ddconfig": 1}, "model.params.ddconfig: a mapping is expected here, not 1"),
        (
            {"ddconfig": {"ch": 32}},
            "ddconfig: Encoder needs the parameter .*; set model.params.ddconfig.out_ch$",
        ),
        ({"ddconfig": ddconfig() | {"ch_mult": -0.5}}, "model.params.ddconfig.ch_mult: a list"),
        ({"ddconfig": ddconfig() | {"dropout": "x" * 999}}, "not 'x{99}[.]{3}$"),
    ],
)
def test_errors_name_the_key(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        instantiate_from_config(first_stage_config(**changes), "model", "module")


def test_base_classes_have_types_too() -> None:
    with pytest.raises(UserError, match="model.params.decay: a number from 0 to below 1 is"):
        instantiate_from_config(first_stage_config(VQGAN + "EMAVQ", decay="x"), "model")
    with pytest.raises(UserError, match="model.params.embed_dim: a whole number from 1 .* or null"):
        instantiate_from_config(first_stage_config(VQGAN + "EMAVQ", embed_dim="x"), "model")
    config = {"target": VQGAN + "EMAVQ", "params": {"n_embed": 4}}
    with pytest.raises(UserError, match="model.params: .* needs the parameter 'ddconfig'"):
        instantiate_from_config(config, "model")


def test_whole_numbers_with_a_point_are_whole_numbers() -> None:
    model = instantiate_from_config(first_stage_config(n_embed=12.0), "model", "module")
    assert model.quantize.n_e == 12


def test_paths_begin_at_the_users_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ada")
    assert fitted("~/x", FilePath | None) == "/home/ada/x"
    assert fitted("~/x", Path) == "/home/ada/x"
    assert fitted("~/x", str) == "~/x"
