"""A metric that the project does not have: one file such as this one, and a line in a table."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.evaluate_fid import main
from taming.command_line import flag
from taming.evaluation.metrics.base import Metric, MetricSettings
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.set_metrics import METRICS
from taming.evaluation.results import read_result
from tests.kit.extractor import register_tiny
from tests.kit.images import image_folder, read_images

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")


@dataclass(frozen=True)
class SpreadSettings(MetricSettings):
    spread_power: int = flag(2, "of the distances from the mean")


def spread(features: np.ndarray, power: int) -> float:
    return float((np.abs(features - features.mean(axis=0)) ** power).mean())


def _compute(
    samples: FeatureBank, reference: FeatureBank, settings: SpreadSettings
) -> dict[str, float]:
    values = [spread(bank.compute(), settings.spread_power) for bank in (samples, reference)]
    return dict(zip(("samples", "reference"), values, strict=True))


SPREAD = Metric(
    name="spread",
    title="spread of features",
    accumulator=FeatureBank,
    compute=_compute,
    settings=SpreadSettings,
    smallest_set=lambda settings: 4,
    facts={"spread_center": "mean"},
    layer_of="fid",
)


@pytest.fixture
def evaluate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Runs the script on two folders and reads the result."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setitem(METRICS, "spread", SPREAD)
    image_folder(tmp_path / "a", 6)
    image_folder(tmp_path / "b", 8, seed=100)

    def run(*flags: str) -> dict[str, Any]:
        main([str(tmp_path / "a"), str(tmp_path / "b"), *TINY, "-o", str(tmp_path / "out"), *flags])
        (path,) = (tmp_path / "out").glob("*.json")
        return read_result(path)

    return run


def test_its_flag_settings_layer_and_results(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ("--metrics", "kid,spread", "--spread_power", "3", "--kid_subset_size", "4")
    result = evaluate(*flags)
    extractor = Extractor(register_tiny(), ["16"])
    for role, folder in (("samples", "a"), ("reference", "b")):
        features = features_of(extractor, tmp_path / folder)
        assert result["metrics"]["spread"][role] == pytest.approx(spread(features, 3), rel=1e-6)
    protocol = result["protocol"]
    assert (protocol["spread_power"], protocol["spread_center"]) == (3, "mean")
    assert protocol["layers"] == {"kid": "16", "spread": "16"}
    assert "spread.samples" in capsys.readouterr().out


def features_of(extractor: Extractor, folder: Path) -> np.ndarray:
    return extractor(read_images(folder))["16"].numpy()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--spread_power", "0"), "--spread_power must be at least 1, not 0"),
        (("--metrics", "spraed"), "did you mean 'spread'"),
    ],
)
def test_its_refusals(
    evaluate: Callable[..., dict[str, Any]],
    flags: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        evaluate("--metrics", "spread", *flags)
    assert message in capsys.readouterr().err


def test_its_smallest_set(
    evaluate: Callable[..., dict[str, Any]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in sorted((tmp_path / "a").iterdir())[3:]:
        path.unlink()
    with pytest.raises(SystemExit):
        evaluate("--metrics", "spread")
    assert "spread needs at least 4 images, and the samples are 3" in capsys.readouterr().err
