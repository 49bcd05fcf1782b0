"""The tables of README.md's front page are those of the files that they come from."""

from __future__ import annotations

import json
import re
import sys
from typing import Any

import pytest

import tests.test_published_commands as commands
from taming.published_models import Published, published_models
from tests.documents import blocks_of, commands_in
from tests.support import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def rows_of(heading: str) -> list[list[str]]:
    """The cells of the tables below a heading, without their first two lines."""
    section = README.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    rows = [line.strip("|").split("|") for line in section.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in row] for row in rows][1:]


def published(name: str) -> tuple[set[str], set[str]]:
    """The FIDs of a model against training and validation images, as the table of models has them.

    Scene models have one, of validation layouts, and numbers of other metrics after it.
    """
    model: Published = published_models()[name]
    text = re.sub(r"\+-[\d.]+", "", model.fid)
    if "SceneFID" in text:
        return set(), {text.split(",")[0].removeprefix("FID ")}
    train, _, validation = text.removeprefix("rFID").partition("by decoding")[0].partition(" / ")
    return tuple(set(re.findall(r"\d+\.\d+", part)) for part in (train, validation))  # type: ignore[return-value]


MODELS = rows_of("Overview of pretrained models")


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[3].strip("`").partition("`")[0])
def test_models_have_their_published_numbers(row: list[str]) -> None:
    _, train, validation, names, *_ = row
    for name in re.findall(r"`(\w+)`", names):
        told = tuple(set(re.findall(r"\d+\.\d+", cell)) for cell in (train, validation))
        assert told == published(name), name


def test_every_model_of_the_papers_is_named() -> None:
    """The others are the first stages of these, and are named as such by the list of downloads; or
    other projects', which have a page of their own."""
    named = {name for row in MODELS for name in re.findall(r"`(\w+)`", row[3])}
    elsewhere = (ROOT / "docs" / "foreign-tokenizers.md").read_text()
    models = [m for m in published_models().values() if f"`{m.name}`" not in elsewhere]
    left_out = [m for m in models if m.name not in named]
    assert named and all(one.what.startswith("first stage") for one in left_out)
    assert not any(re.search(r"\d\.\d", one.fid) for one in left_out)


WAYS = {
    r"^(first stage|DALL-E dVAE)": r"taming reconstruct -r (\w+) FOLDER",
    r"\bscenes,": r"taming scenes -r (\w+)",
    r"segmentation$|depth$": r"taming sample-data -r (\w+)",
    r"unconditional$|coordinates$": r"taming sample -r (\w+)",
    r"class-conditional": r"taming sample -r (\w+) --classes 207",
}


@pytest.mark.parametrize("row", MODELS, ids=lambda row: row[3].strip("`").partition("`")[0])
def test_every_model_has_the_command_for_what_it_is(row: list[str]) -> None:
    """Which tests/test_readme.py runs, of small models in their places."""
    *_, names, _, command = row
    name = re.findall(r"`(\w+)`", names)[-1]
    what = published_models()[name].what
    (way,) = [way for kind, way in WAYS.items() if re.search(kind, what)]
    match = re.fullmatch(f"`{way}`", command)
    assert match is not None and match[1] == name


def test_scenes_have_their_other_numbers() -> None:
    for row in MODELS:
        for name, value in re.findall(r"(SceneFID|IS) ([\d.]+)", row[4]):
            (model,) = re.findall(r"`(\w+)`", row[3])
            assert f"{name} {value}+-" in published_models()[model].fid


def test_speeds_are_those_of_the_results() -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from speed_table import BEGIN, END, table

    assert README.split(BEGIN)[1].split(END)[0].strip() == table()


def test_costs_are_those_of_the_page_on_scaling() -> None:
    scaling = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    (_, *costs) = [row for row in rows_of("Speed and cost") if len(row) == 5]
    assert costs
    for model, parameters, images, one, eight in costs:
        (config,) = re.findall(r"`(\w+)`", model)
        (footprint,) = [
            line
            for line in scaling.splitlines()
            if f"`{config}`" in line
            and " M" in line
            and "TFLOP" not in line
            and line.count("|") == 8
        ]
        assert footprint.split("|")[3].strip().startswith(parameters)
        assert any(
            re.search(rf"\| {re.escape(images)}\b.*\| {one} \| {eight} \|", line)
            for line in scaling.splitlines()
        )


def test_costs_are_those_of_the_measured_rates() -> None:
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    rows = page.split("## What the published models cost")[1].splitlines()
    for name, model in (("transformer", "`cin_transformer`"), ("first_stage", "VQGAN f16")):
        file = ROOT / "benchmarks" / "results" / f"throughput-{name}-cuda.json"
        rate = json.loads(file.read_text(encoding="utf-8"))["images_per_second"]
        (row,) = [line for line in rows if model in line]
        (millions, *_), (one, eight) = (
            [float(number) for number in re.findall(rf"([\d.]+) {unit}\b", row)]
            for unit in ("M", "h")
        )
        hours = millions * 1e6 / rate / 3600
        assert one == pytest.approx(hours, abs=0.51) and eight == pytest.approx(hours / 8, abs=0.06)
        assert f"measured {rate:.0f} images a second" in row


def test_what_was_measured_once_is_as_it_was_noted() -> None:
    results = ROOT / "benchmarks" / "results"
    made, gallery = (
        json.loads((results / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("installation", "gallery")
    )
    text = " ".join(README.split())
    assert f"{made['packages']} packages and {made['gigabytes']:.1f} GB, of which" in text
    libraries = made["gigabytes_of_torch_triton_and_cuda"]
    assert f"torch, Triton and the CUDA libraries are {libraries:.1f} ([measured]" in text
    page = " ".join((ROOT / "docs" / "gallery.md").read_text(encoding="utf-8").split())
    cores = {2: "two"}[gallery["cores"]]
    assert (
        f"in {gallery['minutes']:.0f} minutes on {cores} cores of an {gallery['processor']} "
        f"(torch {gallery['torch']}, {gallery['how']})" in page
    )


def test_reliability_is_that_of_its_page() -> None:
    page = (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = {
        name: [
            line.split(" | ")
            for line in page.split(f"\n## {name} ")[1].split("\n## ")[0].splitlines()
        ]
        for name in ("kills", "damage")
    }
    kills = [row[-1] for row in rows["kills"] if re.match(r"\| \d+$", row[0])]
    damage = [row[1:3] for row in rows["damage"] if len(row) == 4 and row[1].isdigit()]
    cases, recognized = (sum(map(int, column)) for column in zip(*damage, strict=True))
    claims = README.split("## What is different here")[1]
    assert f"{kills.count('none |')} of {len(kills)} that were killed" in claims
    assert f"{recognized:,} of {cases:,})" in claims.replace(" ([", ")")


def test_results_are_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another figure is another table."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import speed_table

    before = speed_table.table()

    def changed(name: str) -> object:
        facts = json.loads((speed_table.RESULTS / f"{name}.json").read_text(encoding="utf-8"))
        return json.loads(
            re.sub(r": (\d+\.\d+)", lambda m: f": {float(m[1]) * 2 + 1}", json.dumps(facts))
        )

    monkeypatch.setattr(speed_table, "read", changed)
    pairs = list(zip(before.splitlines(), speed_table.table().splitlines(), strict=True))
    heads = [
        n + k for n, (line, _) in enumerate(pairs) if line.startswith("|--") for k in (-2, -1, 0)
    ]
    assert all(a != b for n, (a, b) in enumerate(pairs) if n not in heads)


@pytest.mark.parametrize("other", ["throughput-transformer-cuda", "sampling-gpu-bf16-alone-steps"])
def test_results_of_two_gpus_make_no_table(other: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import speed_table

    read = speed_table.read

    def changed(name: str) -> object:
        facts = read(name)
        return facts | {
            "hardware": facts["hardware"] | ({"gpu": "X1"} if name.startswith(other) else {})
        }

    monkeypatch.setattr(speed_table, "read", changed)
    with pytest.raises(SystemExit, match="and X1, .* make no table"):
        speed_table.table()


def told_in(heading: str) -> set[str]:
    """The commands of a section that tests/test_published_commands.py runs."""
    blocks = [b for b in blocks_of(ROOT / "README.md") if b.heading == heading]
    text = "\n".join(b.text for b in blocks if b.run_by == "tests/test_published_commands.py")
    return {as_task(line) for line in commands_in(text)}


def as_task(command: str) -> str:
    """A command but for its runs and folders, and which of several examples it is for."""
    for pattern, name in (
        (r"-r logs/\S+", "-r RUN"),
        (r"--outdir[ =]\S+", "--outdir OUT"),
        (r"ckpt_path=\S+", "ckpt_path=FILE"),
        (r"taming\.data\.\w+\.\w*Examples", "EXAMPLES"),
    ):
        command = re.sub(pattern, name, command)
    return " ".join(command.split())


def test_commands_of_tasks_are_those_that_are_tried() -> None:
    """Which tests/test_published_commands.py runs, word for word but for the run; and all those."""
    arguments = {arguments for _, arguments in map(values_of, commands.DEMOS)}
    tried = {as_task(start + one) for one in arguments for start in (commands.PAGE, commands.TWIN)}
    tried |= {values_of(case)[1] for case in commands.SAMPLING}
    tried.add("python scripts/make_scene_samples.py --outdir OUT -r RUN --resolution=512,512")
    assert len(tried) >= 7 and told_in("Running pretrained models") == tried
    section = README.split("\n## Running pretrained models\n")[1].split("\n## ")[0]
    for example in re.findall(r"taming\.data\.\w+\.\w+", " ".join(arguments)):
        assert example in section


def test_training_is_told_as_it_is_tried() -> None:
    tried = {as_task(f"{commands.TRAIN % name} {more}") for name, more in commands.TRAINING}
    tried |= {(commands.TRAIN % "custom_vqgan").replace("0,", gpus) for gpus in ("0,", "0,1")}
    tried |= {commands.FIND % name for name in ("train", "test")}
    assert len(tried) >= 11 and told_in("Training the published models") == tried


def values_of(case: Any) -> Any:
    return getattr(case, "values", case)
