"""The nearest images, against distances of every pair."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.cache import Cache
from taming.evaluation.figures.neighbors import (
    LpipsDistances,
    NeighborSearch,
    at_size,
    chosen_samples,
    neighbors_page,
)
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.runner import Runner
from taming.evaluation.sources.folder import FolderSource
from taming.modules.losses.lpips import LPIPS
from taming.pictures import HEAD, resize_and_crop, to_values
from tests.kit.extractor import register_tiny
from tests.kit.images import image_folder, image_sizes
from tests.support import fill_by_name

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network() -> LPIPS:
    network = LPIPS("vgg")
    fill_by_name(network)
    return network


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderSource, FolderSource]:
    root = tmp_path_factory.mktemp("sets")
    samples = image_folder(root / "samples", 5, 16, 16)
    reference = image_folder(root / "reference", 7, 16, 16, seed=300)
    return FolderSource(samples, workers=0), FolderSource(reference, workers=0)


def search(sources: tuple[FolderSource, FolderSource], rows: int, count: int) -> NeighborSearch:
    runner = Runner(3, Cache(enabled=False))
    return NeighborSearch(sources[1], chosen_samples(sources[0], rows), count, runner, CPU)


def values(source: FolderSource) -> torch.Tensor:
    pixels = [torch.from_numpy(source.load(n)[0]) for n in range(len(source))]
    return to_values(torch.stack(pixels))


def test_lpips_with_every_image(sources: tuple[FolderSource, FolderSource], network: LPIPS) -> None:
    found = search(sources, rows=3, count=4).by_lpips(network, "hash")
    assert list(found) == [0, 2, 4]
    samples, reference = values(sources[0]), values(sources[1])
    for sample, row in found.items():
        copies = samples[sample].expand_as(reference)
        distances = network(copies, reference).flatten()
        order = distances.argsort()[:4]
        assert [index for index, _ in row] == order.tolist()
        assert [value for _, value in row] == pytest.approx(distances[order].tolist(), rel=1e-5)


def test_distances_that_are_kept_are_of_samples_reference_and_weights(
    sources: tuple[FolderSource, FolderSource], network: LPIPS, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys: list[str] = []
    run = Runner.run

    def noted(self: Runner, source: object, make: object, key: str, *rest: object) -> object:
        keys.append(key)
        return run(self, source, make, key, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(Runner, "run", noted)

    def key(reference: FolderSource, samples: FolderSource, weights: str, number: int) -> str:
        runner = Runner(3, Cache(sources[0].path / "cache"))
        chosen = chosen_samples(samples, 5)[number : number + 1]
        NeighborSearch(reference, chosen, 2, runner, CPU).by_lpips(network, weights)
        runner.finish()
        return keys[-1]

    samples, reference = sources
    first = key(reference, samples, "hash", 0)
    assert key(reference, samples, "hash", 0) == first
    others = [key(reference, samples, "hash", 1), key(reference, samples, "other", 0)]
    others.append(key(samples, samples, "hash", 0))
    assert len({first, *others}) == 4


def test_candidates_by_features_and_then_lpips(
    sources: tuple[FolderSource, FolderSource], network: LPIPS
) -> None:
    searching = search(sources, rows=2, count=2)
    extractor = Extractor(register_tiny(), ["16"])
    candidates = searching.by_features(extractor, 3)
    assert [len(row) for row in candidates.values()] == [3, 3]
    features = [extractor(torch.stack([s.pixels]))["16"] for s in searching.samples]
    real = torch.cat(
        [extractor(torch.from_numpy(sources[1].load(n)[0])[None])["16"] for n in range(7)]
    )
    expected = torch.cdist(features[0].double(), real.double())[0]
    assert [index for index, _ in candidates[0]] == expected.argsort()[:3].tolist()
    among = searching.by_lpips_among(candidates, network)
    every = search(sources, rows=2, count=7).by_lpips(network, "hash")
    union = {index for row in candidates.values() for index, _ in row}
    assert len(union) < 7
    for sample, row in among.items():
        nearest = [index for index, _ in every[sample] if index in union][:2]
        assert [index for index, _ in row] == nearest


def test_images_of_other_sizes_are_resized(tmp_path: Path, network: LPIPS) -> None:
    sizes = {"a.png": (24, 40), "b.png": (16, 16), "c.png": (30, 20)}
    reference = FolderSource(image_sizes(tmp_path / "reference", sizes), workers=0)
    samples = FolderSource(image_folder(tmp_path / "samples", 1, 16, 16), workers=0)
    found = search((samples, reference), 1, 3).by_lpips(network, "hash")
    for index, distance in found[0]:
        image = np.ascontiguousarray(reference.load(index)[0].transpose(1, 2, 0))
        small = torch.from_numpy(resize_and_crop(image, (16, 16)).copy()).permute(2, 0, 1)
        assert torch.equal(at_size(torch.from_numpy(reference.load(index)[0]), (16, 16)), small)
        expected = network(values(samples), to_values(small[None]))
        assert distance == pytest.approx(float(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"a.png": (16, 16), "b.png": (16, 20)}, "of different sizes"),
        ({"a.png": (8, 8)}, "16 a side"),
    ],
)
def test_samples_that_lpips_does_not_take(
    tmp_path: Path, network: LPIPS, sizes: dict[str, tuple[int, int]], message: str
) -> None:
    samples = FolderSource(image_sizes(tmp_path / "samples", sizes), workers=0)
    with pytest.raises(UserError, match=message):
        LpipsDistances(network, chosen_samples(samples, 2), CPU)


def test_a_page_has_samples_and_neighbors(sources: tuple[FolderSource, FolderSource]) -> None:
    samples = chosen_samples(sources[0], 2)
    nearest = {0: [(6, 0.25), (1, 0.5)], 4: [(2, 0.0), (6, 1.0)]}
    page = np.asarray(neighbors_page(samples, sources[1], nearest, side=16))
    below = HEAD - 4  # of the captions
    assert page.shape == (HEAD + 8 + 2 * (16 + below + 8), 8 + 24 + 8 + 2 * 24, 3)
    image = sources[1].load(6)[0].transpose(1, 2, 0)
    np.testing.assert_array_equal(page[HEAD + 8 + below : HEAD + 24 + below, 40:56], image)
