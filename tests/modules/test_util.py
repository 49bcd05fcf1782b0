import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from taming.errors import UserError
from taming.modules.util import (
    AbstractEncoder,
    ActNorm,
    Labelator,
    SOSProvider,
    count_params,
    get_timestep_embedding,
)
from tests.support import assert_close, load_golden


def test_golden_actnorm():
    golden, _ = load_golden("misc")
    norm = ActNorm(5, logdet=True)
    y, logdet = norm(golden["actnorm.x"])
    assert_close(norm.loc, golden["actnorm.loc"])
    assert_close(norm.scale, golden["actnorm.scale"])
    assert_close(y, golden["actnorm.y"])
    assert_close(logdet, golden["actnorm.logdet"])
    assert_close(norm(y, reverse=True), golden["actnorm.reverse"])
    norm.scale.data.neg_()
    assert_close(norm(golden["actnorm.x"])[1], golden["actnorm.logdet"])
    state = {name: (tuple(t.shape), t.dtype) for name, t in norm.state_dict().items()}
    assert state == {
        "loc": ((1, 5, 1, 1), torch.float32),
        "scale": ((1, 5, 1, 1), torch.float32),
        "initialized": ((), torch.uint8),
    }


def test_actnorm_initialises_once_and_in_training_only():
    norm = ActNorm(3).eval()
    x = 5 + 2 * torch.randn(16, 3)
    torch.testing.assert_close(norm(x), x)
    y = norm.train()(x)
    assert y.shape == (16, 3)
    torch.testing.assert_close(y.std(dim=0), torch.ones(3), atol=1e-4, rtol=1e-4)
    scale = norm.scale.clone()
    norm(100 * x)
    assert torch.equal(norm.scale, scale)


def test_actnorm_from_a_checkpoint_is_not_initialised_again():
    trained, fresh = ActNorm(3), ActNorm(3)
    trained(torch.randn(8, 3, 2, 2))
    fresh.load_state_dict(trained.state_dict())
    fresh(100 * torch.randn(8, 3, 2, 2))
    assert torch.equal(fresh.loc, trained.loc)


def test_actnorm_reverse_first():
    with pytest.raises(RuntimeError, match="before the first forward"):
        ActNorm(3).reverse(torch.randn(8, 3, 2, 2))
    norm = ActNorm(3, allow_reverse_init=True)
    x = torch.randn(8, 3, 2, 2)
    torch.testing.assert_close(norm(norm.reverse(x)), x)
    with pytest.raises(UserError, match="affine"):
        ActNorm(3, affine=False)


@pytest.mark.parametrize("labels", [torch.tensor([3, 0, 9]), torch.tensor([[3], [0], [9]])])
def test_labels_become_indices(labels):
    codes, loss, (_, _, indices) = Labelator(10).encode(labels)
    assert loss is None
    assert indices.dtype == torch.long and indices.tolist() == [[3], [0], [9]]
    assert torch.equal(codes, indices)
    assert torch.equal(Labelator(10, quantize_interface=False).encode(labels), indices)


@pytest.mark.parametrize("labels", [[3, 10], [-1, 2]])
def test_labels_out_of_range_are_refused(labels):
    with pytest.raises(UserError, match="n_classes: 10"):
        Labelator(10).encode(torch.tensor(labels))


def test_start_tokens():
    _, loss, (_, _, indices) = SOSProvider(7).encode(torch.randn(3, 4, 5))
    assert loss is None and indices.tolist() == [[7], [7], [7]] and indices.dtype == torch.long
    assert SOSProvider(7, quantize_interface=False).encode(torch.randn(2)).tolist() == [[7], [7]]


def test_timesteps_become_sines_and_cosines():
    embedded = get_timestep_embedding(torch.tensor([0, 3]), 7)
    angles = 3 * torch.tensor([1, 1e-2, 1e-4])
    expected = torch.stack([torch.tensor([0.0] * 3 + [1] * 3 + [0]), torch.zeros(7)])
    expected[1, :6] = torch.cat((angles.sin(), angles.cos()))
    assert_close(embedded, expected)
    assert get_timestep_embedding(torch.tensor([1]), 2).shape == (1, 2)


def test_abstract_encoder_and_counting(capsys):
    with pytest.raises(NotImplementedError):
        AbstractEncoder().encode(None)
    assert count_params(nn.Linear(1000, 2000), verbose=True) == 2_002_000
    assert capsys.readouterr().out == "Linear: 2.00 M parameters\n"


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_labels_on_a_gpu_are_checked_there(device, monkeypatch):
    """Without waiting for it: there, a wrong one stops the process."""
    checks = []
    monkeypatch.setattr(torch, "_assert_async", lambda *check: checks.append(check))
    if device == "cpu":
        Labelator(10).encode(torch.tensor([1]))
        assert checks == []
    else:
        with FakeTensorMode():
            Labelator(10).encode(torch.zeros(2, dtype=torch.long, device=device))
        [(fit, message)] = checks
        assert fit.is_cuda and fit.dim() == 0 and "n_classes: 10" in message
