"""Depth and segmentation by small networks from files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from scripts import extract_depth, extract_segmentation
from taming.data.condition_maps import Depth, ImageMap
from taming.data.files.images import PLAIN, Reading, read_rgb
from taming.data.tools.extraction import (
    NetworkOptions,
    Report,
    depth_of,
    depth_picture,
    extract,
    labels_of,
    load_network,
    within,
)
from taming.errors import UserError
from tests.kit.images import ramps, truncate, write_image, write_turned
from tests.kit.launch import Ended, Launcher

AS_STORED = Reading(upright=False)
CPU = torch.device("cpu")
NETWORK = """
import torch
class Brightness(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))
    def forward(self, x):
        return self.scale * x.mean(dim=1)
def brightness():
    return Brightness()
"""


class Channels(nn.Module):
    """Labels 0, 1, 2: which of blue, green and red is furthest above its mean."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x[:, :, ::2, ::2]  # logits at half the size, as DeepLab's are smaller


@pytest.fixture
def run(launcher: Launcher, tmp_path: Path) -> Callable[..., Ended]:
    """Runs a script with arguments."""
    return lambda script, *args: launcher.run(args, tmp_path, program=f"scripts/{script}")


@pytest.mark.slow
def test_depth_of_a_folder_goes_on_and_passes_over_bad_images(
    run: Callable[..., Ended], tmp_path: Path
) -> None:
    for name in ("a", "in/b", "bad"):
        write_image(tmp_path / f"images/{name}.jpg", 40, 60)
    truncate(tmp_path / "images/bad.jpg", 0.6)
    (tmp_path / "net.py").write_text(NETWORK)
    args = ["--images", f"{tmp_path}/images", "--output", f"{tmp_path}/depth", "--device", "cpu"]
    args += ["--model", f"{tmp_path}/net.py", "--entry", "brightness"]
    first = run("extract_depth.py", *args)
    assert "2 written, 0 were there already, 1 image could not be read" in first.output
    assert first.code == 1 and first.output.count("bad.jpg cannot be read") == 1
    (tmp_path / "depth/a.png").unlink()
    again = run("extract_depth.py", *args)
    assert "1 written, 1 were there already" in again.output and again.code == 1
    (tmp_path / "images/bad.jpg").unlink()
    assert run("extract_depth.py", *args).code == 0
    depth = Depth().read(str(tmp_path / "depth/in/b.png"))
    assert depth.shape == (40, 60) and depth[0, 0] == -1 and depth[-1, -1] > 0.8


def test_maps_fit_their_images_whether_both_are_turned_or_neither(tmp_path: Path) -> None:
    """The network sees the image upright; the map has the image's own EXIF orientation."""
    (tmp_path / "images").mkdir()
    stored = [read_rgb(write_turned(tmp_path / f"images/{n}.png", n), AS_STORED) for n in (6, 3)]
    seen: list[np.ndarray] = []

    def picture_of(image: np.ndarray) -> Image.Image:
        seen.append(image)
        return Image.fromarray(image[..., 0])

    names = ["6.png", "3.png"]
    assert extract(names, tmp_path / "images", tmp_path / "maps", picture_of).written == 2
    np.testing.assert_array_equal(seen[0], np.rot90(stored[0], 3))
    for name, pixels in zip(names, stored, strict=True):
        upright = read_rgb(str(tmp_path / "images" / name))
        for reading, expected in ((PLAIN, upright), (AS_STORED, pixels)):
            found = ImageMap().read(str(tmp_path / "maps" / name), reading)
            np.testing.assert_array_equal(found[..., 0], expected[..., 0])
    extract(["6.png"], tmp_path / "images", tmp_path / "raw", picture_of, upright=False)
    np.testing.assert_array_equal(seen[-1], stored[0])


def test_maps_of_changed_images_are_made_again(tmp_path: Path) -> None:
    names = ["a.png", "b.png", "c.png"]
    for name in names:
        write_image(tmp_path / "images" / name, 4, 6)
    made: list[int] = []

    def again() -> tuple[int, int]:
        seen = made.append
        report = extract(
            names, tmp_path / "images", tmp_path / "maps", lambda x: seen(1) or Image.fromarray(x)
        )
        return report.written, report.already

    assert again() == (3, 0) and again() == (0, 3)
    own = Image.new("L", (6, 4))
    own.save(tmp_path / "maps" / "c.png")  # the user's, whose image is not known
    write_image(tmp_path / "images" / "c.png", 8, 8)
    os.utime(tmp_path / "images" / "a.png", (0, 0))  # copied: the same content
    assert again() == (0, 3)
    write_image(tmp_path / "images" / "b.png", 8, 8)
    assert again() == (1, 2) and again() == (0, 3)
    with Image.open(tmp_path / "maps" / "b.png") as changed:
        assert changed.size == (8, 8)


def test_depth_is_kept_to_the_bit() -> None:
    depth = np.random.RandomState(0).normal(size=(5, 7)).astype(np.float32)
    picture = np.asarray(depth_picture(depth))
    np.testing.assert_array_equal(picture.view("<f4")[..., 0], depth)


def test_segmentation_from_torchscript(run: Callable[..., Ended], tmp_path: Path) -> None:
    torch.jit.trace(Channels(), torch.zeros(1, 3, 8, 8)).save(str(tmp_path / "net.pt"))
    image = np.zeros((16, 24, 3), np.uint8)
    image[:, :8, 2], image[:, 8:16, 1], image[:, 16:, 0] = 255, 255, 255
    (tmp_path / "images").mkdir()
    Image.fromarray(image).save(tmp_path / "images/a.png")
    args = ["--images", f"{tmp_path}/images", "--model", f"{tmp_path}/net.pt", "--device", "cpu"]
    result = run("extract_segmentation.py", f"{tmp_path}/labels", *args)
    assert "1 written" in result.output, result.output
    found = Image.open(tmp_path / "labels/a.png")
    labels = np.asarray(found)
    assert found.mode == "L" and labels.shape == (16, 24)
    assert labels[8, [3, 12, 21]].tolist() == [0, 1, 2]


def test_networks_that_cannot_be_loaded(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text(NETWORK)
    (tmp_path / "hubconf.py").write_text(NETWORK)
    (tmp_path / "bad.pt").write_bytes(b"no model")
    torch.save({"scale": torch.full((1,), 3.0)}, tmp_path / "weights.pt")
    for model in ("net.py", ""):
        options = NetworkOptions(str(tmp_path / model), "brightness", f"{tmp_path}/weights.pt")
        network = load_network(options, CPU)
        assert network.scale == 3 and not network.training
    scale = torch.full((1,), 4.0)
    torch.save({"model": {"module.scale": scale}, "optimizer": {}}, tmp_path / "midas.pt")
    save_file({"scale": scale}, tmp_path / "w.safetensors")
    torch.save({"scales": scale}, tmp_path / "other.pt")
    model = str(tmp_path / "net.py")
    for file in ("midas.pt", "w.safetensors"):
        options = NetworkOptions(model, "brightness", f"{tmp_path}/{file}")
        assert load_network(options, CPU).scale == 4
    refused = {"other.pt": "1 key missing .scale.", "absent.pt": "absent.pt", "bad.pt": "text"}
    for file, message in refused.items():
        with pytest.raises(UserError, match=f"^--weights: .*{message}"):
            load_network(NetworkOptions(model, "brightness", f"{tmp_path}/{file}"), CPU)
    for model, entry in (("bad.pt", "x"), ("net.py", "absent")):
        with pytest.raises(UserError, match=f"--model .*{model} cannot be loaded"):
            load_network(NetworkOptions(str(tmp_path / model), entry), CPU)
    for model in ("absent.pt", "nets/absent.pt", "absent.py", "absent", "a/b/c"):
        with pytest.raises(UserError, match=f"--model {model} .*no such file or folder"):
            load_network(NetworkOptions(model, "x"), CPU)


@pytest.mark.parametrize("model", ["owner/repository", "owner/repository:v2"])
def test_hub_without_a_network(model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torch.hub.urlopen", unreachable)
    monkeypatch.setattr("urllib.request.urlopen", unreachable)
    with pytest.raises(UserError, match=f"--model {model} .*torch hub cannot be reached") as caught:
        load_network(NetworkOptions(model, "x"), CPU)
    assert "\n" not in str(caught.value)


def test_weights_of_one_s_own_are_not_fetched_as_well(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def load(*names: str, **options: Any) -> nn.Module:
        asked.append((names, options))
        return nn.BatchNorm1d(1)

    monkeypatch.setattr("torch.hub.load", load)
    weights = {name: torch.full((1,), 3.0) for name in ("weight", "bias")}
    weights |= {f"running_{name}": torch.ones(1) for name in ("mean", "var")}  # of before 0.4.1
    torch.save({"state_dict": weights}, tmp_path / "w.pt")
    for file in (None, str(tmp_path / "w.pt")):
        network = load_network(NetworkOptions("a/b", "f", file), CPU, pretrained=True)
    assert network.weight.item() == 3 and not network.training
    common = {"trust_repo": True}
    assert asked == [(("a/b", "f"), common | {"pretrained": True}), (("a/b", "f"), common)]


def test_wrong_devices_and_folders_are_named(run: Callable[..., Ended], tmp_path: Path) -> None:
    write_image(tmp_path / "a.png")
    for script, args in (("depth", ["-o", "x"]), ("segmentation", ["x"])):
        result = run(f"extract_{script}.py", *args, "--images", str(tmp_path), "--device", "gpu")
        assert result.code == 2 and "--device takes auto" in result.output
        result = run(f"extract_{script}.py", *args, "--images", str(tmp_path / "absent"))
        assert result.code == 2 and "there is no folder" in result.output


def test_sizes() -> None:
    assert within(375, 500, 384, 32) == (288, 384) and within(10, 4000, 384, 32) == (32, 384)
    image = ramps(375, 500)
    seen = []

    def network(x: torch.Tensor) -> torch.Tensor:
        seen.append(tuple(x.shape))
        return x[:, :1]

    assert depth_of(network, image, CPU).shape == (375, 500) and seen == [(1, 3, 288, 384)]
    large = ramps(100, 1026)
    assert labels_of(network, large, CPU).shape == (100, 1026) and seen[1] == (1, 3, 50, 513)
    small = labels_of(lambda x: {"aux": -network(x), "out": x}, ramps(10, 20), CPU)
    assert seen[2] == (1, 3, 10, 20)  # never enlarged
    np.testing.assert_array_equal(small, labels_of(lambda x: x, ramps(10, 20), CPU))
    with pytest.raises(UserError, match="at most 256 labels"):
        labels_of(lambda x: x[0], image, CPU)


def test_published_networks_and_imagenets_folders(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is asked of torch hub, and which images are read as they are in their files."""
    write_image(tmp_path / "a.png")
    loaded: list[tuple[str, str, dict[str, Any]]] = []
    read: list[tuple[Any, ...]] = []

    def load(options: NetworkOptions, device: torch.device, **pretrained: Any) -> None:
        loaded.append((options.model, options.entry, pretrained))

    def noted(*folders: Any, upright: bool = True) -> Report:
        read.append((*map(str, folders[1:3]), upright))
        return Report()

    for script in (extract_depth, extract_segmentation):
        monkeypatch.setattr(script, "load_network", load)
        monkeypatch.setattr(script, "extract", noted)
    monkeypatch.setattr(extract_depth, "prepare", lambda split, name: [f"{name}.JPEG"])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    images = ["--images", str(tmp_path), "--device", "cpu"]
    extract_segmentation.main(["labels", *images])
    extract_depth.main([*images, "-o", "depth"])
    extract_depth.main(["--device", "cpu", "-o", "depth"])
    assert read[:2] == [(str(tmp_path), "labels", True), (str(tmp_path), "depth", True)]
    root = tmp_path / "autoencoders/data"
    assert read[2:] == [
        (str(root / "ILSVRC2012_train" / "data"), "depth/train", False),
        (str(root / "ILSVRC2012_validation" / "data"), "depth/val", False),
    ]
    labels = {"pretrained": "cocostuff164k", "n_classes": 182}
    assert loaded == [
        ("kazuto1011/deeplab-pytorch", "deeplabv2_resnet101", labels),
        *[("intel-isl/MiDaS:v2", "MiDaS", {"pretrained": True})] * 2,
    ]


def test_nothing_to_extract(tmp_path: Path) -> None:
    report = extract([], tmp_path, tmp_path, depth_picture)
    assert (report.written, report.already, report.bad) == (0, 0, [])


@pytest.mark.parametrize("main", [extract_depth.main, extract_segmentation.main])
def test_images_of_one_name_are_refused_before_one_map_replaces_another(
    tmp_path: Path, main: Callable[[list[str]], None], capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("b/a.png", "b/a.jpg", "a.png"):
        write_image(tmp_path / "images" / name, 32, 32)
    output = ["-o"] if main is extract_depth.main else []
    with pytest.raises(SystemExit):
        main(["--images", str(tmp_path / "images"), *output, str(tmp_path / "maps")])
    assert "has b/a.jpg and b/a.png, whose maps would both be b/a.png" in capsys.readouterr().err


def test_weights_are_a_file_of_the_network_s_and_damaged_images_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_image(tmp_path / "images/a.png", 32, 32)
    (tmp_path / "net.py").write_text(NETWORK)
    torch.save({"scale": torch.full((1,), 2.0)}, tmp_path / "w.pt")
    files = ["--images", str(tmp_path / "images"), "--model", str(tmp_path / "net.py")]
    for name, weights in (("one", []), ("two", ["--weights", str(tmp_path / "w.pt")])):
        output = ["-o", str(tmp_path / name), "--entry", "brightness"]
        extract_depth.main([*files, *output, *weights])
    write_image(tmp_path / "images/b.png", 32, 32)
    truncate(tmp_path / "images/b.png")
    maps = str(tmp_path / "labels")
    for main, place in ((extract_depth.main, ["-o", maps]), (extract_segmentation.main, [maps])):
        monkeypatch.setattr(extract_segmentation, "labels_of", lambda _, x, __: x[..., 0])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*files, *place, "--entry", "brightness"])
        said = capsys.readouterr()
        assert stop.value.code == 1 and said.err.count("b.png") == 1
        assert "1 image could not be read" in said.out
    made = [(tmp_path / name / "a.png").read_bytes() for name in ("one", "two")]
    assert made[0] != made[1]
