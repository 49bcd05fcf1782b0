"""Features of many images, in a file, are those of few, in memory."""

from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.evaluation.metrics import feature_bank, feature_file
from taming.evaluation.metrics.feature_bank import (
    FeatureBank,
    distances,
    feature_pair,
    neighborhood_radii,
)
from taming.evaluation.metrics.feature_file import FeatureFile
from taming.evaluation.metrics.kid import kernel_distance
from taming.evaluation.metrics.precision_recall import precision_recall
from tests.evaluation.features import bank_of

WIDTH = 5


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "taming" / "evaluation"


@pytest.fixture
def in_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """More than four rows are in a file, from which three are copied at once."""
    monkeypatch.setattr(feature_bank, "IN_MEMORY", 4 * WIDTH * 4)
    monkeypatch.setattr(feature_file, "ROWS_AT_ONCE", 3)


def rows(count: int, seed: int = 0) -> Tensor:
    return torch.randn(count, WIDTH, generator=torch.Generator().manual_seed(seed))


def filled(order: list[int], features: Tensor, step: int = 2) -> FeatureBank:
    """A bank to which the features came in this order, `step` at a time."""
    bank = FeatureBank()
    for start in range(0, len(order), step):
        chosen = torch.tensor(order[start : start + step])
        bank.update(chosen, features[chosen])
    return bank


ORDERS = [list(range(11)), [3, 0, 10, 9, 1, 2, 8, 7, 4, 6, 5], [0, 20, 10, 30, 25, 40, 7]]


@pytest.mark.usefixtures("in_files")
@pytest.mark.parametrize("order", ORDERS)
def test_rows_are_in_the_order_of_their_indices(order: list[int]) -> None:
    features = rows(41)
    expected = features[sorted(order)].numpy()
    bank = filled(order, features)
    assert len(bank) == len(order) and not bank._features  # nothing is left in memory
    for _ in range(2):  # also once they are sorted
        np.testing.assert_array_equal(bank.compute(), expected)
    other = FeatureBank()
    other.merge_state(bank.state_dict())
    np.testing.assert_array_equal(other.compute(), expected)
    more = next(n for n in range(41) if n not in order)
    bank.update(torch.tensor([more]), features[more : more + 1])  # and after that
    np.testing.assert_array_equal(bank.compute(), features[sorted([*order, more])].numpy())


@pytest.mark.usefixtures("in_files")
def test_parts_of_processes_are_joined() -> None:
    features = rows(13)
    whole = FeatureBank()
    for rank in range(3):
        whole.merge_state(filled(list(range(rank, 13, 3)), features).state_dict())
    np.testing.assert_array_equal(whole.compute(), features.numpy())
    whole.merge_state(filled([4], features).state_dict())
    with pytest.raises(ValueError, match="added twice"):
        whole.compute()
    whole.merge_state(FeatureBank().state_dict())
    assert len(whole) == 14


@pytest.mark.usefixtures("in_files")
def test_what_is_done_with_rows_changes_no_file() -> None:
    features = rows(9)
    bank = filled(list(range(9)), features)
    bank.compute()[:] = 0
    first, _ = feature_pair(bank, bank)
    first.zero_()
    np.testing.assert_array_equal(bank.compute(), features.numpy())
    assert isinstance(bank.compute(), np.memmap)


def test_metrics_are_the_same_from_files(monkeypatch: pytest.MonkeyPatch) -> None:
    def numbers() -> list[float]:
        pair = bank_of(rows(40)), bank_of(rows(50, seed=1) + 0.3)
        kernel = kernel_distance(*pair, subsets=4, subset_size=20)
        return [*precision_recall(*pair, neighbors=3, block=7), *kernel]

    expected = numbers()
    assert 0.3 < expected[0] < 1
    monkeypatch.setattr(feature_bank, "IN_MEMORY", 100)
    assert numbers() == expected
    monkeypatch.setattr(feature_bank, "ROWS_AT_ONCE", 16)
    assert numbers() == pytest.approx(expected)


@pytest.mark.parametrize("rows_at_once", [7, 16, 100])
@pytest.mark.parametrize("in_memory", [100, 2**20])
def test_distances_and_neighborhoods(
    monkeypatch: pytest.MonkeyPatch, rows_at_once: int, in_memory: int
) -> None:
    monkeypatch.setattr(feature_bank, "ROWS_AT_ONCE", rows_at_once)
    monkeypatch.setattr(feature_bank, "IN_MEMORY", in_memory)
    features, some = rows(40, seed=2), rows(6)
    bank = filled([*range(20, 40), *range(20)], features, step=3)
    assert bank.width == WIDTH and FeatureBank().width == 0
    parts = list(distances(some, bank))
    assert [len(found[0]) for _, found in parts] == [
        min(rows_at_once, 40 - start) for start in range(0, 40, rows_at_once)
    ]
    starts = list(range(0, 40, rows_at_once))
    assert [(place.start, place.stop) for place, _ in parts] == [
        (start, min(start + rows_at_once, 40)) for start in starts
    ]
    expected = (some[:, None].double() - features.double()).norm(dim=2)
    found = torch.cat([part for _, part in parts], dim=1)
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    own = (features[:, None].double() - features.double()).norm(dim=2).sort(dim=1).values
    for neighbors in (1, 3, 9):
        radii = neighborhood_radii(bank, neighbors, block=11)
        torch.testing.assert_close(radii.double(), own[:, neighbors], atol=1e-5, rtol=1e-5)
    whole = torch.cat([part for _, part in bank.parts(9)])
    assert torch.equal(whole, features)


@pytest.mark.usefixtures("in_files")
def test_files_leave_nothing_behind(folder: Path) -> None:
    bank = filled(ORDERS[1], rows(11))
    bank.compute()
    assert folder.is_dir() and not list(folder.iterdir())
    del bank
    gc.collect()
    assert not list(folder.iterdir())


def test_no_room_is_a_sentence(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = FeatureFile(WIDTH)
    file._file.close()
    file._file = open("/dev/full", "wb", buffering=0)  # noqa: SIM115
    with pytest.raises(UserError, match=r"cannot be kept in .*evaluation \(.*; make room there"):
        file.append(rows(1).numpy())
    file._file.close()
    monkeypatch.setenv("XDG_CACHE_HOME", "/dev/null")
    with pytest.raises(UserError, match="or name another folder by XDG_CACHE_HOME"):
        FeatureFile(WIDTH)


def test_rows_are_written_to_their_end(monkeypatch: pytest.MonkeyPatch) -> None:
    file = FeatureFile(WIDTH)
    assert file.rows().shape == (0, WIDTH)
    whole = file._file

    class Hesitant:
        """Takes seven bytes at a time, as systems may."""

        def write(self, content: memoryview) -> int:
            return whole.write(content[:7])

    monkeypatch.setattr(file, "_file", Hesitant())
    file.append(rows(4)[:, :WIDTH].numpy())
    monkeypatch.setattr(file, "_file", whole)
    np.testing.assert_array_equal(file.rows(), rows(4).numpy())
