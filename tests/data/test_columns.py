from __future__ import annotations

import pickle
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch

from taming.data.columns import BLOCK, StringTable, column, entry


def paths(count: int) -> list[str]:
    return [
        f"/data/ILSVRC2012_train/data/n{i // 9:08d}/n{i // 9:08d}_{i}.JPEG" for i in range(count)
    ]


def test_strings_come_back() -> None:
    strings = [*paths(2 * BLOCK + 5), "", "ü/日本.png", "\udcff\udc80.png", "\ud800\u0000\udfff"]
    table = StringTable(iter(strings))
    assert list(table) == strings
    assert table[-1] == strings[-1] and table[np.int64(3)] == strings[3]
    assert list(StringTable([])) == []


def test_outside_is_an_index_error() -> None:
    table = StringTable(["a", "b"])
    for index in (2, -3):
        with pytest.raises(IndexError):
            table[index]


def test_paths_take_less_than_a_hundred_bytes() -> None:
    assert len(pickle.dumps(StringTable(paths(100_000)))) < 40 * 100_000


def test_pickle_keeps_strings_and_workers_get_handles() -> None:
    table = StringTable(paths(50_000))
    assert list(pickle.loads(pickle.dumps(table)))[:10] == paths(10)
    shared = len(bytes(ForkingPickler.dumps(table)))
    assert shared < 20_000  # handles of shared memory and prefixes, not a megabyte of names


def test_a_table_that_workers_got_is_still_read_where_it_was_made() -> None:
    """Sharing moves the tensors; what still looked at their memory would read what comes next."""
    strings = paths(300)
    table = StringTable(strings)
    ForkingPickler.dumps(table)
    others = [torch.full_like(table._rests, 255) for _ in range(20)]
    others += [torch.full_like(table._ends, 0) for _ in range(20)]
    assert list(table) == strings


def test_names_of_classes_take_little() -> None:
    names = [f"class {i // 1000}" for i in range(100_000)]  # images lie class by class
    table = StringTable(names)
    assert list(table) == names and len(pickle.dumps(table)) < 10 * 100_000


def test_columns_give_the_same_values_back() -> None:
    object_values = [None, {"a": 1}]
    for values in (["a", "b"], ["a", 1], [1, 2], [0.5, 1.5], [True, False], object_values):
        assert [entry(column(values), i) for i in range(2)] == values
    assert type(entry(column(np.array([3, 4])), 1)) is int
    vectors = column(np.arange(6).reshape(3, 2))
    entry(vectors, 1)[:] = -1  # an array of its own
    np.testing.assert_array_equal(entry(vectors, 1), [2, 3])
    assert isinstance(column(np.array(["a", "b"])), StringTable)
