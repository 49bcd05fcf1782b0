"""Pairs of images: every metric against its definition, and against order, batches and parts."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from skimage.metrics import peak_signal_noise_ratio
from torch import Tensor

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.lpips import load_networks
from taming.evaluation.metrics.reconstruction import (
    PAIR_METRICS,
    PairAccumulator,
    PairMetric,
    SegmentationAccumulator,
    to_pixels,
)
from taming.evaluation.metrics.ssim import ssim
from taming.evaluation.sources.images import NO_LABEL
from taming.modules.losses.lpips import LPIPS
from tests.modules.losses.backbones import backbone_file
from tests.support import fill_by_name

LABELS = [0, 1, 1, 0, 1, 2]


def pairs(side: int = 32, channels: int = 3) -> tuple[Tensor, Tensor]:
    """Six images [6, C, side, side] in [-1, 1] and worse and worse copies, some of them beyond."""
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(6, channels, side, side, generator=generator) * 2 - 1
    noise = torch.randn(images.shape, generator=generator)
    return images, images + noise * torch.linspace(0.01, 0.5, 6).view(6, 1, 1, 1)


def network(net: str = "alex") -> LPIPS:
    loss: Any = fill_by_name(LPIPS(net))
    for index in range(5):
        getattr(loss, f"lin{index}").model[0].weight.abs_()
    return loss


def test_every_metric_is_what_it_is_defined_as() -> None:
    import lpips

    torch.manual_seed(0)
    theirs = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("lins.")}
    ours = LPIPS("alex")
    ours.load_state_dict(state)
    images, copies = pairs()
    accumulator = PairAccumulator(("ssim", "lpips_alex"), {"alex": ours})
    accumulator.update(range(6), images, copies, LABELS)
    first, second = to_pixels(images), to_pixels(copies)
    values = accumulator.values()
    a, b = first.numpy(), second.numpy()
    assert values["psnr"] == pytest.approx(
        [peak_signal_noise_ratio(x, y, data_range=255) for x, y in zip(a, b, strict=True)]
    )
    l1 = np.abs(a.astype(float) - b).mean(axis=(1, 2, 3)) / 127.5
    assert values["l1"] == pytest.approx(l1)
    assert values["ssim"] == pytest.approx(ssim(first, second).numpy())
    with torch.no_grad():
        expected = theirs(first / 127.5 - 1, second / 127.5 - 1).flatten()
    assert values["lpips_alex"] == pytest.approx(expected.numpy(), abs=1e-5)
    summary = accumulator.compute()
    mse = ((a.astype(float) - b) ** 2).mean()
    assert summary["images"] == 6
    assert summary["psnr_of_mean_mse"] == pytest.approx(10 * math.log10(255**2 / mse))
    for name in ("l1", "psnr", "ssim", "lpips_alex"):
        assert summary[name] == pytest.approx(values[name].mean())
    # Jensen's inequality: the two readings of "PSNR" are told apart.
    assert summary["psnr"] > summary["psnr_of_mean_mse"] + 1


def test_batches_order_and_parts_change_nothing() -> None:
    images, copies = pairs()
    networks = {"alex": network()}
    metrics = ("ssim", "lpips_alex")
    whole = PairAccumulator(metrics, networks)
    whole.update(range(6), images, copies, LABELS)
    parts = [PairAccumulator(metrics, networks) for _ in range(2)]
    for index in (5, 0, 3):
        parts[0].update([index], images[[index]], copies[[index]], [LABELS[index]])
    parts[1].update([4, 1, 2], images[[4, 1, 2]], copies[[4, 1, 2]], [1, 1, 1])
    parts[1].merge_state(parts[0].state_dict())
    expected, found = whole.compute(), parts[1].compute()
    assert {k: v for k, v in found.items() if k != "lpips_alex"} == {
        k: v for k, v in expected.items() if k != "lpips_alex"
    }
    assert found["lpips_alex"] == pytest.approx(expected["lpips_alex"], rel=1e-5)
    assert parts[1].values()["index"].tolist() == list(range(6))


def test_classes_have_their_own_means() -> None:
    images, copies = pairs()
    accumulator = PairAccumulator(("ssim",))
    accumulator.update(range(6), images, copies, LABELS)
    values, tables = accumulator.values(), accumulator.per_label()
    assert list(tables) == [0, 1, 2]
    assert [tables[label]["images"] for label in tables] == [2, 3, 1]
    assert tables[1]["ssim"] == pytest.approx(values["ssim"][[1, 2, 4]].mean())
    without = PairAccumulator(())
    without.update([0, 1], images[:2], copies[:2], [NO_LABEL, NO_LABEL])
    assert without.per_label() == {}


def test_images_that_are_too_small_leave_a_metric_out() -> None:
    accumulator = PairAccumulator(("ssim", "ms_ssim", "lpips_vgg"), {"vgg": network("vgg")})
    for start, side in ((0, 12), (6, 20)):
        accumulator.update(range(start, start + 6), *pairs(side, channels=1))
    summary = accumulator.compute()
    assert "ssim" in summary and "ms_ssim" not in summary and "lpips_vgg" not in summary
    left_out = accumulator.left_out()
    assert left_out["ms_ssim"].endswith("176 pixels a side, and 12 of 12 images have less")
    assert left_out["lpips_vgg"].endswith("16 pixels a side, and 6 of 12 images have less")


def test_a_metric_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    def brightness(first: Tensor, second: Tensor) -> Tensor:
        return (second.double() - first.double()).flatten(1).mean(dim=1)

    metric = PairMetric("brightness", "brighter by", "{:+.1f}", 20, brightness)
    monkeypatch.setitem(PAIR_METRICS, "brightness", metric)
    accumulator = PairAccumulator(("brightness",))
    images = torch.full((2, 3, 24, 20), 100, dtype=torch.uint8)  # just large enough
    accumulator.update([0, 1], images, images + torch.tensor([1, 5]).byte().view(2, 1, 1, 1))
    assert accumulator.values()["brightness"].tolist() == [1, 5]
    assert accumulator.compute()["brightness"] == 3
    accumulator.update([2], images[:1, :, :8], images[:1, :, :8])
    assert accumulator.left_out() == {
        "brightness": "needs 20 pixels a side, and 1 of 3 images have less"
    }


def test_equal_pictures_are_infinitely_near() -> None:
    images = to_pixels(pairs()[0]) / 127.5 - 1
    accumulator = PairAccumulator(("ssim",))
    accumulator.update(range(6), images, images + 0.001)  # less than half of a step of 8 bits
    summary = accumulator.compute()
    assert summary["l1"] == 0 and summary["psnr"] == math.inf and summary["ssim"] == 1


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        (((1, 3, 8, 8), (1, 3, 8, 6)), "images of 3 x 8 x 8 and reconstructions of 3 x 8 x 6"),
        (((1, 5, 8, 8), (1, 5, 8, 8)), "1 or 3 channels, not 5 x 8 x 8"),
    ],
)
def test_other_pairs_are_refused(shapes: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        PairAccumulator(()).update([0], torch.zeros(shapes[0]), torch.zeros(shapes[1]))


def test_wrong_input_is_said() -> None:
    with pytest.raises(UserError, match="hold NaN"):
        PairAccumulator(()).update([0], torch.zeros(1, 3, 8, 8), torch.full((1, 3, 8, 8), math.nan))
    with pytest.raises(UserError, match="no metric fsim"):
        PairAccumulator(("fsim",))
    for nothing in (PairAccumulator(), SegmentationAccumulator(3)):
        with pytest.raises(UserError, match="no images to evaluate"):
            nothing.compute()


def test_networks_whose_files_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = backbone_file("alex", tmp_path, monkeypatch)
    monkeypatch.setenv("TAMING_VGG16", str(tmp_path / "vgg16.pth"))
    networks = load_networks(files={"alex": path})
    assert list(networks.ready) == ["alex"] and networks.ready["alex"].ready
    assert networks.hashes == {"alex": file_hash(path)}
    assert "vgg16.pth" in networks.left_out["lpips_vgg"]
    assert "LPIPS by VGG16 is left out, everything else is computed" in caplog.text
    with pytest.raises(UserError, match="vgg_path: there is no file"):
        load_networks(files={"vgg": tmp_path / "nowhere.pth"})


def test_labels_are_counted() -> None:
    true = torch.tensor([[0, 0, 1, 1], [2, 2, 2, 0]]).view(2, 1, 2, 2)
    found = torch.tensor([[0, 1, 1, 1], [2, 2, 0, 0]]).view(2, 1, 2, 2)
    whole, part = SegmentationAccumulator(5), SegmentationAccumulator(5)
    whole.update([0], true[:1], found[:1])
    part.update([1], true[1:], found[1:])
    whole.merge_state(part.state_dict())
    assert whole.confusion[0].tolist() == [2, 1, 0, 0, 0]  # what became of the zeros
    summary = whole.compute()
    assert summary["images"] == 2 and summary["pixel_accuracy"] == 6 / 8
    assert summary["mean_iou"] == pytest.approx((2 / 4 + 2 / 3 + 2 / 3) / 3)
    with pytest.raises(UserError, match="cannot be compared"):
        whole.update([2], true, found[..., :1])
