"""Two processes find the numbers of one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from taming.devices import own_share
from taming.distributed import gather_objects
from taming.errors import UserError
from taming.evaluation.metrics.base import FeatureAccumulator
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import Moments, frechet_distance
from taming.evaluation.metrics.inception_score import InceptionScores
from taming.evaluation.metrics.kid import kernel_distance
from tests.kit.extractor import register_tiny
from tests.kit.images import read_images, scene_folder
from tests.kit.processes import in_two_processes


def measure(folder: Path, batch_size: int, rank: int, processes: int) -> list[float]:
    """FID and KID of the first against the last pictures, and the Inception Score of all."""
    extractor, pictures = Extractor(register_tiny()), read_images(folder)
    own = torch.arange(rank, len(pictures), processes)
    moments, banks = [Moments(), Moments()], [FeatureBank(), FeatureBank()]
    scores = InceptionScores(len(pictures), splits=3)
    for indices in own.split(batch_size):
        features = extractor(pictures[indices])
        scores.update(indices, features["logits"])
        for number, part in enumerate(
            (indices < len(pictures) // 2, indices >= len(pictures) // 2)
        ):
            moments[number].update(indices[part], features["16"][part])
            banks[number].update(indices[part], features["16"][part])
    for accumulator in (*moments, *banks, scores):
        join(accumulator, rank)
    kernel = kernel_distance(*banks, subsets=4, subset_size=8)
    return [frechet_distance(*moments), *kernel, *scores.compute()]


def write_measures(images: Path, folder: Path) -> None:
    """Those of one of the processes."""
    rank, processes = own_share()
    (folder / f"{rank}.json").write_text(json.dumps(measure(images, 4, rank, processes)))


def join(accumulator: FeatureAccumulator, rank: int) -> None:
    """Merge what the other processes have counted."""
    for other, state in enumerate(gather_objects(accumulator.state_dict())):
        if other != rank:
            accumulator.merge_state(state)


def test_two_processes_find_the_numbers_of_one(tmp_path: Path) -> None:
    folder = scene_folder(tmp_path / "pictures", 25)
    alone = measure(folder, 25, 0, 1)
    in_two_processes(write_measures, folder, tmp_path)
    for rank in range(2):
        found = json.loads((tmp_path / f"{rank}.json").read_text())
        assert found == pytest.approx(alone, rel=1e-5)
        assert found[0] == pytest.approx(alone[0], rel=1e-6)


def test_one_process_has_its_own_state_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert gather_objects({"a": 1}) == [{"a": 1}]
    assert not torch.distributed.is_initialized()


def test_processes_that_torchrun_did_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name in ("RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="WORLD_SIZE is set, .* start them by torchrun"):
        gather_objects({})
