"""The mean and covariance of a set's features as a small file, with how they were made."""

from __future__ import annotations

import hashlib
import json
import logging
import tokenize
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from taming.atomic_files import atomic_path, check_place
from taming.errors import UserError, absence
from taming.evaluation.metrics.extractor_files import INCEPTION, SPATIAL
from taming.evaluation.metrics.features import Extractor
from taming.evaluation.sources.resize import AS_IN_TRAINING, NONE, Resizing, Size
from taming.shipped import script

log = logging.getLogger(__name__)

MOST_BYTES = 2**30  # of an array; the mean and covariance of 2048 features take 34 MB
# Fields of `Statistics` as the file's JSON names them.
ABOUT = {name: name for name in ("extractor", "layer", "count", "fingerprint", "protocol")}
ABOUT["weights_hash"] = "weights_sha256"
KINDS = {"count": int | None, "fingerprint": str | None, "protocol": dict}  # the others: text
ASYMMETRY = 1e-4  # of the largest entry: sums in float32 may differ above and below the diagonal
SPATIAL_ARRAYS = {"mu_s", "sigma_s"}  # of the ADM suite, for sFID
NUMBERED = ({"mu", "sigma"}, SPATIAL_ARRAYS)
IMAGES_FILE = "arr_0.npy"  # the ADM suite's images beside its statistics, which are not read here
# What numpy and zipfile raise for files that are damaged, encrypted, or of another kind.
NOT_READ: tuple[type[Exception], ...] = (OSError, ValueError, EOFError, AttributeError, TypeError)
NOT_READ += (RuntimeError, MemoryError, KeyError, zipfile.BadZipFile, zlib.error)
NOT_READ += (SyntaxError, tokenize.TokenError)  # of an array's header, which is a Python literal
FOREIGN = "a file of another tool, which does not say its extractor and its images"


def npz_path(path: str | Path) -> Path:
    """Where `Statistics.save` writes: `path`, with .npz at its end.

    Raises:
        UserError: if that is no name of a file, or no file can be written there.
    """
    file = Path(path)
    if not file.name or file.is_dir():
        raise UserError(f"{str(path)!r} is a folder; name a file in it, such as statistics.npz")
    check_place(file.parent, "choose another place for the statistics")
    return file if file.suffix == ".npz" else file.with_name(file.name + ".npz")


@dataclass(frozen=True, eq=False)
class Statistics:
    """What the Fréchet distance needs of a set of images."""

    mean: np.ndarray  # float64 [D]
    covariance: np.ndarray  # float64 [D, D], divided by the number of images less one
    extractor: str = ""  # name in torch-fidelity's registry; "" in files of other tools
    layer: str = ""  # of the extractor; "" in files of other tools
    weights_hash: str = ""  # SHA-256 of the extractor's weights; "" in files of other tools
    count: int | None = None  # the number of images; None if the file does not say it
    fingerprint: str | None = None  # SHA-256 over the images; None if unknown
    protocol: dict[str, Any] = field(default_factory=dict)  # how it was made, for results
    # Mean and covariance of the features that sFID compares; None if the file has none.
    spatial: tuple[np.ndarray, np.ndarray] | None = None

    def of(self, layer: str) -> Statistics:
        """Those of a layer; UserError if sFID's are wanted and not there."""
        if layer != SPATIAL or self.layer == SPATIAL:
            return self
        if self.spatial is None:
            raise UserError(
                "the statistics have no mu_s and sigma_s, which sfid needs; leave sfid out, or "
                f"compute them again with {script('compute_statistics')} --format adm"
            )
        mean, covariance = self.spatial
        layer = SPATIAL if self.layer else ""
        return replace(self, mean=mean, covariance=covariance, layer=layer, spatial=None)

    def digest(self) -> str:
        """SHA-256 of mean and covariance."""
        return hashlib.sha256(self.mean.tobytes() + self.covariance.tobytes()).hexdigest()

    def save(self, path: str | Path) -> Path:
        """Write an `.npz`: `mu` and `sigma` as other tools name them, and JSON for the rest.

        Those of `spatial` are `mu_s` and `sigma_s`, as the ADM suite names them.
        Returns its path, which ends with .npz. Raises UserError if it cannot be written.
        """
        path = npz_path(path)
        about = {entry: vars(self)[name] for name, entry in ABOUT.items()}
        with atomic_path(path) as partial, partial.open("wb") as file:
            arrays = {"mu": self.mean, "sigma": self.covariance}
            arrays |= dict(zip(("mu_s", "sigma_s"), self.spatial or (), strict=False))
            np.savez(file, about=json.dumps(about), **arrays)  # type: ignore[arg-type]
        return path

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read a file of `save`, or the `mu` and `sigma` of another tool.

        `protocol["note"]` says so of the latter. Raises UserError.
        """
        arrays = _read(Path(path))
        pairs = [(arrays["mu"], arrays["sigma"])]
        if set(arrays) >= SPATIAL_ARRAYS:
            pairs.append((arrays["mu_s"], arrays["sigma_s"]))
        for mean, covariance in pairs:
            if reason := _what_is_wrong(mean, covariance):
                raise UserError(f"{path} {reason}; compute the statistics again")
        about = _about(Path(path), arrays)
        known = {name: about[entry] for name, entry in ABOUT.items() if entry in about}
        exact = [(mean.astype(np.float64), cov.astype(np.float64)) for mean, cov in pairs]
        return cls(*exact[0], spatial=exact[1] if len(exact) > 1 else None, **known)

    def image_size(self) -> Size | None:
        """(height, width) of all images that these are of; None if that is not known."""
        sizes = self._images.get("sizes")
        if not isinstance(sizes, Mapping) or len(sizes) != 1:
            return None
        width, _, height = str(next(iter(sizes))).partition("x")
        return (int(height), int(width)) if width.isdecimal() and height.isdecimal() else None

    @property
    def _images(self) -> Mapping[str, Any]:
        """How the images were read, as far as the file says it."""
        images = self.protocol.get("images")
        return images if isinstance(images, Mapping) else {}

    def require_resizing(self, wanted: Resizing, any_size: bool = False) -> None:
        """Raise UserError if these are of images that were resized or cropped otherwise.

        Images that had the size are equal with any filter. Files that do not say how their images
        were resized are taken with a warning. `any_size`: whatever their size.
        """
        file = self.protocol.get("file", "the statistics file")
        own = {name: self._images.get(name) for name in wanted.describe()}
        if own["resize"] is None:
            log.warning("%s does not say how its images were resized and cropped", file)
            return
        whole = own["resize"] == own["crop"] == NONE
        of_files = self._images.get("images_are") != AS_IN_TRAINING
        if whole and of_files and wanted.size is not None and self.image_size() == wanted.size:
            return
        expected = wanted.describe() | ({"size": own["size"]} if any_size else {})
        if own != expected:
            raise UserError(
                f"{file} is of images with another resize or crop ({_resizing_text(own)}) than "
                f"this evaluation's ({_resizing_text(expected)}); compute it again with "
                f"{script('compute_statistics')}, or {_with_the_same_resizing(own)}"
            )

    def check(self, extractor: Extractor, layer: str, path: str | Path = "the statistics") -> None:
        """Raise UserError if these are not of that extractor, its weights and that layer.

        Of another tool's file, only the width can be checked, once there are features.
        """
        resize = extractor.describe()["resize"]
        adms = not self.extractor and self.spatial is not None
        if adms and (extractor.name != INCEPTION or extractor.resize):
            raise UserError(
                f"{path} is of the ADM suite (it has mu_s), and this evaluation's features are of "
                f"{extractor.name}, resize {resize}; name adm alone in --evaluators"
            )
        described = self.protocol.get("extractor")
        own_resize = described.get("resize", resize) if isinstance(described, dict) else resize
        own = (self.extractor, self.layer, self.weights_hash, own_resize)
        wanted = (extractor.name, layer, extractor.weights_hash, resize)
        if self.extractor and own != wanted:
            raise UserError(
                f"{path} is of another extractor ({_named(*own)}) than this evaluation's "
                f"({_named(*wanted)}); compute it again with "
                f"{script('compute_statistics')}"
            )


def _resizing_text(about: Mapping[str, Any]) -> str:
    size = about["size"]
    to = f" to {size[1]} x {size[0]}" if size else ""
    return f"resize {about['resize']}{to}, crop {about['crop']}"


def _with_the_same_resizing(about: Mapping[str, Any]) -> str:
    size, flags = about["size"], {"resize": about["resize"], "crop": about["crop"]}
    square = size is None or size[0] == size[1]
    if square and size:
        flags["size"] = size[0]
    words = " ".join(f"--reference_{name} {value}" for name, value in flags.items())
    # `--reference_size` is of squares; other sizes are those of samples.
    return f"evaluate {'' if square else f'samples of {size[1]} x {size[0]} pixels '}with {words}"


def _named(extractor: str, layer: str, weights_hash: str, resize: str) -> str:
    return f"{extractor}, layer {layer}, weights {weights_hash[:8]}, resize {resize}"


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.is_file():
        raise UserError(f"{absence('statistics file', path)}; give an .npz with mu and sigma")
    try:
        with np.load(path, allow_pickle=False) as file:  # pickles could run code
            sizes = {entry.filename: entry.file_size for entry in file.zip.infolist()}
            if any(size > MOST_BYTES for name, size in sizes.items() if name != IMAGES_FILE):
                raise ValueError("it says that it holds much more than statistics are")
            wanted = {"about"}.union(*NUMBERED)
            arrays = {n: array_of(file, n) for n in wanted if n in file.files}
    except NOT_READ as error:
        reason = error if zipfile.is_zipfile(path) else "it is no zip file, as every .npz is"
        raise UserError(f"{path} is no statistics file ({reason}); give an .npz") from None
    if len(missing := NUMBERED[0] - set(arrays)) == 2:
        raise UserError(
            f"{path} has neither images (arr_0) nor statistics (mu and sigma); give an .npz of "
            f"{script('compute_statistics')} or of the ADM suite"
        )
    if len(half := NUMBERED[1] - set(arrays)) == 1:
        missing |= half
    if missing:
        raise UserError(
            f"{path} lacks {' and '.join(sorted(missing))}; give a file that "
            f"{script('compute_statistics')} wrote"
        )
    return arrays


def array_of(file: Mapping[str, Any], name: str) -> np.ndarray:
    """An array of an open `.npz`; ValueError for what is none, of which numpy gives the bytes."""
    array = file[name]
    if not isinstance(array, np.ndarray):
        raise ValueError(f"{name} is no array")
    return array


def _what_is_wrong(mean: np.ndarray, covariance: np.ndarray) -> str | None:
    """Why these are no mean and covariance; None if they can be."""
    for name, array in (("mu", mean), ("sigma", covariance)):
        if array.dtype.kind != "f" or array.dtype.itemsize < 4:
            return f"is no statistics file ({name} is {array.dtype}, not float64 or float32)"
    if mean.ndim != 1 or not len(mean) or covariance.shape != (len(mean), len(mean)):
        shapes = f"a mean of shape {mean.shape} and a covariance of {covariance.shape}"
        return f"has {shapes}, where D and D x D numbers are needed"
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return "holds NaN or infinity"
    largest = np.abs(covariance).max()
    if np.abs(covariance - covariance.T).max() > ASYMMETRY * largest:
        return "has a sigma that is not symmetric, which no covariance is"
    variances = covariance.diagonal()
    if variances.min() < 0:
        return "has a negative variance on the diagonal of sigma"
    if (covariance**2 > np.outer(variances, variances) + ASYMMETRY * largest**2).any():
        return "has a sigma with covariances above their variances, which no covariance matrix has"
    return None


def _about(path: Path, arrays: dict[str, np.ndarray]) -> dict[str, Any]:
    if "about" not in arrays:
        return {"protocol": {"note": FOREIGN}}
    try:
        about = json.loads(str(arrays["about"]))
    except ValueError:
        about = None
    if not isinstance(about, dict) or not _fits(about):
        raise UserError(f"{path} is damaged (its description); compute the statistics again")
    count = about.get("count")
    if count is not None and count < 2:
        raise UserError(f"{path} is of {count} images; a covariance needs 2 or more")
    return about


def _fits(about: Mapping[str, Any]) -> bool:
    """Whether the entries of a file's description, as far as there are any, are of their kinds."""
    there = [entry for entry in ABOUT.values() if entry in about]
    return all(isinstance(about[entry], KINDS.get(entry, str)) for entry in there)
