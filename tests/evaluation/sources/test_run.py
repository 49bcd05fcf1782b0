"""Samples straight from a transformer: those of scripts/sample_fast.py, and their key."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torchvision import models

from scripts.sample_fast import main as sample_fast
from taming.errors import UserError
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.resize import CENTER, PILLOW, Resizing
from taming.evaluation.sources.run import RunSource
from taming.pictures import to_rgb_pixels
from taming.sampling import SampleSettings, pools, rejection
from taming.sampling.plan import SamplingPlan
from taming.weight_choice import choosing_weights
from tests.evaluation.sources.test_sources import images_of
from tests.kit.models import transformer_config
from tests.kit.runs import tiny_run

PLAN = SamplingPlan(3, SampleSettings(0.9, 10, 0.95), seed=5, classes=(1, 4))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_run(tmp_path_factory.mktemp("logs") / "run")


def test_samples_of_a_run_are_those_of_sample_fast(run: Path, tmp_path: Path) -> None:
    flags = ["-n", "3", "--classes", "1,4", "-k", "10", "-t", "0.9", "-p", "0.95", "--seed", "5"]
    sample_fast(["-r", str(run), "-o", str(tmp_path), "--device", "cpu", *flags])
    (folder,) = tmp_path.glob("samples/*/7")
    written = images_of(FolderSource(folder, workers=0))
    sampled = images_of(RunSource(run, PLAN))
    assert sorted(sampled) == list(range(6))
    for index, picture in sampled.items():
        assert torch.equal(picture.pixels, written[index].pixels)
        assert (picture.label, picture.digest) == (written[index].label, written[index].digest)
    assert sorted(images_of(RunSource(run, PLAN), skip={1, 3})) == [0, 2, 4, 5]
    part = images_of(RunSource(run, PLAN), share=(1, 2), skip={3})
    assert sorted(part) == [1, 5]
    assert torch.equal(part[5].pixels, sampled[5].pixels)
    assert sampled[5].name == "class 4, sample 2"
    # In bf16 those of its batch size, whatever is counted at once.
    flags += ["--precision", "bf16", "--batch_size", "4"]
    sample_fast(["-r", str(run), "-o", str(tmp_path / "bf16"), "--device", "cpu", *flags])
    (folder,) = tmp_path.glob("bf16/samples/*/7")
    source = RunSource(run, replace(PLAN, dtype=torch.bfloat16, batch_size=4))
    written, sampled = images_of(FolderSource(folder, workers=0)), images_of(source)
    assert [sampled[n].digest for n in range(6)] == [written[n].digest for n in range(6)]


def test_what_a_run_says_and_what_its_key_follows(run: Path, tmp_path: Path) -> None:
    source = RunSource(run, PLAN)
    about = source.describe()
    assert about["global_step"] == 7
    assert about["sampler"]["top_k"] == 10
    assert about["sampler"]["classes"] == [1, 4]
    other = SamplingPlan(3, PLAN.settings, seed=6, classes=(1, 4))
    assert source.with_plan(other).content_key() != source.content_key()
    elsewhere = source.with_plan(replace(PLAN, device=torch.device("cuda")))
    assert elsewhere.content_key() != source.content_key()
    for dtype in (torch.float32, torch.bfloat16):
        keys = {
            RunSource(run, replace(PLAN, dtype=dtype, batch_size=n)).content_key() for n in (2, 3)
        }
        assert len(keys) == (2 if dtype == torch.bfloat16 else 1)
    fewer = source.with_plan(replace(PLAN, classes=(4,)))
    assert (fewer.labels, len(fewer), len(source)) == ([4], 3, 6)
    key = source.content_key()
    with choosing_weights("raw", ()):
        assert RunSource(run, PLAN).content_key() != key
    other_config = shutil.copytree(run, tmp_path / "config")
    (file,) = (other_config / "configs").iterdir()
    config = OmegaConf.load(file)
    config.model.params.pkeep = 0.5
    OmegaConf.save(config, file)
    assert RunSource(other_config, PLAN).content_key() != key
    same = shutil.copytree(run, tmp_path / "copy")
    assert RunSource(same, PLAN).content_key() == source.content_key()
    checkpoint = torch.load(same / "checkpoints" / "last.ckpt")
    checkpoint["state_dict"]["transformer.pos_emb"] += 1
    torch.save(checkpoint, same / "checkpoints" / "last.ckpt")
    assert RunSource(same, PLAN).content_key() != source.content_key()
    assert RunSource(same, PLAN).describe()["checkpoint_hash"] != about["checkpoint_hash"]


def test_rejection(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = models.get_model("squeezenet1_1", weights=None, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    classifier = f"squeezenet1_1:{tmp_path / 'own.pth'}"
    source = RunSource(run, replace(PLAN, reject_ratio=0.5, classifier=classifier))
    whole = images_of(source)
    assert sorted(whole) == list(range(6))
    plain = images_of(RunSource(run, PLAN))
    assert any(not torch.equal(whole[n].pixels, plain[n].pixels) for n in range(6))
    part = images_of(source, share=(1, 2), skip={1})
    assert part and 1 not in part
    assert all(torch.equal(part[n].pixels, whole[n].pixels) for n in part)
    assert sorted([*part, 1, *images_of(source, share=(0, 2))]) == list(range(6))
    of_three = RunSource(run, replace(source.plan, reject_ratio=0.75, classes=(4,)))
    assert sorted(images_of(of_three, skip={1})) == [0, 2]  # whose whole group is sampled
    key = source.content_key()
    monkeypatch.setenv("HOME", str(tmp_path))  # behind a colon shells leave ~ as it is
    homely = RunSource(run, replace(source.plan, classifier="squeezenet1_1:~/own.pth"))
    assert homely._classifier_hash() == source._classifier_hash() is not None
    assert {n: i.digest for n, i in images_of(homely).items()} == {
        n: i.digest for n, i in whole.items()
    }
    torch.save({k: v + 1 for k, v in network.state_dict().items()}, tmp_path / "own.pth")
    assert RunSource(run, source.plan).content_key() != key


def test_the_best_of_a_class(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rejection, "SCORED", 2)
    network = models.get_model("squeezenet1_1", weights=None, num_classes=5)
    torch.save(network.state_dict(), tmp_path / "own.pth")
    classifier = f"squeezenet1_1:{tmp_path / 'own.pth'}"
    plan = replace(PLAN, reject_ratio=0.5, classifier=classifier, reject_pool="class")
    source, group = RunSource(run, plan), RunSource(run, replace(plan, reject_pool="group"))
    assert source.content_key() != group.content_key()
    assert source.describe()["sampler"]["pool"] == [plan.num_samples, 2 * plan.num_samples]
    whole = images_of(source)
    assert sorted(whole) == list(range(len(source)))
    samples = list(plan.job(source.model, 4).samples(lambda label: set()))
    for place, sample in enumerate(samples):  # class by class, the best first
        assert torch.equal(whole[place].pixels, to_rgb_pixels(sample.image))
    # Scores of an unfinished pool are written down where the evaluation keeps its own.
    monkeypatch.setattr(pools, "SAVE_EVERY", -1)
    source.keep_unfinished_in(tmp_path / "kept")
    next(source.batches(1))
    assert len(list((tmp_path / "kept").glob(".scores-*.json"))) == 1
    assert {n: image.digest for n, image in images_of(source).items()} == {
        n: image.digest for n, image in whole.items()
    }
    (tmp_path / "kept" / ".scores-another-1-0-0.json").touch()
    source.forget_unfinished()
    assert [path.name for path in (tmp_path / "kept").iterdir()] == [".scores-another-1-0-0.json"]


def test_precision_is_that_of_the_plan(run: Path) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        source = RunSource(run, replace(PLAN, dtype=dtype))
        assert source.has_classes() and source.model.transformer.head.weight.dtype == dtype


def test_unconditional_run(tmp_path: Path) -> None:
    config = transformer_config(cond_stage_config="__is_unconditional__")
    source = RunSource(tiny_run(tmp_path / "run", config), SamplingPlan(3))
    found = images_of(source)
    assert [found[n].label for n in range(3)] == [None] * 3
    assert source.has_classes() is False
    key, resizing = source.content_key(), Resizing(PILLOW, CENTER, (4, 5))
    source.resizing = resizing
    for index, image in images_of(source).items():
        expected = resizing.planes(found[index].pixels.numpy())
        np.testing.assert_array_equal(image.pixels, expected)
        assert image.pixels.shape == (3, 4, 5) and image.digest != found[index].digest
    assert source.content_key() != key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "--num_samples must be at least 1"),
        ({"settings": SampleSettings(0.0)}, "temperature must be above 0 and finite, not 0"),
        ({"reject_ratio": 0.5}, "rejection needs both"),
    ],
)
def test_wrong_plans(options: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        SamplingPlan(**options)
