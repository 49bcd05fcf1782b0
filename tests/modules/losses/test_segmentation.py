import pytest
import torch
from torch.nn.functional import logsigmoid

from taming.modules.losses.segmentation import BCELoss, BCELossWithQuant
from tests.support import assert_close


def example():
    torch.manual_seed(0)
    prediction, target = torch.randn(2, 5, 4, 4), torch.rand(2, 5, 4, 4).round()
    terms = target * logsigmoid(prediction) + (1 - target) * logsigmoid(-prediction)
    return prediction, target, -terms.mean()


def test_cross_entropy():
    prediction, target, expected = example()
    loss, logged = BCELoss()(prediction, target)
    assert_close(loss, expected)
    assert logged == {}


def test_quantizer_loss_is_added_and_logged():
    prediction, target, expected = example()
    loss, logged = BCELossWithQuant(codebook_weight=2.0)(
        torch.tensor([0.1, 0.3], requires_grad=True), target, prediction, split="val"
    )
    assert_close(loss, expected + 0.4)
    assert set(logged) == {"val/total_loss", "val/bce_loss", "val/quant_loss"}
    assert_close(logged["val/bce_loss"], expected)
    assert loss.requires_grad and not logged["val/total_loss"].requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(dtype):
    prediction, target, _ = example()
    rounded, loss = prediction.to(dtype), BCELossWithQuant()
    with torch.autocast("cpu", dtype=dtype):
        value, _ = loss(torch.zeros(()), target, rounded, split="train")
    assert value.dtype == torch.float32
    assert_close(value, loss(torch.zeros(()), target, rounded.float(), split="train")[0])
