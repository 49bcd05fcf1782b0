"""Statistics files: what was saved comes back, and nothing else is taken for it."""

from __future__ import annotations

import hashlib
import io
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from taming.errors import UserError
from taming.evaluation.metrics import statistics_file
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.metrics.fid import Moments, frechet_distance
from taming.evaluation.metrics.statistics_file import Statistics
from tests.evaluation.features import moments_of
from tests.kit.archives import zeros_in_zip
from tests.kit.extractor import register_tiny

EXTRACTOR = Extractor(register_tiny())


def made() -> tuple[Statistics, Moments]:
    pictures = torch.randint(0, 256, (30, 3, 8, 8), dtype=torch.uint8)
    moments = moments_of(EXTRACTOR(pictures)["16"])
    statistics = Statistics(
        extractor="tiny",
        layer="16",
        weights_hash=EXTRACTOR.weights_hash,
        mean=moments.mean,
        covariance=moments.covariance,
        count=moments.count,
        fingerprint="f" * 64,
        protocol=EXTRACTOR.describe() | {"size": [8, 8]},
    )
    return statistics, moments


def test_what_was_saved_comes_back(tmp_path: Path) -> None:
    statistics, moments = made()
    path = statistics.save(tmp_path / "new" / "reference.v1")
    assert path == tmp_path / "new" / "reference.v1.npz"
    assert [one.name for one in path.parent.iterdir()] == [path.name]
    loaded = Statistics.load(path)
    for name in ("extractor", "layer", "weights_hash", "count", "fingerprint", "protocol"):
        assert getattr(loaded, name) == getattr(statistics, name)
    assert np.array_equal(loaded.mean, moments.mean)
    assert np.array_equal(loaded.covariance, moments.covariance)
    assert frechet_distance(loaded, moments) < 1e-9
    loaded.check(EXTRACTOR, "16")


def test_statistics_of_two_layers(tmp_path: Path) -> None:
    """As the ADM suite has them, for FID and sFID."""
    statistics, moments = made()
    both = replace(statistics, spatial=(moments.mean[:5], moments.covariance[:5, :5]))
    loaded = Statistics.load(both.save(tmp_path / "both.npz"))
    with np.load(tmp_path / "both.npz") as file:
        assert np.array_equal(file["sigma_s"], moments.covariance[:5, :5])
    spatial = loaded.of("spatial")
    assert np.array_equal(spatial.mean, moments.mean[:5])
    assert (spatial.extractor, spatial.layer, spatial.count) == ("tiny", "spatial", 30)
    assert np.array_equal(loaded.of("16").mean, moments.mean)
    with pytest.raises(UserError, match="no mu_s and sigma_s, which sfid needs"):
        statistics.of("spatial")
    one = np.ones((1, 1))
    np.savez(tmp_path / "foreign.npz", mu=one[0], sigma=one, mu_s=np.ones(2), sigma_s=one)
    with pytest.raises(UserError, match=r"mean of shape \(2,\) and a covariance of \(1, 1\)"):
        Statistics.load(tmp_path / "foreign.npz")


def test_files_of_the_adm_suite_are_of_its_network(tmp_path: Path) -> None:
    square = np.eye(3)
    np.savez(tmp_path / "a.npz", mu=square[0], sigma=square, mu_s=square[0], sigma_s=square)
    with pytest.raises(
        UserError, match=r"a.npz is of the ADM suite .* of tiny.*; name adm alone in"
    ):
        Statistics.load(tmp_path / "a.npz").check(EXTRACTOR, "16", tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", mu=square[0], sigma=square)
    Statistics.load(tmp_path / "b.npz").check(EXTRACTOR, "16")


def test_another_resize_is_another_extractor() -> None:
    statistics, _ = made()
    described = EXTRACTOR.describe()
    same = replace(statistics, protocol={"extractor": described})
    same.check(EXTRACTOR, "16")
    other = replace(statistics, protocol={"extractor": described | {"resize": "tf1-bilinear 299"}})
    with pytest.raises(UserError, match="resize tf1-bilinear 299.*resize by the extractor"):
        other.check(EXTRACTOR, "16")


def test_only_the_same_extractor_weights_and_layer_match() -> None:
    statistics, _ = made()
    for change in ({"extractor": "vgg16"}, {"layer": "logits"}, {"weights_hash": "0" * 64}):
        other = replace(statistics, **change)  # type: ignore[arg-type]
        with pytest.raises(UserError, match="ref.npz is of another extractor .* than this eval"):
            other.check(EXTRACTOR, "16", "ref.npz")


def test_files_of_other_tools_are_taken_with_a_note(tmp_path: Path) -> None:
    statistics, moments = made()
    np.savez(tmp_path / "other.npz", mu=statistics.mean, sigma=statistics.covariance, more=[1])
    loaded = Statistics.load(tmp_path / "other.npz")
    assert loaded.extractor == "" and loaded.count is None and loaded.fingerprint is None
    assert "another tool" in loaded.protocol["note"]
    single = {"mu": statistics.mean.astype("f4"), "sigma": statistics.covariance.astype("f4")}
    np.savez(tmp_path / "single.npz", **single)
    exact = Statistics.load(tmp_path / "single.npz")
    assert exact.mean.dtype == exact.covariance.dtype == np.float64
    loaded.check(EXTRACTOR, "16")
    assert frechet_distance(loaded, moments) < 1e-9
    narrow = replace(loaded, mean=loaded.mean[:4], covariance=loaded.covariance[:4, :4])
    with pytest.raises(UserError, match="features of 4 and 16 numbers"):
        frechet_distance(narrow, moments)


def arrays(**content: Any) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)
    return file.getvalue()


def moments(**changes: Any) -> bytes:
    """An archive of two features, with something else in it."""
    return arrays(**{"mu": np.zeros(2), "sigma": np.eye(2)} | changes)


def single_array(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def encrypted(archive: bytes) -> bytes:
    """The archive with the bit set, in its lists of members, that says that it is encrypted."""
    content = bytearray(archive)
    for signature, flags in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        place = content.find(signature)
        while place >= 0:
            content[place + flags] |= 1
            place = content.find(signature, place + 1)
    return bytes(content)


def test_numbers_that_are_nearly_so(tmp_path: Path) -> None:
    """Of float32, bytes in either order, and sums that differ in their last digits."""
    (tmp_path / "a.npz").write_bytes(
        moments(mu=np.ones(2, ">f4"), sigma=np.array([[1, 0.5], [0.50001, 1]], np.float32))
    )
    found = Statistics.load(tmp_path / "a.npz")
    assert found.mean.dtype == found.covariance.dtype == np.dtype(np.float64)
    assert found.mean.tolist() == [1, 1] and found.covariance[1, 0] == np.float32(0.50001)
    about = '{"count": null, "fingerprint": null, "protocol": {}, "extractor": "tiny"}'
    (tmp_path / "b.npz").write_bytes(moments(about=about))
    assert Statistics.load(tmp_path / "b.npz").extractor == "tiny"


def test_a_digest_is_of_mean_and_covariance() -> None:
    mean, covariance = np.array([1.0, 2.0]), np.array([[2.0, 0.5], [0.5, 1.0]])
    digest = Statistics(mean, covariance).digest()
    assert digest == hashlib.sha256(mean.tobytes() + covariance.tobytes()).hexdigest()
    others = Statistics(mean + 1, covariance), Statistics(mean, covariance + 1)
    assert len({digest, *(one.digest() for one in others)}) == 3


def archive_without_arrays() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("mu.npy", "no array")
    return file.getvalue()


HEADER = "{{'descr': '<f8', 'fortran_order': False, 'shape': {}, }}\n"


def with_entry(name: str, content: bytes) -> bytes:
    """An archive with right checksums, in which one of the arrays is replaced by other bytes."""
    file, whole = io.BytesIO(), zipfile.ZipFile(io.BytesIO(moments()))
    with zipfile.ZipFile(file, "w") as archive:
        for entry in whole.namelist():
            archive.writestr(entry, content if entry == name else whole.read(entry))
    return file.getvalue()


def header(text: str) -> bytes:
    """The beginning of an array's file, with any text as its header."""
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda: with_entry("mu.npy", b"no array at all"), "mu is no array"),
        (lambda: with_entry("mu.npy", header("{'descr': '<f8', (")), "is no statistics file"),
        (lambda: with_entry("sigma.npy", header("  {\n 1")), "is no statistics file"),
        (
            lambda: with_entry("mu.npy", header(HEADER.format("(9999999999999,)"))),
            "is no statistics file",
        ),
        (lambda: with_entry("mu.npy", header(HEADER.format("(2,)")) + bytes(9)), "no statistics"),
        (lambda: b"", "is no statistics file"),
        (lambda: b"no archive", "is no statistics file"),
        (archive_without_arrays, "is no statistics file|lacks sigma"),
        (lambda: arrays(mu=np.array([print], dtype=object)), "is no statistics file"),
        (lambda: arrays(mu=np.zeros(3)), "lacks sigma"),
        (lambda: arrays(images=np.zeros(3)), r"has neither images \(arr_0\) nor statistics"),
        (lambda: arrays(mu=np.zeros(3)), "lacks sigma;"),
        (lambda: moments(mu_s=np.zeros(3)), "lacks sigma_s;"),
        (lambda: moments(sigma_s=np.eye(3)), "lacks mu_s;"),
        (lambda: moments(sigma=np.array([[1.0, 1.1], [1.1, 1.0]])), "covariances above their"),
        (lambda: b"no zip file", "it is no zip file, as every .npz is"),
        (lambda: arrays(mu=np.zeros(3), sigma=np.zeros((2, 2))), r"covariance of \(2, 2\)"),
        (lambda: arrays(mu=np.array([np.nan]), sigma=np.ones((1, 1))), "NaN"),
        (lambda: arrays(mu=np.zeros(1), sigma=np.full((1, 1), np.inf)), "NaN or infinity"),
        (lambda: arrays(mu=np.zeros(1), sigma=np.ones((1, 1)), about="{"), "is damaged"),
        (lambda: arrays(mu=np.zeros(1), sigma=np.ones((1, 1)), about="[1]"), "is damaged"),
        (lambda: arrays(mu=np.array(["a"]), sigma=np.ones((1, 1))), "is no statistics file"),
        (lambda: moments(mu=np.zeros(2, np.float16)), "mu is float16, not float64 or float32"),
        (lambda: moments(sigma=np.eye(2, dtype=np.float16)), "sigma is float16"),
        (lambda: moments(mu=np.zeros(2, int)), "mu is int64, not"),
        (lambda: moments(sigma=np.eye(2, dtype=complex)), "sigma is complex128"),
        (lambda: moments(sigma=np.eye(2, dtype=bool)), "sigma is bool"),
        (lambda: moments(sigma=np.array([[None] * 2] * 2)), "is no statistics file"),
        (lambda: moments(mu=np.zeros(3)), r"shape \(3,\) and a covariance of \(2, 2\)"),
        (lambda: moments(mu=np.zeros((1, 2))), r"a mean of shape \(1, 2\)"),
        (lambda: moments(mu=np.float64(0), sigma=np.float64(1)), r"a mean of shape \(\)"),
        (lambda: moments(mu=np.zeros(0), sigma=np.zeros((0, 0))), r"covariance of \(0, 0\)"),
        (lambda: moments(sigma=np.array([[1.0, 0.5], [-0.5, 1.0]])), "is not symmetric"),
        (lambda: moments(sigma=np.array([[1.0, 0.5], [0.499, 1.0]])), "is not symmetric"),
        (lambda: moments(sigma=1e-6 * np.array([[1, 0.5], [0.4, 1]])), "is not symmetric"),
        (lambda: moments(sigma=np.diag([1.0, -1e-3])), "a negative variance"),
        (lambda: moments(about='{"count": 0}'), "is of 0 images; a covariance needs 2"),
        (lambda: moments(about='{"count": 1}'), "is of 1 images"),
        (lambda: moments(about='{"count": "9"}'), "is damaged"),
        (lambda: moments(about='{"protocol": []}'), "is damaged"),
        (lambda: moments(about='{"extractor": null}'), "is damaged"),
        (lambda: moments(about='{"fingerprint": 7}'), "is damaged"),
        (lambda: single_array(np.zeros(3)), "is no statistics file"),
        (lambda: encrypted(moments()), "is no statistics file"),
    ],
)
def test_other_files_are_a_sentence(
    tmp_path: Path, content: Callable[[], bytes], message: str
) -> None:
    path = tmp_path / "bad.npz"
    path.write_bytes(content())
    with pytest.raises(UserError, match=f"bad.npz .*({message})"):
        Statistics.load(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no statistics file .*nowhere.npz"):
        Statistics.load(tmp_path / "nowhere.npz")


def test_a_file_that_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics_file, "MOST_BYTES", 2**20)
    header = io.BytesIO()
    shape = {"descr": "<f8", "fortran_order": False, "shape": (2**19,)}
    np.lib.format.write_array_header_1_0(header, shape)
    (tmp_path / "a.npz").write_bytes(zeros_in_zip("mu.npy", 2**22, header.getvalue()))
    with pytest.raises(UserError, match="is no statistics file .it says that it holds much more"):
        Statistics.load(tmp_path / "a.npz")
