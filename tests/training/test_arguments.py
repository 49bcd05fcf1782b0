"""What main.py takes on its command line; see also test_cli.py."""

from __future__ import annotations

import pytest

from taming.errors import UserError
from taming.training.arguments import get_parser, parse_arguments, split_arguments


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_stepz", "3"], "unknown argument --max_stepz; did you mean --max_steps"),
        (["--max_stepz=3"], "unknown argument --max_stepz; did you mean --max_steps"),
        (["--nam", "x"], "unknown argument --nam; did you mean --name"),  # not what it begins
        (["--callbacks", "x"], "unknown argument --callbacks"),
        (["--seed", "x"], "seed"),
        (["-t", "perhaps"], "perhaps"),
        (
            ["-l", "out"],
            "-l is no argument any more: .* name it by -n, and a folder .* -p",
        ),
        (["-gpu", "0,"], "unknown argument -gpu; did you mean --gpus"),
        (["-x", "0"], r"unknown argument -x \(see"),
    ],
)
def test_what_there_is_not_is_refused(words: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_arguments(words)


def test_defaults_of_flags() -> None:
    flags = vars(get_parser().parse_args([]))
    assert flags["postfix"] == "" and flags["base"] == []
    assert [flags[name] for name in ("train", "no_test", "debug")] == [False] * 3
    undecided = ("name", "resume", "project", "seed", "scale_lr", "skip_nonfinite", "gpus")
    assert [flags[name] for name in undecided] == [None] * 7


def test_options_may_stand_without_values() -> None:
    options, overrides = split_arguments(["--detect_anomaly", "a.b=1", "--max_steps=2", "c=3"])
    assert options == {"detect_anomaly": True, "max_steps": 2}
    assert overrides == ["a.b=1", "c=3"]
    options, _ = split_arguments(["--detect_anomaly", "--max_steps", "-1"])
    assert options == {"detect_anomaly": True, "max_steps": -1}
    assert split_arguments(["--detect_anomaly"]) == ({"detect_anomaly": True}, [])
