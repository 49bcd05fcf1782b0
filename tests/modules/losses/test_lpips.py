import copy
from pathlib import Path
from urllib.error import URLError

import pytest
import torch
from torchvision.models import get_model_weights

from taming.errors import UserError
from taming.modules.losses.lpips import (
    BACKBONES,
    LPIPS,
    NetLinLayer,
    calibrated_layers,
    normalize_tensor,
    spatial_average,
    vgg16,
)
from tests.modules.losses.backbones import backbone_file
from tests.support import assert_close, fill_by_name


def filled(net="vgg"):
    """With weights that make positive distances, as the calibrated layers do."""
    loss = fill_by_name(LPIPS(net))
    for index in range(5):
        getattr(loss, f"lin{index}").model[0].weight.abs_()
    return loss


@pytest.fixture
def vgg_file(tmp_path, monkeypatch):
    """A file like torchvision's VGG16, which passes for the real one."""
    return backbone_file("vgg", tmp_path, monkeypatch)


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_equals_the_lpips_package(net):
    import lpips

    torch.manual_seed(0)
    theirs = lpips.LPIPS(net=net, pnet_rand=True, verbose=False).eval()
    ours = LPIPS(net)
    for name in ("shift", "scale"):  # are not among the weights that are loaded
        assert torch.equal(ours.scaling_layer.get_buffer(name), getattr(theirs.scaling_layer, name))
    state = {k: v for k, v in theirs.state_dict().items() if not k.startswith("lins.")}
    ours.load_state_dict(state, strict=True)
    first, second = torch.rand(2, 2, 3, 32, 48) * 2 - 1
    first.requires_grad_()
    expected = theirs(first, second)
    (gradient,) = torch.autograd.grad(expected.sum(), first)
    distance = ours(first, second)
    torch.testing.assert_close(distance, expected, atol=1e-7, rtol=1e-5)
    (ours_gradient,) = torch.autograd.grad(distance.sum(), first)
    torch.testing.assert_close(ours_gradient, gradient, atol=1e-8, rtol=1e-3)


def test_frozen_and_always_in_eval_mode():
    loss = filled().train()
    assert not loss.training and not loss.net.training
    assert not any(parameter.requires_grad for parameter in loss.parameters())
    images = torch.rand(1, 3, 16, 16)
    assert not loss(images, -images).requires_grad


def test_one_channel_counts_as_grey():
    loss = filled()
    first, second = torch.rand(2, 2, 1, 16, 20)
    assert_close(
        loss(first, second), loss(first.expand(-1, 3, -1, -1), second.expand(-1, 3, -1, -1))
    )


@pytest.mark.parametrize(
    ("net", "shape"),
    [("vgg", (1, 2, 32, 32)), ("vgg", (1, 3, 15, 32)), ("alex", (1, 3, 32, 30))],
)
def test_other_images_are_refused(net, shape):
    with pytest.raises(UserError, match="perceptual_weight: 0"):
        filled(net)(torch.rand(shape), torch.rand(shape))


@pytest.mark.parametrize(("net", "side"), [("vgg", 16), ("alex", 31)])
def test_the_smallest_images(net, side):
    first, second = torch.rand(2, 1, 3, side, side)
    assert filled(net)(first, second) > 0


def test_gradients_are_finite_where_all_features_are_zero():
    x = torch.zeros(1, 4, 2, 2, requires_grad=True)
    y = normalize_tensor(x)
    y.square().sum().backward()
    assert y.abs().max() == 0 and torch.isfinite(x.grad).all()
    loss = filled()
    for slice_ in loss.net.children():
        for name, parameter in slice_.named_parameters():
            if name.endswith("bias"):
                parameter.fill_(-50)
    images = torch.rand(1, 3, 16, 16, requires_grad=True)
    loss(images, torch.rand(1, 3, 16, 16)).sum().backward()
    assert torch.isfinite(images.grad).all()


def test_autocast_changes_nothing():
    loss = filled()
    first, second = torch.rand(2, 1, 3, 16, 16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        distance = loss(first, second)
    assert torch.equal(distance, loss(first, second))
    assert torch.equal(loss(first.double(), second.double()), distance)


def test_averages():
    x = torch.randn(2, 3, 4, 5)
    assert_close(spatial_average(x, keepdim=False), x.flatten(2).mean(dim=2))
    assert spatial_average(x).shape == (2, 3, 1, 1)
    assert_close(normalize_tensor(x).square().sum(dim=1), torch.ones(2, 4, 5))


def test_never_works_without_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("TAMING_VGG16", str(tmp_path / "missing.pth"))
    loss, images = LPIPS(), torch.rand(1, 3, 16, 16)
    with pytest.raises(UserError, match="missing.pth.*lossconfig.params.perceptual_weight=0"):
        loss(images, images)
    # A checkpoint of a model that was never prepared does not count either.
    other = filled()
    assert other.ready
    other.load_state_dict(loss.state_dict())
    assert not other.ready
    loss.load_state_dict(filled().state_dict())
    assert loss.ready


def test_part_of_the_weights_is_not_enough():
    loss = LPIPS()
    state = {k: v for k, v in filled().state_dict().items() if k.startswith("lin")}
    loss.load_state_dict(state, strict=False)
    assert not loss.ready


@pytest.mark.parametrize("way", ["argument", "variable", "cache"])
def test_prepare_finds_the_backbone(vgg_file, monkeypatch, tmp_path, way):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    if way == "cache":
        place = tmp_path / "home" / "hub" / "checkpoints" / "vgg16-397923af.pth"
        place.parent.mkdir(parents=True)
        vgg_file.rename(place)
    if way == "variable":
        monkeypatch.setenv("TAMING_VGG16", str(vgg_file))
    if way == "argument":  # which comes before the variable
        monkeypatch.setenv("TAMING_VGG16", "/nowhere/vgg.pth")
    loss = LPIPS()
    loss.prepare(str(vgg_file) if way == "argument" else None)
    assert loss.ready and not loss.lin0.model[0].weight.requires_grad
    state = loss.state_dict()
    assert torch.equal(state["lin3.model.1.weight"], calibrated_layers()["lin3.model.1.weight"])
    assert 0.019 < state["net.slice5.28.weight"].std() < 0.021
    assert loss(torch.rand(1, 3, 16, 16), torch.rand(1, 3, 16, 16)) > 0


@pytest.mark.parametrize("way", ["use", "load", "class", "eval"])
def test_weights_load_by_themselves(vgg_file, monkeypatch, way):
    monkeypatch.setenv("TAMING_VGG16", str(vgg_file))
    images = torch.rand(2, 1, 3, 16, 16)
    loss = LPIPS.from_pretrained() if way == "class" else LPIPS()
    assert loss.ready == (way == "class")
    if way == "load":
        loss.load_from_pretrained()
        assert loss.ready
    if way == "eval":
        loss = copy.deepcopy(loss.eval()).to("cpu")
    assert loss(*images).shape == (1, 1, 1, 1) and loss(*images) > 0
    with pytest.raises(UserError, match="no LPIPS weights named alex"):
        loss.load_from_pretrained("alex")


def test_the_published_parts(vgg_file, monkeypatch):
    monkeypatch.setenv("TAMING_VGG16", str(vgg_file))
    images, loss = torch.rand(1, 3, 32, 32), LPIPS.from_pretrained()
    features = vgg16()(images)
    assert features._fields == ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")
    for ours, own in zip(features, loss.net(images), strict=True):
        assert torch.equal(ours, own)
    assert not any(p.requires_grad for p in vgg16(pretrained=False).parameters())
    layer = NetLinLayer(4, use_dropout=True)
    assert layer.state_dict().keys() == {"model.1.weight"}
    assert NetLinLayer(4).state_dict().keys() == {"model.0.weight"}
    assert layer(torch.rand(1, 4, 2, 3)).shape == (1, 1, 2, 3)


def test_prepare_finds_alexnet(monkeypatch, tmp_path):
    path = backbone_file("alex", tmp_path, monkeypatch)
    loss = LPIPS("alex")
    with pytest.raises(UserError, match="not torchvision's AlexNet"):
        (tmp_path / "other.pth").write_bytes(b"other")
        loss.prepare(str(tmp_path / "other.pth"))
    monkeypatch.setenv("TAMING_ALEXNET", str(path))
    loss.prepare()
    state, weights = loss.state_dict(), torch.load(path)
    assert torch.equal(
        state["lin3.model.1.weight"], calibrated_layers("alex")["lin3.model.1.weight"]
    )
    for place, name in (("slice2.3", "3"), ("slice4.8", "8"), ("slice5.10", "10")):
        assert torch.equal(state[f"net.{place}.weight"], weights[f"features.{name}.weight"])


@pytest.mark.parametrize("net", ["vgg", "alex"])
def test_files_are_known_by_the_hashes_in_their_published_names(net):
    name, digest, *_ = BACKBONES[net]
    assert f"-{digest}.pth" in str(get_model_weights(name.lower())["IMAGENET1K_V1"].url)


def test_prepare_keeps_what_a_checkpoint_brought():
    loss = filled()
    before = loss.lin0.model[0].weight.clone()
    loss.prepare("/nowhere/vgg.pth")
    assert torch.equal(loss.lin0.model[0].weight, before)


def test_wrong_and_missing_files_are_named(tmp_path, monkeypatch):
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(b"not a VGG")
    with pytest.raises(UserError, match="wrong.pth is not torchvision's VGG16"):
        LPIPS().prepare(str(wrong))
    monkeypatch.setenv("TAMING_VGG16", str(tmp_path / "missing.pth"))
    with pytest.raises(UserError, match="TAMING_VGG16.*missing.pth"):
        LPIPS().prepare()


def test_offline_there_are_three_ways_out(tmp_path, monkeypatch):
    def offline(url, path, **options):
        assert Path(path).parent.is_dir() and options == {"hash_prefix": "397923af"}
        raise URLError("no network")

    monkeypatch.delenv("TAMING_VGG16", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "_hub_dir", None)
    monkeypatch.setattr(torch.hub, "download_url_to_file", offline)
    with pytest.raises(UserError, match="vgg16-397923af.pth") as caught:
        LPIPS().prepare()
    message = str(caught.value)
    assert "vgg_path" in message and "TAMING_VGG16" in message and "perceptual_weight=0" in message
