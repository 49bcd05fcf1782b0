"""Extractors, their weights, and Inception's numbers against torch-fidelity's command."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch_fidelity import feature_extractor_inceptionv3 as inception

from taming.downloads import file_hash
from taming.errors import UserError
from taming.evaluation.metrics.extractor_files import (
    INCEPTION,
    WEIGHTS_VARIABLE,
    default_layers,
    weights_file,
)
from taming.evaluation.metrics.feature_bank import FeatureBank
from taming.evaluation.metrics.features import Extractor, FeatureRequest
from taming.evaluation.metrics.fid import frechet_distance
from taming.evaluation.metrics.inception_score import InceptionScores
from taming.evaluation.metrics.kid import kernel_distance
from taming.evaluation.metrics.precision_recall import precision_recall
from tests.evaluation.features import bank_of, moments_of, scores_of
from tests.kit.extractor import TinyExtractor, register_tiny, write_inception_weights
from tests.kit.images import read_images, scene_folder

PICTURES = torch.randint(0, 256, (6, 3, 20, 16), dtype=torch.uint8)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv(WEIGHTS_VARIABLE, raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inception_weights(tmp_path_factory.mktemp("weights") / "random.pth")


@pytest.mark.slow
@pytest.mark.parametrize(("layer", "brightness"), [("192", 0.97), ("2048", 0.8)])
def test_inception_equals_torch_fidelitys_command(
    tmp_path: Path, weights: Path, layer: str, brightness: float
) -> None:
    """FID of few pictures is compared where rounding lets the command's own have the digits: of the
    2048 x 2048 covariance of 8 pictures, it takes the roots of 2041 eigenvalues that should be 0.
    """
    folders = [
        scene_folder(tmp_path / "a", 8),
        scene_folder(tmp_path / "b", 8, 100, brightness),
    ]
    options = "--cpu --isc --fid --kid --prc --kid-subset-size 6 --isc-splits 4 --save-cpu-ram"
    options += f" --feature-extractor {INCEPTION} --feature-layer-fid {layer} --json --no-cache"
    result = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch_fidelity.fidelity",
            *options.split(),
            "--input1",
            str(folders[0]),
            "--input2",
            str(folders[1]),
            "--feature-extractor-weights-path",
            str(weights),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(result.stdout[result.stdout.index("{") :])
    extractor = Extractor(
        layers=dict.fromkeys((layer, *default_layers(INCEPTION))), weights=weights
    )
    pair = [extractor(read_images(folder)) for folder in folders]
    moments = [moments_of(features[layer]) for features in pair]
    banks = [bank_of(features["2048"]) for features in pair]
    scores = scores_of(pair[0]["logits_unbiased"], splits=4)
    found = {
        "frechet_inception_distance": frechet_distance(*moments),
        **named("inception_score", scores.compute()),
        **named("kernel_inception_distance", kernel_distance(*banks, subset_size=6)),
        **dict(zip(("precision", "recall", "f_score"), precision_recall(*banks), strict=True)),
    }
    assert found == pytest.approx(expected, rel=1e-6)
    assert brightness < 0.9 or found["f_score"] > 0


def named(name: str, result: tuple[float, float]) -> dict[str, float]:
    return {f"{name}_mean": result[0], f"{name}_std": result[1]}


def test_layers_and_protocol_are_the_extractors_own() -> None:
    assert default_layers(INCEPTION) == ("2048", "logits_unbiased")
    assert default_layers("dinov2-vit-b-14") == ("dinov2",)
    extractor = Extractor(register_tiny())
    assert extractor.layers == ("16", "logits")
    features = extractor(PICTURES)
    assert features["16"].shape == (6, 16) and features["logits"].shape == (6, 10)
    assert extractor.describe() == {
        "extractor": "tiny",
        "weights_sha256": extractor.weights_hash,
        "resize": "by the extractor",
        "dtype": "float32",
        "compiled": False,
    }
    one = Extractor("tiny", ["logits"])(PICTURES)
    assert list(one) == ["logits"] and torch.equal(one["logits"], features["logits"])


def test_inception_says_how_it_resizes(weights: Path) -> None:
    extractor = Extractor(weights=weights, layers=["64"])
    description = extractor.describe()
    assert description["resize"] == "tf1-bilinear 299"
    assert description["weights_sha256"] == file_hash(weights)
    sizes = [extractor(PICTURES[:1, :, :side, :side])["64"] for side in (8, 16)]
    assert sizes[0].shape == sizes[1].shape == (1, 64)


def test_options_change_features_little_and_are_said() -> None:
    exact = Extractor(register_tiny())(PICTURES)["16"]
    half = Extractor("tiny", dtype=torch.float16)
    found = half(PICTURES)["16"]
    assert found.dtype == torch.float32 and half.describe()["dtype"] == "float16"
    assert 0 < (found - exact).norm() / exact.norm() < 0.001
    with pytest.raises(UserError, match="float32 or float16, not in torch.bfloat16"):
        Extractor("tiny", dtype=torch.bfloat16)


def test_inceptions_half_precision_starts_behind_its_stem(weights: Path) -> None:
    pair, normalized = [], []
    for dtype in (torch.float32, torch.float16):
        extractor = Extractor(weights=weights, layers=["192", "768"], dtype=dtype)
        extractor.module.Mixed_6a.branch3x3.bn.register_forward_hook(
            lambda *call: normalized.append(call[2].dtype)
        )
        pair.append(extractor(PICTURES[:1]))
    assert normalized == [torch.float32] * 2  # not in half precision, anywhere
    assert torch.equal(pair[0]["192"], pair[1]["192"])
    assert not torch.equal(pair[0]["768"], pair[1]["768"])
    torch.testing.assert_close(pair[0]["768"], pair[1]["768"], rtol=0.002, atol=0.002)


@pytest.mark.slow
def test_compiled_features_are_the_same() -> None:
    compiled = Extractor(register_tiny(), compiled=True)
    assert compiled.describe()["compiled"] is True
    torch.testing.assert_close(compiled(PICTURES), Extractor("tiny")(PICTURES))


def test_layout_in_memory_does_not_matter() -> None:
    extractor = Extractor(register_tiny())
    other = PICTURES.contiguous(memory_format=torch.channels_last)
    assert torch.equal(extractor(other)["16"], extractor(PICTURES)["16"])


def test_weights_of_a_file_have_its_hash(tmp_path: Path) -> None:
    state = Extractor(register_tiny()).module.state_dict()
    torch.save({name: tensor * 2 for name, tensor in state.items()}, tmp_path / "own.pth")
    own = Extractor("tiny", weights=tmp_path / "own.pth")
    assert own.weights_hash == file_hash(tmp_path / "own.pth")
    assert not torch.equal(own(PICTURES)["16"], Extractor("tiny")(PICTURES)["16"])
    torch.save({name: tensor.clone() for name, tensor in state.items()}, tmp_path / "same.pth")
    same = Extractor("tiny", weights=tmp_path / "same.pth")
    assert torch.equal(same(PICTURES)["16"], Extractor("tiny")(PICTURES)["16"])


def test_the_hash_without_a_file_is_of_the_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    before = Extractor(register_tiny()).weights_hash
    assert Extractor("tiny").weights_hash == before and len(before) == 64
    build = TinyExtractor.__init__

    def shifted(self: TinyExtractor) -> None:
        self.fc.bias.data[0] += 1e-3

    def of_another_shape(self: TinyExtractor) -> None:
        self.fc.bias.data = self.fc.bias.data.view(2, 5)

    for change in (shifted, of_another_shape):

        def other(self: TinyExtractor, *args: object, _change: Any = change, **kw: object) -> None:
            build(self, *args, **kw)  # type: ignore[arg-type]
            _change(self)

        monkeypatch.setattr(TinyExtractor, "__init__", other)
        assert Extractor("tiny").weights_hash != before


def test_keys_are_of_all_that_decides_what_is_counted(tmp_path: Path) -> None:
    tiny = Extractor(register_tiny())
    state = {name: -tensor for name, tensor in tiny.module.state_dict().items()}
    torch.save(state, tmp_path / "other.pth")
    request = FeatureRequest(InceptionScores, tiny, "logits", (("splits", 3),))
    others = [
        replace(request, accumulator=FeatureBank),
        replace(request, layer="16"),
        replace(request, options=(("splits", 4),)),
        replace(request, extractor=Extractor("tiny", weights=tmp_path / "other.pth")),
        replace(request, extractor=Extractor("tiny", dtype=torch.float16)),
    ]
    keys = {one.key("images") for one in (request, *others)} | {request.key("other images")}
    assert len(keys) == 7
    assert replace(request, extractor=Extractor("tiny")).key("images") == request.key("images")
    scores = request.make(20)
    assert isinstance(scores, InceptionScores) and (scores.images, scores.splits) == (20, 3)
    assert isinstance(FeatureRequest(FeatureBank, tiny, "16").make(20), FeatureBank)


def test_weights_are_looked_for_in_order(
    tmp_path: Path, empty_cache: Path, monkeypatch: pytest.MonkeyPatch, weights: Path
) -> None:
    name = f"weights-inception-{file_hash(weights)[:8]}.pth"
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", f"{tmp_path.as_uri()}/{name}")
    shutil.copy(weights, tmp_path / name)
    assert weights_file(INCEPTION) == empty_cache / name  # downloaded
    (tmp_path / name).unlink()
    assert weights_file(INCEPTION) == empty_cache / name
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(weights))
    assert weights_file(INCEPTION) == weights
    given = tmp_path / "given.pth"
    given.write_bytes(b"anything")
    assert weights_file(INCEPTION, given) == given
    assert weights_file(register_tiny()) is None  # the variable is not for it
    (tmp_path / "all").mkdir()  # a folder with the files of several extractors
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "all"))
    for extractor, file in ((INCEPTION, name), ("dinov2-vit-l-14", "dinov2_vitl14_pretrain.pth")):
        shutil.copy(weights, tmp_path / "all" / file)
        assert weights_file(extractor) == tmp_path / "all" / file
    with pytest.raises(UserError, match=r"there is no file .*all/dinov2_vits14_pretrain.pth"):
        weights_file("dinov2-vit-s-14")


def test_a_damaged_published_file_is_said(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    empty_cache.mkdir(parents=True)
    file = empty_cache / inception.URL_INCEPTION_V3.rsplit("/", 1)[-1]
    file.write_bytes(b"half of it")
    with pytest.raises(UserError, match="6726825d.pth is damaged .* start with 6726825d"):
        Extractor()
    elsewhere = shutil.copy(file, empty_cache.parent)
    with pytest.raises(UserError, match="is damaged"):
        weights_file(INCEPTION, elsewhere)


def test_without_a_network_one_sentence_names_file_and_place(
    empty_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inception, "URL_INCEPTION_V3", "http://127.0.0.1:9/inception-6726825d.pth")
    with pytest.raises(UserError) as error:
        Extractor()
    message = str(error.value)
    assert "needs the file inception-6726825d.pth" in message
    assert f"put it at {empty_cache / 'inception-6726825d.pth'}" in message
    assert "--weights" in message and WEIGHTS_VARIABLE in message


class Refused:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return print, ("code of a stranger",)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            {"conv.weight": torch.zeros(1)},
            r"does not fit the extractor inception-v3-compat \(it has other tensors\)$",
        ),
        ({"conv.weight": Refused()}, "holds no model weights"),
        (None, "is a text file"),
    ],
)
def test_files_that_are_no_weights(
    tmp_path: Path, content: object, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "bad.pth"
    file.write_bytes(b"text") if content is None else torch.save(content, file)
    with pytest.raises(UserError, match=f"bad.pth {message}"):
        Extractor(weights=file)
    assert "stranger" not in capsys.readouterr().out


def test_missing_files_name_where_they_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UserError, match="^there is no file .*nowhere.pth"):
        weights_file(INCEPTION, tmp_path / "nowhere.pth")
    monkeypatch.setenv(WEIGHTS_VARIABLE, str(tmp_path / "nowhere.pth"))
    with pytest.raises(UserError, match=f"{WEIGHTS_VARIABLE}: there is no file"):
        weights_file(INCEPTION)


def test_unknown_names() -> None:
    with pytest.raises(UserError, match="no feature extractor inceptoin; there are .*vgg16"):
        Extractor("inceptoin")
    with pytest.raises(UserError, match="tiny has no layer 2048; it has 16, logits"):
        Extractor(register_tiny(), ["2048"])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_no_numbers(value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    extractor = Extractor(register_tiny())

    def broken(images: Tensor) -> tuple[Tensor, ...]:
        features = torch.zeros(len(images), 16)
        features[1, 3] = value
        return features, torch.zeros(len(images), 10)

    monkeypatch.setattr(extractor.module, "forward", broken)
    with pytest.raises(UserError, match=r"extractor tiny gives NaN .* \(layer 16, 1 of 6 images"):
        extractor(PICTURES)
