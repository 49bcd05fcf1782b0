"""Classifiers of samples: published ones, and one that is trained on one's own images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision import models

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics import small_classifier
from taming.evaluation.metrics.accuracy import (
    ClassificationAccuracy,
    Probabilities,
    load_classifier,
    neighbor_accuracy,
)
from taming.evaluation.metrics.extractor_files import default_layer
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.small_classifier import (
    SmallClassifier,
    register_small_classifier,
    train_small_classifier,
)
from taming.pictures import to_values
from taming.sampling.rejection import Classifier
from tests.evaluation.features import moments_of

CPU = torch.device("cpu")


def stripes(count: int, seed: int, side: int = 16) -> tuple[Tensor, Tensor]:
    """Noisy images of horizontal (0), vertical (1) and diagonal (2) stripes, and their classes."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(count) % 3
    row, column = torch.arange(side)[:, None], torch.arange(side)
    patterns = torch.stack([row.expand(side, side), column.expand(side, side), row + column]) % 4
    clean = patterns[labels][:, None] * 60
    noise = torch.randint(0, 70, (count, 3, side, side), generator=generator)
    return (clean + noise).to(torch.uint8), labels


def accuracy_of(probabilities: Probabilities, images: Tensor, labels: Tensor) -> dict[str, Any]:
    """Of labeled images, in batches of two."""
    accuracy = ClassificationAccuracy()
    for some, their_labels in zip(images.split(2), labels.split(2), strict=True):
        accuracy.add(probabilities(some), their_labels)
    return accuracy.compute()


@pytest.fixture(scope="module")
def trained() -> SmallClassifier:
    return train_small_classifier(*stripes(120, seed=0), epochs=6)


def test_accuracies_are_counted_by_class() -> None:
    ranks = torch.tensor([[0, 1, 2, 3, 4, 5, 6], [6, 5, 4, 3, 2, 1, 0], [1, 0, 2, 3, 4, 5, 6]])
    probabilities = torch.empty(3, 7).scatter_(1, ranks, torch.arange(7.0, 0, -1).repeat(3, 1))
    labels = torch.tensor([0, 0, 2])  # the likeliest; the last but none; the third
    accuracy = ClassificationAccuracy()
    accuracy.add(probabilities, labels)
    assert accuracy.compute() == {"images": 3, "top_1": 1 / 3, "top_5": 2 / 3}
    assert accuracy.by_class() == {
        0: {"images": 2, "top_1": 0.5, "top_5": 0.5},
        2: {"images": 1, "top_1": 0.0, "top_5": 1.0},
    }
    parts = [ClassificationAccuracy() for _ in range(3)]
    for place in (0, 2):
        parts[0].add(probabilities[place : place + 1], labels[place : place + 1])
    parts[1].add(probabilities[1:2], labels[1:2])
    merged = ClassificationAccuracy()
    for part in parts:
        merged.merge_state(part.state_dict())
    assert merged.by_class() == accuracy.by_class()
    fifth_and_sixth = ClassificationAccuracy()
    fifth_and_sixth.add(probabilities[:1].repeat(2, 1), torch.tensor([5, 4]))
    assert fifth_and_sixth.state_dict()["labels"].tolist() == [4, 5]
    assert fifth_and_sixth.by_class()[4]["top_5"] == 1
    assert fifth_and_sixth.by_class()[5] == {"images": 1, "top_1": 0, "top_5": 0}


def test_labels_that_cannot_be_classified() -> None:
    accuracy = ClassificationAccuracy()
    with pytest.raises(UserError, match="no samples to classify"):
        accuracy.compute()
    with pytest.raises(UserError, match="these have none"):
        accuracy.add(torch.rand(2, 3), torch.tensor([0, -1]))
    with pytest.raises(UserError, match="classes 0 to 2, and the samples are of class 3"):
        accuracy.add(torch.rand(2, 3), torch.tensor([0, 3]))


def test_a_torchvision_classifier(tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = models.get_model("squeezenet1_1", weights=None, num_classes=6).eval()
    torch.save(network.state_dict(), tmp_path / "own.pth")
    classifier = load_classifier(f"squeezenet1_1:{tmp_path / 'own.pth'}", CPU)
    assert classifier.description["weights_sha256"] == file_hash(tmp_path / "own.pth")
    assert "224" in classifier.description["preprocessing"]
    images, _ = stripes(4, seed=1, side=32)
    probabilities = classifier.probabilities(images)
    expected = Classifier(f"squeezenet1_1:{tmp_path / 'own.pth'}", CPU)
    assert torch.equal(probabilities, expected.probabilities(to_values(images)))
    right = accuracy_of(classifier.probabilities, images, probabilities.argmax(1))
    assert right == {"images": 4, "top_1": 1.0, "top_5": 1.0}
    wrong = accuracy_of(classifier.probabilities, images, probabilities.argmin(1))
    assert wrong["top_5"] == 0.0


def test_training_is_seeded_and_learns(trained: SmallClassifier) -> None:
    before = torch.get_rng_state()
    again = train_small_classifier(*stripes(120, seed=0), epochs=6)
    assert torch.equal(torch.get_rng_state(), before)
    for name, tensor in trained.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name]), name
    images, labels = stripes(60, seed=1)
    assert torch.allclose(trained.probabilities(images).sum(1), torch.ones(60), atol=1e-5)
    assert accuracy_of(trained.probabilities, images, labels)["top_1"] > 0.95
    # The classes of shuffled labels are not there to be learned.
    shuffled = labels[torch.randperm(60, generator=torch.Generator().manual_seed(0))]
    assert accuracy_of(trained.probabilities, images, shuffled)["top_1"] < 0.6


def test_training_goes_through_its_schedule_in_an_order_of_its_seed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    orders: list[list[int]] = []
    schedules: list[Any] = []

    class Noted(SmallClassifier):
        def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
            orders[-1] += images[:, 0, 0, 0].tolist()
            return super().forward(images)

    class Schedule(torch.optim.lr_scheduler.OneCycleLR):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            schedules.append(self)

    monkeypatch.setattr(small_classifier, "SmallClassifier", Noted)
    monkeypatch.setattr(torch.optim.lr_scheduler, "OneCycleLR", Schedule)
    images = torch.arange(10).byte().view(10, 1, 1, 1).expand(-1, 3, 8, 8)
    for seed in (0, 1):
        orders.append([])
        train_small_classifier(images, torch.arange(10) % 2, seed, epochs=2, batch_size=4)
        assert sorted(orders[-1][:10]) == sorted(orders[-1][10:]) == list(range(10))
        assert orders[-1][:10] != orders[-1][10:]
    assert orders[0] != orders[1]
    assert [schedule.last_epoch for schedule in schedules] == [6, 6]  # 3 batches an epoch


def test_it_is_an_extractor_that_torch_fidelity_knows(
    trained: SmallClassifier, tmp_path: Path
) -> None:
    trained.save(tmp_path / "small.pt")
    name = register_small_classifier()
    assert register_small_classifier() == name
    layers = [default_layer(name, metric) for metric in ("fid", "isc", "kid", "prc")]
    assert layers == ["features", "logits", "features", "features"]
    extractor = Extractor(name, weights=tmp_path / "small.pt")
    images, _ = stripes(30, seed=2)
    found = extractor(images)
    with torch.no_grad():
        features, logits = trained(images)
    torch.testing.assert_close(found["features"], features)
    torch.testing.assert_close(found["logits"], logits)
    assert "16" in extractor.describe()["resize"]
    moments = [moments_of(found["features"]), moments_of(extractor(images.flip(3))["features"])]
    assert frechet_distance(moments[0], moments[0]) < 1e-6
    assert frechet_distance(*moments) > 1e-3


def test_torch_fidelity_itself_takes_it(trained: SmallClassifier, tmp_path: Path) -> None:
    from torch_fidelity import calculate_metrics

    trained.save(tmp_path / "small.pt")

    class Images(torch.utils.data.Dataset[Tensor]):
        def __init__(self, seed: int) -> None:
            self.images = stripes(300, seed)[0]

        def __len__(self) -> int:
            return len(self.images)

        def __getitem__(self, index: int) -> Tensor:
            return self.images[index]

    found = calculate_metrics(
        input1=Images(3),
        input2=Images(4),
        fid=True,
        feature_extractor=register_small_classifier(),
        feature_extractor_weights_path=str(tmp_path / "small.pt"),
        cuda=False,
        save_cpu_ram=True,
        verbose=False,
    )
    moments = [moments_of(trained(stripes(300, seed)[0])[0].detach()) for seed in (3, 4)]
    expected = frechet_distance(*moments)
    assert np.isclose(found["frechet_inception_distance"], expected, rtol=1e-5)


def test_weights_that_are_none(trained: SmallClassifier, tmp_path: Path) -> None:
    trained.save(tmp_path / "a.pt")
    loaded = SmallClassifier.load(tmp_path / "a.pt")
    images, _ = stripes(6, seed=5)
    assert torch.equal(loaded.probabilities(images), trained.probabilities(images))
    bigger = torch.nn.functional.interpolate(images, (40, 24))  # resized to what it has learned
    assert loaded.probabilities(bigger).shape == (6, 3)
    torch.save({"other": torch.zeros(2)}, tmp_path / "b.pt")
    with pytest.raises(UserError, match="b.pt holds no weights of a SmallClassifier"):
        SmallClassifier.load(tmp_path / "b.pt")
    with pytest.raises(UserError, match="give --weights"):
        Extractor(register_small_classifier())
    for labels in ([0] * 6, [-1, 0, 1, 0, 1, 0]):
        with pytest.raises(UserError, match="two classes or more, labeled from 0 on"):
            train_small_classifier(images, torch.tensor(labels))


def test_neighbors_name_what_lies_near() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    images = (labels[:, None, None, None] * 200 + rng.integers(0, 40, (20, 4, 4, 3))).astype("u1")
    near = images[[0, 19]], np.array([0, 1])
    assert neighbor_accuracy((images, labels), near) == 1.0
    assert neighbor_accuracy((images, labels), (near[0], np.array([1, 1]))) == 0.5
    # Of five, one that is named wrong has no say.
    labels[0] = 1
    assert neighbor_accuracy((images, labels), (images[:1], np.array([0]))) == 1.0
    with pytest.raises(UserError, match="images of one size"):
        neighbor_accuracy((images, labels), (near[0][:, :2], near[1]))
