"""Passes over sets of images: complete, continued where they stopped, and cached."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping, Sequence
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scripts.evaluate_fid import main
from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor, FeatureRequest
from taming.evaluation.metrics.fid import Moments
from taming.evaluation.runner import Runner
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.sources.images import SourceImage, State
from taming.evaluation.tasks.fidelity import flattened
from tests.kit.extractor import register_tiny
from tests.kit.images import image_folder


class Brightness:
    """The sum of all pixels; stops as an interrupted process would after some images."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.sum, self.seen, self.left = 0, [], stop_after

    def update(self, images: Sequence[SourceImage]) -> None:
        self.left -= len(images)
        if self.left < 0:
            raise KeyboardInterrupt
        self.sum += sum(int(image.pixels.sum()) for image in images)
        self.seen += [image.index for image in images]

    def compute(self) -> int:
        return self.sum

    def state_dict(self) -> State:
        return {"sum": np.array(self.sum)}

    def merge_state(self, state: Mapping[str, np.ndarray]) -> None:
        self.sum += int(state["sum"])


@pytest.fixture
def source(tmp_path: Path) -> FolderSource:
    return FolderSource(image_folder(tmp_path / "images", 10), workers=0)


def test_all_images_are_counted(source: FolderSource) -> None:
    runner = Runner(3, Cache(enabled=False))
    manifest, counted = runner.run(source, Brightness, "key", "images")
    assert manifest.fingerprint() == source.fingerprint()
    assert sorted(counted.seen) == list(range(10))
    pixels = [np.asarray(source.load(index)[0], np.int64).sum() for index in range(10)]
    assert counted.compute() == sum(pixels)


def test_an_interrupted_run_goes_on(source: FolderSource, tmp_path: Path) -> None:
    def runner() -> Runner:
        return Runner(3, Cache(tmp_path / "cache"), save_every=0)

    whole = Runner(3, Cache(enabled=False)).run(source, Brightness, "key", "images")[1]
    with pytest.raises(KeyboardInterrupt):
        runner().run(source, lambda: Brightness(stop_after=7), "key", "images")
    other = runner().run(source, Brightness, "other key", "images")[1]
    assert len(other.seen) == 10
    last = runner()
    manifest, rest = last.run(source, Brightness, "key", "images")
    assert rest.seen == [6, 7, 8, 9]
    assert rest.compute() == whole.compute()
    assert manifest.fingerprint() == source.fingerprint()
    assert len(list((tmp_path / "cache").glob("key.partial.*"))) == 1
    last.finish()
    assert not list((tmp_path / "cache").glob("key.partial.*"))


def test_a_run_that_goes_on_may_be_interrupted_again(source: FolderSource, tmp_path: Path) -> None:
    runner = Runner(3, Cache(tmp_path / "cache"), save_every=0)
    for stop_after in (7, 0):  # the second time before anything is saved
        with pytest.raises(KeyboardInterrupt):
            runner.run(source, lambda n=stop_after: Brightness(n), "key", "images")
    assert runner.run(source, Brightness, "key", "images")[1].seen == [6, 7, 8, 9]


def test_keys_are_of_the_images_if_anything_is_kept(source: FolderSource, tmp_path: Path) -> None:
    runner = Runner(3, Cache(tmp_path / "cache"))
    other = FolderSource(image_folder(tmp_path / "others", 10, seed=100), workers=0)
    keys = [runner.key_for(source, a=1), runner.key_for(source, a=2), runner.key_for(other, a=1)]
    assert len(set(keys)) == 3 and runner.key_for(source, a=1) == keys[0]
    alone = Runner(3, Cache(enabled=False))
    assert alone.key_for(source, a=1) == alone.key_for(other, a=1)


def test_damaged_images_are_left_out_and_said(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "images", 10)
    (folder / "004.png").write_bytes(b"")
    for _ in range(2):  # found anew, and remembered
        source = FolderSource(folder, workers=0)
        runner = Runner(3, Cache(tmp_path / "cache"))
        manifest, counted = runner.run(source, Brightness, "key", "images")
        assert len(manifest.seen) == 9 and sorted(counted.seen) == list(range(9))
        runner.finish()
        (text,) = runner.left_out
        assert text.startswith(f"{folder}/004.png is empty")
    fewer = FolderSource(image_folder(tmp_path / "fewer", 6), workers=0)  # not what is remembered
    runner = Runner(3, Cache(tmp_path / "cache"))
    assert len(runner.run(fewer, Brightness, "key", "images")[0].seen) == 6
    assert not runner.left_out


def test_features_without_a_damaged_image_are_found_again(tmp_path: Path) -> None:
    class Counting(FolderSource):
        read = 0

        def load(self, index: int) -> Any:
            self.read += 1
            return super().load(index)

    folder = image_folder(tmp_path / "images", 6)
    (folder / "004.png").write_bytes(b"")
    request = FeatureRequest(Moments, Extractor(register_tiny(), ["16"]), "16")
    found = []
    for read in (11, 0):  # all of them, then without the damaged one, and once and for all
        source = Counting(folder, workers=0)
        runner = Runner(3, Cache(tmp_path / "cache"))
        features = runner.features(source, [request], "images", keep=True)
        moments = features.parts[request]
        assert isinstance(moments, Moments) and moments.count == 5
        assert source.read == read and len(runner.left_out) == 1
        found.append(moments.mean.tolist())
    assert found[0] == found[1]


class Stopping(FolderSource):
    """Is interrupted at an image, which it has read `passes` times before."""

    stop_at, passes, read = 6, 0, 0

    def load(self, index: int) -> Any:
        if index == self.stop_at:
            if not self.passes:
                raise KeyboardInterrupt
            self.passes -= 1
        self.read += 1
        return super().load(index)


@pytest.mark.parametrize("by_features", [True, False])
def test_a_set_without_a_damaged_image_goes_on_where_it_stopped(
    tmp_path: Path, by_features: bool
) -> None:
    """Under its own key: what was counted of the whole set before is of other places."""
    folder = image_folder(tmp_path / "images", 11)
    (folder / "001.png").write_bytes(b"")
    request = FeatureRequest(Moments, Extractor(register_tiny(), ["16"]), "16")

    def evaluate(source: FolderSource, name: str = "cache") -> Any:
        runner = Runner(2, Cache(tmp_path / name), save_every=0)
        if by_features:
            return runner.features(source, [request], "images").parts[request].state_dict()
        return runner.run(source, Brightness, runner.key_for(source), "images")[1].state_dict()

    first = Stopping(folder, workers=0)
    first.stop_at, first.passes = 7, 1  # in the second pass, which is without the damaged one
    with pytest.raises(KeyboardInterrupt):
        evaluate(first)
    second = Stopping(folder, workers=0)
    second.stop_at = 10**9
    found = evaluate(second)
    assert second.read == 4  # six were counted before
    expected = evaluate(FolderSource(folder, workers=0), "other")
    assert {name: a.tolist() for name, a in found.items()} == {
        name: a.tolist() for name, a in expected.items()
    }


def test_what_was_counted_without_one_image_is_not_taken_for_the_set_without_another(
    tmp_path: Path,
) -> None:
    """As of a disk that fails now and then: both sets have the same key and the same size."""
    folder, cache = image_folder(tmp_path / "images", 8), Cache(tmp_path / "cache")

    def evaluate(damaged: int, stop_after: int = 10**9) -> Brightness:
        source, runner = FolderSource(folder, workers=0), Runner(2, cache, save_every=0)
        source.leave_out([damaged])
        made = partial(Brightness, stop_after)
        return runner.run(source, made, "key", "images", without=[damaged])[1]

    with pytest.raises(KeyboardInterrupt):
        evaluate(damaged=1, stop_after=5)
    assert evaluate(damaged=6).seen == list(range(7))
    assert evaluate(damaged=1).seen == [4, 5, 6]


def test_what_is_unfinished_is_of_its_requests(tmp_path: Path) -> None:
    """Features of one kind that an interrupted evaluation has are not taken for another's."""
    folder, extractor = image_folder(tmp_path / "images", 10), Extractor(register_tiny())
    requests = [
        FeatureRequest(kind, extractor, layer)
        for kind, layer in ((Moments, "16"), (Moments, "logits"), (FeatureBank, "16"))
    ]
    runner = Runner(2, Cache(tmp_path / "cache"), save_every=0)
    with pytest.raises(KeyboardInterrupt):
        runner.features(Stopping(folder, workers=0), requests[:1], "images")
    for request, read in ((requests[1], 10), (requests[2], 10), (requests[0], 4)):
        source = Stopping(folder, workers=0)
        source.stop_at = 10
        runner = Runner(2, Cache(tmp_path / "cache"), save_every=0)
        part: Any = runner.features(source, [request], "images").parts[request]
        assert source.read == read
        assert (part.count if request.accumulator is Moments else len(part)) == 10


def test_parts_that_overlap_count_once(source: FolderSource, tmp_path: Path) -> None:
    """As they do if a process was stopped between joining parts and deleting them."""
    cache = Cache(tmp_path / "cache")
    runner = Runner(3, cache, save_every=0)
    for stop_after, rank in ((7, 1), (4, 2)):  # both begin with the same images
        with pytest.raises(KeyboardInterrupt):
            runner.run(source, lambda n=stop_after: Brightness(n), f"{rank}", "images")
        cache.save_part("key", rank, cache.parts(f"{rank}")[0])
    _, rest = runner.run(source, Brightness, "key", "images")
    assert rest.seen == [6, 7, 8, 9]
    expected = Runner(3, Cache(enabled=False)).run(source, Brightness, "key", "images")[1]
    assert rest.compute() == expected.compute()


def test_a_batch_size_below_one() -> None:
    with pytest.raises(UserError, match="--batch_size must be at least 1, not 0"):
        Runner(0)


def evaluate(folder: Path, log: str, kill_at: int | None = None) -> int | None:
    """Exit code of scripts/evaluate_fid.py in a process of its own, which may kill itself."""
    flags = ["--extractor", "tests.kit.extractor:FatalExtractor", "--metrics", "fid,isc,kid"]
    flags += ["--isc_splits", "2", "--kid_subset_size", "10", "--batch_size", "4"]
    flags += ["--save_every", "0", "-o", str(folder / log.removesuffix(".txt"))]
    flags += ["--device", "cpu"]

    def child() -> None:
        torch.set_num_threads(1)  # those of the parent are not here
        os.environ |= {"TINY_LOG": str(folder / log), "TINY_KILL_AT": str(kill_at or 10**9)}
        main([str(folder / "a"), str(folder / "b"), *flags])

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode


def metrics(folder: Path) -> dict[str, Any]:
    (path,) = folder.glob("*.json")
    return json.loads(path.read_text())["metrics"]


def images_seen(log: Path) -> int:
    return sum(map(int, log.read_text().split()))


def test_an_evaluation_that_was_killed_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    image_folder(tmp_path / "a", 20)
    image_folder(tmp_path / "b", 24, seed=100)
    # In the middle of the reference, which comes first, then in the middle of the samples.
    assert evaluate(tmp_path, "first.txt", kill_at=13) == -signal.SIGKILL
    assert evaluate(tmp_path, "second.txt", kill_at=18) == -signal.SIGKILL
    assert evaluate(tmp_path, "third.txt") == 0
    assert images_seen(tmp_path / "first.txt") == 16  # the last 4 of them are lost
    assert images_seen(tmp_path / "second.txt") == 12 + 8
    assert images_seen(tmp_path / "third.txt") == 20 - 4
    cached = sorted((tmp_path / "cache" / "taming" / "evaluation").iterdir())
    assert len(cached) == 3
    assert not [path for path in cached if "partial" in path.name]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "empty"))
    assert evaluate(tmp_path, "alone.txt") == 0
    assert images_seen(tmp_path / "alone.txt") == 44
    for name, value in flattened(metrics(tmp_path / "alone")):
        assert dict(flattened(metrics(tmp_path / "third")))[name] == pytest.approx(value, rel=1e-6)
