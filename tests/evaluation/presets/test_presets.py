"""Presets: every published row has one, every parameter its source, and scripts know its flags."""

from __future__ import annotations

import argparse
import json
from typing import Any

import pytest

from scripts import evaluate_fid, evaluate_first_stage, evaluate_scenes, evaluate_transformer
from taming.command_line import Parser
from taming.errors import UserError
from taming.evaluation import presets
from taming.evaluation.presets import (
    NOT_PUBLISHED,
    PRESETS,
    RENAMED,
    RUN,
    TABLES,
    Preset,
    command_of,
    preset,
    preset_words,
    with_preset,
)
from taming.evaluation.presets.listing import listing
from taming.published_models import published_models
from tests.support import GOLDEN, ROOT

PUBLISHED: dict[str, Any] = json.loads((GOLDEN / "published_tables.json").read_text())
MIXED = tuple(PUBLISHED.pop("mixed"))
ROWS = [
    pytest.param(entry, row, id=entry.name)
    for table, rows in PUBLISHED.items()
    for entry, row in zip(TABLES[table], rows, strict=True)
]
# Which flags there are depends on what the evaluations can do so far.
RESIZES = {"reference_resize", "reference_crop", "reference_size"}
# Facts that are no flags.
FACTS = {"training_steps", "training_days", "parameters", "unit", "dataset", "distillation"}
FACTS |= {"downsampling_factor", "device"}


def test_every_table_is_here() -> None:
    assert set(TABLES) - set(PUBLISHED) == {"Shown without a number"}
    assert sum(map(len, TABLES.values())) == len(PRESETS)


@pytest.mark.parametrize(("entry", "row"), ROWS)
def test_every_row_has_a_preset(entry: Preset, row: dict[str, Any]) -> None:
    row, numbers = dict(row), {number.metric: number for number in reversed(entry.measured)}
    spreads = row.pop("spreads", [])
    if "spread" in row:
        assert numbers["isc.mean"].spread == row.pop("spread")
    assert [n.value for n in entry.numbers if n.of] == row.pop("others", [])
    assert [n.value for n in entry.measured[1:] if n.metric == "fid"] == (
        [row.pop("also")] if "also" in row else []
    )
    if spreads:
        assert [number.spread for number in entry.numbers] == spreads
    for name, value in row.items():
        if name in numbers:
            assert numbers.pop(name).value == value
        else:
            assert entry.parameter(name) == (MIXED if value == "mixed" else value), name
    assert not numbers


@pytest.mark.parametrize("entry", PRESETS.values(), ids=lambda entry: entry.name)
def test_every_parameter_has_its_source(entry: Preset) -> None:
    assert entry.parameters and all(number.source for number in entry.numbers)
    for parameter in entry.parameters:
        assert parameter.source.strip()
        if parameter.value is None and parameter.name != "num_samples":
            assert NOT_PUBLISHED in parameter.source
        assert parameter.source != NOT_PUBLISHED or parameter.value is None
    names = [parameter.name for parameter in entry.parameters]
    assert len(set(names)) == len(names)
    assert entry.model is None or entry.model in published_models()
    late = {"lsun_transformer", "cin512_transformer"}  # configs of benchmarks
    assert entry.config in {None, *late} or (ROOT / "configs" / f"{entry.config}.yaml").is_file()
    assert entry.script is not None or entry.note


RESNET = "resnet101@IMAGENET1K_V1"


@pytest.mark.parametrize("entry", TABLES["Table 4, classes of ImageNet"][:9], ids=lambda e: e.name)
def test_rows_of_table_4_set_all_of_their_protocol(entry: Preset) -> None:
    for name, value in (
        ("metrics", "fid,isc"),
        ("num_samples", 50),
        ("split", "train"),
        ("reference_resize", "pillow-antialias"),
        ("reference_crop", "center"),
        ("temperature", 1.0),
    ):
        assert entry.parameter(name) == value
    rejected = entry.parameter("reject_ratio") != 1
    assert entry.parameter("classifier") == (RESNET if rejected else None)
    assert entry.parameter("reject_pool") == ("class" if rejected else None)


def parser_of(script: str) -> Parser:
    """The parser of an evaluation script, as it is when it looks for flags."""
    modules = (evaluate_fid, evaluate_first_stage, evaluate_scenes, evaluate_transformer)
    (module,) = (one for one in modules if one.__name__ == f"scripts.{script}")
    found: list[Parser] = []

    def note(parser: Parser, argv: Any, script: str) -> list[str]:
        found.append(parser)
        raise UserError("enough")

    before = module.with_preset
    module.with_preset = note
    try:
        with pytest.raises(SystemExit):
            module.main([])
    finally:
        module.with_preset = before
    return found[0]


@pytest.fixture(scope="module")
def parsers() -> dict[str, Parser]:
    return {entry.script: parser_of(entry.script) for entry in PRESETS.values() if entry.script}


@pytest.mark.parametrize("entry", PRESETS.values(), ids=lambda entry: entry.name)
def test_scripts_take_what_is_published(
    entry: Preset, parsers: dict[str, Parser], capsys: pytest.CaptureFixture[str]
) -> None:
    if entry.script is None:
        with pytest.raises(UserError, match="is no single run: "):
            preset_words(entry, Parser(), evaluate_fid.SCRIPT)
        assert command_of(entry) == []
        return
    parser = parsers[entry.script]
    words = preset_words(entry, parser, entry.script)
    flags = {word.removeprefix("--") for word in words[::2]}
    own = {p.name for p in entry.parameters if p.value is not None} - FACTS
    not_yet = set() if "--reference_resize" in parser.flags() else RESIZES
    if entry.script != "evaluate_fid":
        not_yet = not_yet | {"reference_crop", "reference_size"}
    assert own - flags <= not_yet
    line = command_of(entry)
    assert line[0] == f"scripts/{entry.script}.py" and entry.name in line
    all_words = with_preset(parser, line[1:], entry.script)
    assert all_words == [*words, *line[1:]]
    args, _ = parser.parse_known_args(all_words)
    assert entry.overridden(vars(args)) == {}
    said = capsys.readouterr().out
    assert "; given: " not in said
    for row in entry.describe():
        assert f"{row['value']} ({row['source']})" in said
    assert (RUN in line) == (entry.model is None and not entry.of_data_alone)


def test_flags_after_a_preset_count(
    parsers: dict[str, Parser], capsys: pytest.CaptureFixture[str]
) -> None:
    parser = parsers["evaluate_fid"]
    words = with_preset(parser, ["--preset", "cin_mixed_k_a005", "-n", "3"], evaluate_fid.SCRIPT)
    said = capsys.readouterr().out
    assert "; given: 3\n" in said and said.count("; given: ") == 1
    args: argparse.Namespace
    args, _ = parser.parse_known_args(words)
    assert preset("cin_mixed_k_a005").overridden(vars(args)) == {"num_samples": "3"}
    assert (args.num_samples, args.top_k, args.reject_ratio) == (3, MIXED, 0.05)
    assert (args.reject_pool, args.classifier, args.split) == ("class", RESNET, "train")
    assert with_preset(parser, ["-n", "3"], evaluate_fid.SCRIPT) == ["-n", "3"]


def test_a_flag_without_a_preset(parsers: dict[str, Parser]) -> None:
    for words in (["--preset"], ["--preset", "--top_k", "3"]):
        assert with_preset(parsers["evaluate_fid"], words, evaluate_fid.SCRIPT) == words


def test_names() -> None:
    assert preset("cin_1").name == "cin_k250" and set(RENAMED.values()) <= set(PRESETS)
    earlier = [preset(f"cin_{number}").numbers[0].value for number in range(1, 6)]
    assert earlier == [15.98, 15.78, 6.59, 5.88, 5.20]
    with pytest.raises(UserError, match="did you mean 'ffhq'"):
        preset("fhq")
    with pytest.raises(UserError, match=r"is computed by scripts/evaluate_first_stage\.py"):
        preset_words(preset("rfid_dalle"), Parser(), evaluate_fid.SCRIPT)


def test_results_note_their_preset() -> None:
    result: dict[str, Any] = {}
    assert presets.noted(result, None, {}) == [] and result == {}
    (table,) = presets.noted(result, "ffhq", {"top_k": 300, "num_samples": 50_000})
    assert "overridden" not in result["preset"] and "given" not in table
    assert result["preset"]["name"] == "ffhq"
    assert {"name": "top_k", "value": "300", "source": "supplement, section A, and captions"} in (
        result["preset"]["sources"]
    )
    assert "| top_k " in table
    given = {"top_k": (100, 200), "temperature": 1.0, "split": None, "metrics": ("isc",)}
    sentence, table = presets.noted(result, "ffhq", given)
    changed = {"metrics": "isc", "split": "none", "top_k": "100,200"}
    assert result["preset"]["overridden"] == changed
    assert sentence == "Not as published: metrics isc, split none, top_k 100,200."
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()]
    assert cells[0][-1] == "given"
    assert {row[0]: row[-1] for row in cells[2:] if row[-1]} == changed


@pytest.mark.parametrize(
    ("flags", "changed"),
    [
        ((), {}),
        (("--size", "256"), {}),
        (("--size", "128"), {"reference_size": "128"}),
        (("--size", "256,128"), {"reference_size": "256,128"}),
        (("--reference_resize", "opencv"), {"reference_resize": "opencv"}),
    ],
)
def test_flags_of_another_name_override_too(
    flags: tuple[str, ...], changed: dict[str, str], parsers: dict[str, Parser], capsys: Any
) -> None:
    """Of `reference_size`, which is `--size` where first stages are evaluated."""
    line = ["-r", "run", "--preset", "rfid_vq_f8", *flags]
    parser = parsers["evaluate_first_stage"]
    args, _ = parser.parse_known_args(with_preset(parser, line, evaluate_first_stage.SCRIPT))
    assert preset("rfid_vq_f8").overridden(vars(args)) == changed
    said = capsys.readouterr().out
    assert [text in said for text in changed.values()] == [True] * len(changed)
    assert said.count("; given: ") == len(changed)


def test_samples_of_the_larger_benchmark_are_so_large_however_it_was_trained(
    parsers: dict[str, Parser],
) -> None:
    parser = parsers["evaluate_fid"]
    line = ["run", "configs/cin512_transformer.yaml", "--preset", "imagenet512"]
    args, _ = parser.parse_known_args(with_preset(parser, line, evaluate_fid.SCRIPT))
    assert args.size == (512, 512) and preset("imagenet512").overridden(vars(args)) == {}


def test_the_size_of_samples_is_not_that_of_the_reference(parsers: dict[str, Parser]) -> None:
    parser = parsers["evaluate_fid"]
    line = ["run", "data.yaml", "--preset", "ffhq", "--size", "512"]
    args, _ = parser.parse_known_args(with_preset(parser, line, evaluate_fid.SCRIPT))
    assert preset("ffhq").overridden(vars(args)) == {}


def test_measured_by_others_and_not_measured_here() -> None:
    text = listing()
    for phrase in (
        "rFID 7.53 (by others)",
        "FID 26.52 (by others)",
        "PixelSNAIL, not a model here",
    ):
        assert phrase in text
    assert "FID 22.4 (table 2), FID 20.4 (README of the published code)" in text
    assert all(f"| {name} |" in text for name in PRESETS)
