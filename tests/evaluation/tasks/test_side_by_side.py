"""Several evaluators in one pass: the numbers of one pass each, and each image read once."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.compute_statistics import main as compute_statistics
from scripts.evaluate_fid import main
from taming.evaluation.metrics.evaluators import EVALUATORS
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.resizes import Resize
from taming.evaluation.metrics.set_metrics import metric_settings
from taming.evaluation.metrics.statistics_file import Statistics
from taming.evaluation.results import read_result
from taming.evaluation.sources.folder import FolderSource
from taming.evaluation.tasks.fidelity import FidelityEvaluator, FidelitySettings, flattened
from tests.kit.extractor import (
    TinyExtractor,
    register_tiny,
    write_clip_weights,
    write_dinov2_weights,
    write_inception_weights,
)
from tests.kit.images import image_classes, image_folder

TINY = ("--extractor", "tests.kit.extractor:TinyExtractor", "--device", "cpu")
SMALL = ("--isc_splits", "2", "--kid_subsets", "5", "--kid_subset_size", "4", "--batch_size", "4")
ALL = ("--metrics", "all", "--evaluators", ",".join(EVALUATORS), *SMALL)


pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture
def small_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every evaluator with the tiny extractor, and resizes that take no time."""
    for name, evaluator in EVALUATORS.items():
        if name != "torch-fidelity":
            resize = evaluator.resize and replace(evaluator.resize, side=9)
            tiny = replace(evaluator, extractor=register_tiny(), resize=resize)
            monkeypatch.setitem(EVALUATORS, name, tiny)


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("sets")
    return str(image_folder(root / "a", 9)), str(image_folder(root / "b", 12, seed=100))


def evaluate(out: Path, *flags: str) -> dict[str, Any]:
    main([*flags, "-o", str(out)])
    (path,) = out.glob("*.json")
    return read_result(path)


def fails(capsys: pytest.CaptureFixture[str], *flags: str) -> str:
    with pytest.raises(SystemExit) as stop:
        main([*flags])
    assert stop.value.code == 2
    return capsys.readouterr().err.strip().splitlines()[-1]


def test_one_pass_gives_the_numbers_of_one_pass_each(
    small_networks: None, sets: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    together = evaluate(tmp_path / "all", *sets, *TINY, *ALL, "--no_cache")
    assert list(together["metrics"]) == list(EVALUATORS)
    printed = capsys.readouterr().out
    for name, evaluator in EVALUATORS.items():
        extractor = TINY if name == "torch-fidelity" else TINY[2:]
        flags = (*extractor, *SMALL, "--metrics", "all", "--evaluators", name)
        alone = evaluate(tmp_path / name, *sets, *flags, "--no_cache")
        expected = alone["metrics"] if name == "torch-fidelity" else alone["metrics"][name]
        assert set(expected) == set(evaluator.usual)
        found = dict(flattened(together["metrics"][name]))
        assert found == pytest.approx(dict(flattened(expected)), rel=1e-6, abs=1e-9)
    header = next(line for line in printed.splitlines() if line.startswith("| metric"))
    assert [part.strip() for part in header.split("|")[2:-1]] == list(EVALUATORS)
    resizes = {n: about["extractor"]["resize"] for n, about in together["protocol"].items()}
    assert resizes["clean-fid"] == "pillow-bicubic-float 9" and resizes["dinov2"].endswith("c 9")
    assert together["protocol"]["adm"]["isc_parts"] == "5000 images in their order each"
    assert "isc_splits" not in together["protocol"]["adm"]
    tables = next((tmp_path / "all").glob("*.md")).read_text()
    assert header in tables


def test_each_image_is_read_and_extracted_once(
    small_networks: None, sets: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """torch-fidelity and ADM share a network and its input; a resize is done once."""
    counts: Counter[str] = Counter()
    for evaluator in ("clip", "dinov2"):  # which happen to resize alike here
        small = replace(EVALUATORS[evaluator], resize=Resize(9))
        monkeypatch.setitem(EVALUATORS, evaluator, small)
    forward, load, resized = TinyExtractor.forward, FolderSource.load, Resize._resized

    def counted(name: str, call: Any) -> Any:
        def wrapped(self: Any, argument: Any) -> Any:
            counts[name] += len(argument) if name == "network" else 1
            return call(self, argument)

        return wrapped

    monkeypatch.setattr(TinyExtractor, "forward", counted("network", forward))
    monkeypatch.setattr(FolderSource, "load", counted("read", load))
    monkeypatch.setattr(Resize, "_resized", counted("resized", resized))
    flags = ("--evaluators", ",".join(EVALUATORS), "--extractor", register_tiny())
    cheap = ("--metrics", "fid,sfid,cmmd", "--workers", "0", "--device", "cpu", "--no_cache")
    evaluate(tmp_path / "out", *sets, *flags, *cheap)
    images = 9 + 12
    assert counts["read"] == images
    assert counts["network"] == 3 * images  # as they are, clean, and of clip and dinov2
    assert counts["resized"] == 2 * images


def test_statistics_and_cache_serve_evaluators_of_one_network(
    small_networks: None, sets: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    file = str(tmp_path / "adm.npz")
    compute_statistics([sets[1], file, *TINY[2:], "--format", "adm"])
    with np.load(file) as arrays:
        assert {"mu", "sigma", "mu_s", "sigma_s"} <= set(arrays.files)
    flags = (*TINY[2:], "--metrics", "fid,sfid", "--evaluators", "adm")
    by_file = evaluate(tmp_path / "file", sets[0], file, *flags)
    by_images = evaluate(tmp_path / "images", *sets, *flags)
    assert by_file["metrics"]["adm"] == pytest.approx(by_images["metrics"]["adm"], rel=1e-6)
    clean = fails(capsys, sets[0], file, *TINY[2:], "--evaluators", "clean-fid")
    assert "is of another extractor" in clean and "pillow-bicubic-float 9" in clean
    compute_statistics([sets[1], file, *TINY[2:], "--evaluator", "clean-fid"])
    clean_flags = (*TINY[2:], "--evaluators", "clean-fid")
    by_file = evaluate(tmp_path / "clean", sets[0], file, *clean_flags)
    by_images = evaluate(tmp_path / "clean_images", *sets, *clean_flags)
    (found, expected) = (one["metrics"]["clean-fid"]["fid"] for one in (by_file, by_images))
    assert found == pytest.approx(expected, rel=1e-6)
    for other in ("adm", "adm,clean-fid"):
        refused = fails(capsys, sets[0], file, *TINY[2:], "--evaluators", other)
        assert "is of another extractor" in refused


def test_references_of_the_adm_suite(
    small_networks: None, sets: tuple[str, str], tmp_path: Path
) -> None:
    """Their statistics are of more images than they hold, and count for FID and sFID alone."""
    statistics, images = str(tmp_path / "statistics.npz"), str(tmp_path / "images.npz")
    other = str(image_folder(tmp_path / "other", 7, seed=200))
    compute_statistics([sets[1], statistics, *TINY[2:], "--format", "adm"])
    compute_statistics([other, images, "--format", "adm-samples", "--device", "cpu"])
    with np.load(statistics) as first, np.load(images) as second:
        arrays = {name: first[name] for name in ("mu", "sigma", "mu_s", "sigma_s")}
        np.savez(tmp_path / "both.npz", **arrays, arr_0=second["arr_0"])
    flags = (*TINY[2:], "--metrics", "all", "--evaluators")
    both = str(tmp_path / "both.npz")
    result = evaluate(tmp_path / "both", sets[0], both, *flags, "adm")
    found = result["metrics"]["adm"]
    digest = result["sets"]["reference"]["statistics_sha256"]
    assert digest == Statistics.load(both).digest()
    by_images = evaluate(tmp_path / "i", sets[0], other, *flags, "adm")["metrics"]["adm"]
    by_statistics = evaluate(tmp_path / "s", *sets, *flags, "adm")["metrics"]["adm"]
    assert found["fid"] == pytest.approx(by_statistics["fid"], rel=1e-6)
    assert found["prc"] == by_images["prc"] != by_statistics["prc"]
    of_images = (*TINY[2:], "--evaluators", "clean-fid")
    clean = evaluate(tmp_path / "c", sets[0], both, *of_images)["metrics"]
    assert clean == evaluate(tmp_path / "ci", sets[0], other, *of_images)["metrics"]
    samples = evaluate(tmp_path / "f", images, sets[1], *flags, "adm")["metrics"]
    assert samples == evaluate(tmp_path / "fi", other, sets[1], *flags, "adm")["metrics"]


def test_metrics_of_one_layer_share_its_features(sets: tuple[str, str]) -> None:
    small = metric_settings(kid_subset_size=4)
    names = ("kid", "prc", "density_coverage", "cmmd", "fid")
    settings = FidelitySettings(names, of_metrics=small)
    reference = FolderSource(sets[1])
    evaluator = FidelityEvaluator(reference, Extractor(register_tiny()), settings)
    requests = {name: evaluator.requests[name] for name in settings.metrics}
    assert len({requests[name] for name in ("kid", "prc", "density_coverage", "cmmd")}) == 1
    assert len(set(requests.values())) == 2


def test_classes_are_of_the_first(small_networks: None, tmp_path: Path) -> None:
    a = str(image_classes(tmp_path / "a", {"0": 4, "2": 5}))
    b = str(image_classes(tmp_path / "b", {"0": 6, "2": 6}, seed=300))
    flags = ("--evaluators", "adm,clean-fid", "--per_class", "--device", "cpu", "--neighbors", "1")
    metrics = evaluate(tmp_path / "out", a, b, *flags)["metrics"]
    assert set(metrics) == {"adm", "clean-fid", "fid_of_class"}
    assert "mean_fid_of_classes" in metrics["adm"]
    assert "mean_fid_of_classes" not in metrics["clean-fid"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--evaluators", "adn"), "no evaluator 'adn'; did you mean 'adm'"),
        (("--evaluators", ","), "--evaluators: name at least one of torch-fidelity, adm"),
        (("--evaluators", "adm,dinov2", "--metrics", "sfid"), "dinov2 has none of sfid; it has"),
        (("--evaluators", "adm,clip", "--metrics", "fdi,fid"), "no metric 'fdi'"),
        # Neither left out without a word, nor computed by a definition that nobody has.
        (
            ("--evaluators", "adm,clean-fid", "--metrics", "fid,cmmd"),
            "cmmd is no metric of --evaluators adm,clean-fid, but of clip",
        ),
        (
            ("--evaluators", "clip", "--metrics", "fid,isc"),
            "isc is no metric of --evaluators clip, but of torch-fidelity, adm",
        ),
        (
            ("--evaluators", "torch-fidelity,clip", "--metrics", "fid,sfid"),
            "sfid is no metric of --evaluators torch-fidelity,clip, but of adm",
        ),
        (("--evaluators", "adm", "--layer", "fid=64"), "--layer is of the evaluator torch-fid"),
        (("--evaluators", "adm", "--prc_extractor", "tiny"), "--prc_extractor is of the evaluator"),
        (("--evaluator_weights", "adm=x.pth"), "it is not among --evaluators torch-fidelity"),
        (("--evaluator_weights", "x.pth"), "give EVALUATOR=FILE such as dinov2=weights.pth"),
        (
            ("--evaluators", "adm", "--evaluator_weights", "adm=nowhere.pth"),
            "there is no file nowhere.pth",
        ),
        (("--evaluators", "dinov2", "--metrics", "all"), "kid needs at least 1000 images"),
    ],
)
def test_one_sentence(
    tmp_path: Path, flags: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    small = [str(image_folder(tmp_path / name, 3)) for name in "ab"]
    weights = write_dinov2_weights(tmp_path / "dinov2.pth", grid=16)
    if flags[1] == "dinov2":
        flags = (*flags, "--evaluator_weights", f"dinov2={weights}")
    assert message in fails(capsys, *small, *flags, "--device", "cpu")


def test_too_few_images_for_one_of_them(
    small_networks: None, sets: tuple[str, str], tmp_path: Path, capsys: Any
) -> None:
    few = str(image_folder(tmp_path / "few", 3))
    flags = (*TINY[2:], "--metrics", "all", "--evaluators", "clip,adm")
    assert "prc needs at least 4 images, and the samples are 3" in fails(
        capsys, few, sets[1], *flags
    )


@pytest.mark.slow
def test_real_networks_with_random_weights(sets: tuple[str, str], tmp_path: Path) -> None:
    """All five with networks of the real architectures, of which CLIP's and DINOv2's are small."""
    inception = write_inception_weights(tmp_path / "inception.pth")
    files = {
        "dinov2": write_dinov2_weights(tmp_path / "dinov2.pth"),
        "clip": write_clip_weights(tmp_path / "clip.pt"),
    }
    weights = [f"--evaluator_weights={name}={file}" for name, file in files.items()]
    flags = (*ALL, *weights, "--weights", str(inception), "--prc_extractor")
    found = evaluate(tmp_path / "out", *sets, *flags, "inception-v3-compat", "--device", "cpu")
    metrics = found["metrics"]
    assert metrics["adm"]["fid"] == metrics["torch-fidelity"]["fid"]  # one protocol
    assert metrics["clean-fid"]["fid"] != metrics["adm"]["fid"]
    hashes = {
        name: about["extractor"]["weights_sha256"] for name, about in found["protocol"].items()
    }
    assert hashes["adm"] == hashes["clean-fid"] == Extractor(weights=inception).weights_hash
    assert len(set(hashes.values())) == 3
    layers = found["protocol"]["adm"]["layers"]
    assert layers == {"fid": "2048", "sfid": "spatial", "isc": "logits_unbiased", "prc": "2048"}
    values = [value for _, value in flattened(metrics)]
    assert np.isfinite(values).all()
