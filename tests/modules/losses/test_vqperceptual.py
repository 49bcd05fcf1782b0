import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.modules import losses
from taming.modules.losses.adaptive_weight import norm_at
from taming.modules.losses.segmentation import BCELossWithQuant
from taming.modules.losses.vqperceptual import (
    DummyLoss,
    VQLPIPSWithDiscriminator,
    adopt_weight,
    hinge_d_loss,
    vanilla_d_loss,
)
from taming.modules.util import ActNorm
from tests.support import assert_close, defaults, double_precision, fill_by_name, load_golden

SMALL = {"disc_start": 0, "perceptual_weight": 0.0, "disc_num_layers": 2, "disc_ndf": 8}


class LastConv(nn.Module):
    """A stand-in for the first stage: features -> one convolution -> reconstructions."""

    def __init__(self, channels=3, **options):
        super().__init__()
        torch.manual_seed(1)
        self.features = nn.Conv2d(channels, 8, 3, padding=1)
        self.conv_out = nn.Conv2d(8, channels, 3, padding=1)
        self.loss = VQLPIPSWithDiscriminator(**{**SMALL, **options})
        self.images = torch.rand(2, channels, 16, 16) * 2 - 1
        self.codebook_loss = torch.tensor([0.25], requires_grad=True)

    def reconstruct(self):
        return self.conv_out(torch.tanh(self.features(self.images)))

    def step(self, optimizer_idx, global_step=0, **options):
        return self.loss(
            self.codebook_loss,
            self.images,
            self.reconstruct(),
            optimizer_idx,
            global_step,
            last_layer=self.conv_out.weight,
            **options,
        )

    def grads(self):
        return [p.grad for module in (self.features, self.conv_out) for p in module.parameters()]


@pytest.fixture
def double():
    with double_precision():
        yield


def test_golden_training_run(double):
    golden, spec = load_golden("train_vqgan_hinge")
    stage = fill_by_name(instantiate_from_config(spec["model"]), seed=5).double().train()
    ours = [p for name, p in stage.named_parameters() if not name.startswith("loss.")]
    adam = {"lr": spec["learning_rate"], "betas": (0.5, 0.9)}
    optimizers = (
        torch.optim.Adam(ours, **adam),
        torch.optim.Adam(stage.loss.discriminator.parameters(), **adam),
    )
    for step, batch in enumerate(golden["batches"][:4]):
        images, logged = batch.movedim(3, 1).contiguous().double(), {}
        for index, optimizer in enumerate(optimizers):
            reconstructions, quant_loss = stage(images)
            last_layer = stage.decoder.conv_out.weight
            loss, terms = stage.loss(
                quant_loss, images, reconstructions, index, step, last_layer=last_layer
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            logged.update(terms)
        expected = spec["logs"][step]
        assert set(logged) == set(expected)
        for name, value in expected.items():
            assert logged[name].item() == pytest.approx(value, rel=5e-4, abs=5e-5), (step, name)
    assert stage.loss.discriminator.main[3].num_batches_tracked == 3 * 4


@pytest.mark.parametrize("perceptual", [False, True])
def test_one_backward_pass_equals_the_written_out_loss(perceptual):
    options = {"disc_weight": 0.8, "codebook_weight": 2.0, "perceptual_weight": 0.5 * perceptual}
    model = LastConv(**options).train()
    if perceptual:
        fill_by_name(model.loss.perceptual_loss)
    loss, logged = model.step(0)
    loss.backward()
    actual, at_codebook = model.grads(), model.codebook_loss.grad.clone()
    assert all(p.grad is None for p in model.loss.parameters())

    model.zero_grad(set_to_none=True)
    reconstructions = model.reconstruct()
    nll = (model.images - reconstructions).abs().mean()
    if perceptual:
        nll = nll + 0.5 * model.loss.perceptual_loss(model.images, reconstructions).mean()
    g_loss = -model.loss.discriminator(reconstructions).mean()
    nll_norm, g_norm = (
        torch.autograd.grad(term, model.conv_out.weight, retain_graph=True)[0].norm()
        for term in (nll, g_loss)
    )
    d_weight = (nll_norm / (g_norm + 1e-4)).clamp(0, 1e4).detach() * 0.8
    expected = nll + d_weight * g_loss + 2.0 * model.codebook_loss.mean()
    expected.backward()
    assert_close(loss, expected)
    assert_close(logged["train/d_weight"], d_weight)
    assert_close(logged["train/g_loss"], g_loss)
    for name, term in (("nll_loss", nll), ("rec_loss", nll), ("total_loss", expected)):
        assert_close(logged[f"train/{name}"], term)
    assert_close(logged["train/quant_loss"], model.codebook_loss.mean())
    p_loss = (nll - (model.images - reconstructions).abs().mean()) / 0.5
    assert_close(logged["train/p_loss"], p_loss)
    for gradient, reference in zip(actual, model.grads(), strict=True):
        torch.testing.assert_close(gradient, reference, atol=1e-7, rtol=1e-4)
    assert_close(at_codebook, torch.tensor([2.0]))


def test_the_adaptive_weight_is_at_most_ten_thousand():
    model = LastConv(disc_weight=0.8)
    nn.init.zeros_(model.loss.discriminator.main[-1].weight)  # its gradient is 0
    nn.init.constant_(model.features.bias, 100)  # every feature is 1
    logged = model.step(0)[1]
    nll = (model.images - model.reconstruct()).abs().mean()
    norm = torch.autograd.grad(nll, model.conv_out.weight)[0].norm()
    assert norm > 1 and logged["train/d_weight"] == torch.tensor(1e4) * 0.8


def test_scaled_losses_have_scaled_gradients():
    model = LastConv()
    loss, _ = model.step(0)
    loss.backward()
    plain = [gradient.clone() for gradient in model.grads()]
    model.zero_grad()
    model.loss.discriminator.apply(reset_running_statistics)
    loss, _ = model.step(0)
    (1024 * loss).backward()
    for gradient, scaled in zip(plain, model.grads(), strict=True):
        torch.testing.assert_close(scaled, 1024 * gradient)


def reset_running_statistics(module):
    if isinstance(module, nn.BatchNorm2d):
        module.reset_running_stats()


def test_discriminator_step():
    model = LastConv(disc_factor=0.5)
    loss, logged = model.step(1, split="val")
    loss.backward()
    assert all(gradient is None for gradient in model.grads())
    assert model.loss.discriminator.main[0].weight.grad.abs().sum() > 0
    assert set(logged) == {"val/disc_loss", "val/logits_real", "val/logits_fake"}
    real = model.loss.discriminator(model.images)
    fake = model.loss.discriminator(model.reconstruct())
    assert_close(loss, 0.5 * hinge_d_loss(real, fake))
    assert_close(logged["val/logits_fake"], fake.mean())


@pytest.mark.parametrize("grad", [True, False])
def test_no_adaptive_weight_in_evaluation(grad):
    model = LastConv(disc_weight=0.8).eval()
    with torch.set_grad_enabled(grad):
        loss, logged = model.step(0)
    assert logged["train/d_weight"] == 0 and logged["train/disc_factor"] == 1
    assert_close(loss, (model.images - model.reconstruct()).abs().mean() + 0.25)
    assert loss.requires_grad == grad


def test_no_adaptive_weight_without_gradients_in_training():
    with torch.no_grad():
        _, logged = LastConv().train().step(0)
    assert logged["train/d_weight"] == 0


def test_logs_are_detached_scalars():
    _, logged = LastConv().step(0)
    assert all(value.shape == () and not value.requires_grad for value in logged.values())
    assert logged["train/p_loss"] == 0


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0, 1, 1, 1, 1, 1]),
        ({"disc_factor": 0.5}, [0, 0.5, 0.5, 0.5, 0.5, 0.5]),
        ({"disc_warmup_steps": 2}, [0, 0, 0, 1, 1, 1]),
        ({"disc_warmup_steps": 1, "disc_ramp_steps": 3}, [0, 0, 0.25, 0.5, 0.75, 1]),
    ],
)
@torch.no_grad()
def test_the_generator_meets_the_discriminator_gradually(options, expected):
    model = LastConv(disc_start=3, **options)
    generator = [model.step(0, step)[1]["train/disc_factor"].item() for step in range(2, 8)]
    assert generator == expected
    learns = [model.step(1, step)[1]["train/disc_loss"].item() > 0 for step in range(2, 8)]
    assert learns == [False, True, True, True, True, True]


def test_autocast_leaves_the_loss_in_full_precision():
    model = LastConv(perceptual_weight=1.0)
    fill_by_name(model.loss.perceptual_loss)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        reconstructions = model.reconstruct()
        loss, logged = model.loss(
            model.codebook_loss, model.images, reconstructions, 0, 0, model.conv_out.weight
        )
    assert reconstructions.dtype == torch.bfloat16 and loss.dtype == torch.float32
    model.loss.discriminator.apply(reset_running_statistics)
    rounded = reconstructions.detach().float()
    with torch.no_grad():
        p_loss = model.loss.perceptual_loss(model.images, rounded).mean()
        g_loss = -model.loss.discriminator(rounded).mean()
    assert_close(logged["train/p_loss"], p_loss)
    assert_close(logged["train/g_loss"], g_loss)
    loss.backward()
    assert all(torch.isfinite(gradient).all() for gradient in model.grads())


@pytest.mark.parametrize("scale", [1e-9, 1e-2, 1e6])
def test_gradient_norm_survives_half_precision(scale):
    torch.manual_seed(0)
    features, weight = torch.randn(16 * 16, 8), torch.randn(8, 3, requires_grad=True)
    gradient = scale * torch.randn(16 * 16, 3)
    expected = (features.T @ gradient).norm()
    in_half = features.half() @ weight.half()
    torch.testing.assert_close(norm_at(weight, in_half, gradient), expected, atol=0, rtol=1e-2)


def test_zero_gradients_give_zero_norm():
    weight = torch.randn(8, 3, requires_grad=True)
    output = torch.randn(5, 8) @ weight
    assert norm_at(weight, output, torch.zeros(5, 3)) == 0


def test_conditional_discriminator():
    model = LastConv(disc_conditional=True, disc_in_channels=5)
    seen, cond = [], torch.rand(2, 2, 16, 16)
    model.loss.discriminator.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for index in (0, 1):
        loss, _ = model.step(index, cond=cond)
        loss.backward()
    images = [model.reconstruct(), model.images, model.reconstruct()]
    for joined, shown in zip(seen, images, strict=True):
        assert_close(joined, torch.cat((shown, cond), dim=1))
    model.loss.check_shape((2, 3, 16, 16))
    with pytest.raises(UserError, match="disc_conditional"):
        model.step(0)


def test_images_are_compared_with_what_the_loss_takes():
    loss = VQLPIPSWithDiscriminator(**{**SMALL, "perceptual_weight": 1.0})
    for shape, message in (
        ((1, 4, 16, 16), "1 or 3 channels, not 4"),
        ((1, 3, 16, 8), "at least 12 pixels"),
        ((1, 1, 16, 16), "disc_in_channels is 3, but the images have 1"),
    ):
        with pytest.raises(UserError, match=message):
            loss.check_shape(shape)
    loss.check_shape((1, 3, 16, 12))


class OwnWeight(VQLPIPSWithDiscriminator):
    def calculate_adaptive_weight(self, nll_loss, g_loss, last_layer=None):
        return torch.tensor(3.0)


def test_a_weight_of_ones_own_joins_the_factor():
    model = LastConv()
    model.loss = OwnWeight(**SMALL, disc_factor=0.5)
    loss, logged = model.step(0)
    nll, g_loss = logged["train/nll_loss"], logged["train/g_loss"]
    assert_close(loss, nll + 3 * 0.5 * g_loss + 0.25)
    assert (logged["train/d_weight"], logged["train/disc_factor"]) == (3, 0.5)


def test_any_number_of_channels_without_lpips():
    model = LastConv(channels=7, disc_in_channels=7)
    model.step(0)[0].backward()
    assert all(torch.isfinite(gradient).all() for gradient in model.grads())


def test_lpips_is_built_and_prepared_only_if_it_counts():
    without = VQLPIPSWithDiscriminator(**SMALL)
    without.prepare()
    assert not any("perceptual" in name for name in without.state_dict())
    with_lpips = VQLPIPSWithDiscriminator(disc_start=0, vgg_path="/nowhere/vgg.pth")
    with pytest.raises(UserError, match="/nowhere/vgg.pth"):
        with_lpips.prepare()


def test_checkpoints_with_lpips_load_strictly_without_it():
    source = VQLPIPSWithDiscriminator(**{**SMALL, "perceptual_weight": 1.0})
    target = nn.ModuleDict({"loss": VQLPIPSWithDiscriminator(**SMALL)})
    state = nn.ModuleDict({"loss": source}).state_dict()
    target.load_state_dict(state, strict=True)
    first = "loss.discriminator.main.0.weight"
    assert torch.equal(target.state_dict()[first], source.discriminator.main[0].weight)
    with pytest.raises(RuntimeError, match="loss.other"):
        target.load_state_dict({**state, "loss.other": torch.zeros(1)}, strict=True)


def test_mistakes_are_named():
    with pytest.raises(UserError, match="wasserstein.*hinge"):
        VQLPIPSWithDiscriminator(**SMALL, disc_loss="wasserstein")
    images, loss = torch.rand(1, 3, 17, 17), VQLPIPSWithDiscriminator(**SMALL)
    with pytest.raises(UserError, match="multiples of"):
        loss(torch.zeros(1), images, images[..., 1:, 1:], 0, 0)
    with pytest.raises(UserError, match="last_layer"):
        loss(torch.zeros(1), images, images.clone().requires_grad_(), 0, 0)


def test_functions():
    assert [adopt_weight(0.8, step, threshold=2) for step in range(4)] == [0, 0, 0.8, 0.8]
    assert adopt_weight(0.8, 0, threshold=2, value=0.1) == 0.1
    real, fake = torch.randn(2, 50)
    hinge = ((1 - real).clamp(min=0) + (1 + fake).clamp(min=0)).mean() / 2
    assert_close(hinge_d_loss(real, fake), hinge)
    ones, zeros = torch.ones(50), torch.zeros(50)
    entropy = F.binary_cross_entropy_with_logits
    assert_close(vanilla_d_loss(real, fake), (entropy(real, ones) + entropy(fake, zeros)) / 2)
    assert losses.DummyLoss is DummyLoss and not DummyLoss().state_dict()


def test_published_defaults():
    assert defaults(VQLPIPSWithDiscriminator) == {
        "codebook_weight": 1,
        "pixelloss_weight": 1,
        "disc_num_layers": 3,
        "disc_in_channels": 3,
        "disc_factor": 1,
        "disc_weight": 1,
        "perceptual_weight": 1,
        "use_actnorm": False,
        "disc_conditional": False,
        "disc_ndf": 64,
        "disc_loss": "hinge",
        "vgg_path": None,
        "bf16_networks": False,
        "disc_warmup_steps": 0,
        "disc_ramp_steps": 0,
        "skip_idle_discriminator": False,
        "disc_config": None,
        "perceptual_net": "lpips",
        "perceptual_path": None,
        "pixel_loss": "l1",
        "generator_loss": "mean",
        "adaptive_weight": True,
        "disc_loss_weight": 1.0,
    }
    assert defaults(adopt_weight) == {"threshold": 0, "value": 0}
    assert defaults(BCELossWithQuant) == {"codebook_weight": 1}


def test_published_options_are_positional():
    loss = VQLPIPSWithDiscriminator(9, 1.0, 1.0, 2, 4, 1.0, 0.75, 0.0, True, False, 16, "vanilla")
    assert loss.discriminator.main[0].weight.shape == (16, 4, 4, 4)
    assert isinstance(loss.discriminator.main[3], ActNorm)
    assert loss.disc_loss is vanilla_d_loss
    assert loss.discriminator_iter_start == 9
