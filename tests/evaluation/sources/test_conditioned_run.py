"""Samples for the conditions of a run's data, as a set of images."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from scripts.evaluate_fid import main as evaluate_fid
from scripts.make_samples import main as make_samples
from taming.errors import DamagedImage, UserError
from taming.evaluation.arguments import SetArguments
from taming.evaluation.results import read_result
from taming.evaluation.sources import conditioned_run
from taming.evaluation.sources.conditioned_run import ConditionedRunSource, needs_data_conditions
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import Manifest
from taming.sampling import SampleSettings, items, sample_images
from taming.sampling.plan import SamplingPlan
from tests.kit.models import FIRST_STAGE, transformer_config
from tests.kit.runs import tiny_run
from tests.kit.scenes import SCENES
from tests.scripts.test_make_samples import SEGMENTED, write_data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    run = tiny_run(tmp_path / "run", transformer_config(**SEGMENTED))
    data = OmegaConf.load(write_data(tmp_path / "data.yaml", 4))
    OmegaConf.save(data, run / "configs" / "0-project.yaml")
    return run


def plan(num_samples: int = 50_000, seed: int = 0) -> SamplingPlan:
    return SamplingPlan(num_samples, SampleSettings(top_k=100), seed)


def manifest_of(source: ConditionedRunSource, batch_size: int = 3, processes: int = 1) -> Manifest:
    manifest = Manifest(len(source))
    for rank in range(processes):
        for images in source.batches(batch_size, (rank, processes)):
            assert len({image.pixels.shape for image in images}) == 1
            manifest.update(images)
    assert manifest.seen.all()
    return manifest


def test_samples_are_those_of_the_other_script(run: Path, tmp_path: Path) -> None:
    source = SetArguments().open(str(run), lambda: plan(seed=3))
    assert isinstance(source, ConditionedRunSource) and len(source) == 4
    make_samples(["-r", str(run), "-o", str(tmp_path / "out"), "--seed", "3", "--device", "cpu"])
    written = FolderSource(tmp_path / "out" / "7_100_1.0" / "samples").fingerprint()
    first = manifest_of(source)
    assert first.fingerprint() == written
    assert dict(first.counters["sizes"]) == {"8x8": 3, "12x8": 1}
    for batch_size, processes in ((1, 1), (2, 2)):
        assert manifest_of(source, batch_size, processes).fingerprint() == written
    rest = [p.index for images in source.batches(2, skip={0, 3}) for p in images]
    assert sorted(rest) == [1, 2]
    assert source.describe()["conditions_of"] == "validation"
    assert source.own_image_size() is None
    source.leave_out({0, 1, 3})
    assert source.own_image_size() == (8, 12)


def test_keys_are_of_the_conditions_as_well(run: Path) -> None:
    source = ConditionedRunSource(run, plan())
    assert ConditionedRunSource(run, plan()).content_key() == source.content_key()
    other = source.with_plan(plan(seed=1))
    assert other.content_key() != source.content_key()
    fewer = SamplingPlan(overrides=("data.params.validation.params.count=3",))
    assert len(ConditionedRunSource(run, fewer)) == 3
    assert ConditionedRunSource(run, fewer).content_key() != source.content_key()


def test_the_first_items_without_those_that_are_left_out(run: Path, monkeypatch: Any) -> None:
    options: list[dict[str, Any]] = []

    def noted(*args: Any, **own: Any) -> Any:
        options.append(own)
        return sample_images(*args, **own | {"compiled": False})

    monkeypatch.setattr(items, "sample_images", noted)
    source = ConditionedRunSource(run, replace(plan(2), compiled=True))
    assert len(source) == 2
    found = {image.index: image for images in source.batches(2) for image in images}
    assert [found[n].name for n in (0, 1)] == ["sample 0", "sample 1"]
    assert all(own["compiled"] for own in options)
    source.leave_out({0})
    source.leave_out({0})
    found = {image.index: image for images in source.batches(2) for image in images}
    assert [found[n].name for n in (0, 1)] == ["sample 2", "sample 3"]

    def damaged(model: Any, dataset: Any, number: int) -> Any:
        raise DamagedImage(f"item {number} is damaged")

    monkeypatch.setattr(conditioned_run, "inputs_of_item", damaged)
    source.pass_over_damage()
    assert not list(source.batches(2))
    assert source.damaged == {0: "item 2 is damaged", 1: "item 3 is damaged"}


def test_which_runs_take_conditions_from_data(run: Path, tmp_path: Path) -> None:
    assert needs_data_conditions(run)
    coordinates = {"target": "taming.modules.misc.coord.CoordStage"}
    coordinates |= {"params": {"n_embed": 3, "down_factor": 2}}  # type: ignore[dict-item]
    placed = transformer_config(cond_stage_config=coordinates, cond_stage_key="coord")
    assert not needs_data_conditions(tiny_run(tmp_path / "placed", placed))
    assert not needs_data_conditions(tiny_run(tmp_path / "classes"))
    free = transformer_config(cond_stage_config="__is_unconditional__")
    assert not needs_data_conditions(tiny_run(tmp_path / "free", free))
    assert not needs_data_conditions(tiny_run(tmp_path / "stage", FIRST_STAGE))
    with pytest.raises(UserError, match="scripts/evaluate_scenes.py"):
        needs_data_conditions(tiny_run(tmp_path / "scenes", transformer_config(**SCENES)))


def test_flags_of_classes_are_refused(run: Path) -> None:
    with pytest.raises(UserError, match="leave out --classes"):
        ConditionedRunSource(run, SamplingPlan(classes=(1,)))
    with pytest.raises(UserError, match="leave out --size"):
        ConditionedRunSource(run, SamplingPlan(size=(8, 8)))
    with pytest.raises(UserError, match="no 'test'"):
        SetArguments(split="test").open(str(run), plan)


def test_fid_of_a_segmentation_model(run: Path, tmp_path: Path, monkeypatch: Any) -> None:
    data, out = str(tmp_path / "data.yaml"), tmp_path / "out"
    flags = ["--preset", "ade20k", "-b", data, "-o", str(out), "--device", "cpu"]
    flags += ["--isc_splits", "2"]
    evaluate_fid([str(run), data, *flags, "--extractor", "tests.kit.extractor:TinyExtractor"])
    (path,) = out.glob("*.json")
    sets = read_result(path)["sets"]
    assert sets["samples"]["images"] == sets["reference"]["images"] == 4
    text = path.with_suffix(".md").read_text()
    assert re.search(r"\| published fid +\| 35.5 +\| table 2 +\|", text)
