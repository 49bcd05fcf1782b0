from __future__ import annotations

import pytest
import torch
from torch import Tensor

from taming.errors import UserError
from taming.guidance.code_grids import CodeGrids
from taming.guidance.points import GUMBEL, SOFT, STRAIGHT_THROUGH, Latents, Logits, Point
from taming.models.latent_diffusion import VQModelInterface
from taming.models.vqgan import VQModel
from tests.kit.models import SEGMENTATION, VQGAN, build, first_stage_config
from tests.models.test_two_level import CONFIG as TWO_LEVEL


@pytest.fixture(scope="module")
def grids() -> CodeGrids:
    return CodeGrids.of(build(first_stage_config()).eval().requires_grad_(False))


@pytest.fixture
def indices() -> list[Tensor]:
    return [torch.arange(12).repeat(2)[:16]]


FREE = [torch.arange(16) % 2 == 0]


def step(point: Point, size: float) -> None:
    """Add `size` to all rows that are free."""
    for offset in point.offsets:
        offset.grad = torch.ones_like(offset)
    point.hold()
    with torch.no_grad():
        for offset in point.offsets:
            assert offset.grad is not None
            offset.add_(offset.grad, alpha=size)
    point.settle()


def test_latents_start_as_codes_and_stay_within_their_range(
    grids: CodeGrids, indices: list[Tensor]
) -> None:
    [table] = grids.tables
    point = Latents(grids, indices, FREE)
    assert torch.equal(point.codes()[0], table[indices[0]])
    step(point, 1e-5)
    [moved] = point.result()
    low, high = table.amin(0), table.amax(0)
    assert torch.equal(moved[~FREE[0]], table[indices[0]][~FREE[0]])
    within = (table[indices[0]] + 1e-5).clamp(low, high)
    torch.testing.assert_close(moved[FREE[0]], within[FREE[0]])
    step(point, 100.0)
    torch.testing.assert_close(point.result()[0][FREE[0]], high.expand(8, -1))
    step(point, -1000.0)
    torch.testing.assert_close(point.result()[0][FREE[0]], low.expand(8, -1))


def test_latents_are_decoded_as_the_nearest_codes_with_their_own_gradient(
    grids: CodeGrids, indices: list[Tensor]
) -> None:
    [table] = grids.tables
    for quantized in (True, False):
        point = Latents(grids, indices, None, quantized=quantized)
        with torch.no_grad():
            point.offsets[0].add_((table[3] - table[indices[0]]) * 0.9)
        [codes] = point.codes()
        near = torch.cdist(codes.detach(), table).min(1).values
        assert (near < 1e-6).all() == quantized
        assert torch.equal(point.indices_of(point.result())[0], torch.full((16,), 3))
        weights = torch.rand(codes.shape, generator=torch.Generator().manual_seed(0))
        (grad,) = torch.autograd.grad((codes * weights).sum(), point.offsets)
        assert torch.equal(grad, weights)


def test_logits_start_with_probability_one_half(grids: CodeGrids, indices: list[Tensor]) -> None:
    [table] = grids.tables
    point = Logits(grids, indices, None)
    probabilities = point.result()[0].softmax(1)
    torch.testing.assert_close(
        probabilities.gather(1, indices[0][:, None]), torch.full((16, 1), 0.5)
    )
    assert torch.equal(point.codes()[0].detach(), table[indices[0]])
    assert torch.equal(point.indices_of(point.result())[0], indices[0])


def test_relaxations(grids: CodeGrids, indices: list[Tensor]) -> None:
    [table] = grids.tables
    many = [indices[0].repeat(200)]
    weights = torch.rand(3200, 4, generator=torch.Generator().manual_seed(0))
    grads, found = {}, {}
    for relaxation in (STRAIGHT_THROUGH, GUMBEL, SOFT):
        point = Logits(grids, many, None, relaxation=relaxation, temperature=0.5)
        [codes] = point.codes(torch.Generator().manual_seed(0))
        found[relaxation] = codes.detach()
        (grads[relaxation],) = torch.autograd.grad((codes * weights).sum(), point.offsets)
    soft = (point.result()[0] / 0.5).softmax(1)
    torch.testing.assert_close(found[SOFT], soft @ table)
    torch.testing.assert_close(grads[SOFT], grads[STRAIGHT_THROUGH])
    drawn = torch.cdist(found[GUMBEL], table).argmin(1)
    # As likely as the softmax of the logits says, whatever the temperature.
    assert float((drawn == many[0]).float().mean()) == pytest.approx(0.5, abs=0.04)
    assert grads[GUMBEL].abs().sum() > 0 and not torch.equal(grads[GUMBEL], grads[SOFT])
    plain = Logits(grids, many, None, relaxation=GUMBEL).codes(None)[0]
    assert torch.equal(plain.detach(), table[many[0]])


def test_the_average_has_weights_that_sum_to_one(grids: CodeGrids, indices: list[Tensor]) -> None:
    point = Logits(grids, indices, None, 0.8)
    start = point.result()[0].clone()
    for size in (1.0, 2.0, 3.0):
        step(point, size)
    # Offsets 1, 3, 6 with weights 0.2 * (0.64, 0.8, 1) over their sum.
    expected = (0.64 * 1 + 0.8 * 3 + 6) / (0.64 + 0.8 + 1)
    torch.testing.assert_close(point.result()[0] - start, torch.full_like(start, expected))
    last = Logits(grids, indices, None, 0.0)
    for size in (1.0, 2.0):
        step(last, size)
    torch.testing.assert_close(last.result()[0] - start, torch.full_like(start, 3.0))


def test_distance_of_the_start(grids: CodeGrids, indices: list[Tensor]) -> None:
    point = Latents(grids, indices, None)
    assert float(point.from_start().detach()) == 0
    with torch.no_grad():
        point.offsets[0][0, 0] = 2.0
    assert float(point.from_start().detach()) == pytest.approx(4.0 / (16 * 4))


def test_codes_of_latent_diffusion_are_not_quantized_twice() -> None:
    stage = build(first_stage_config("taming.models.latent_diffusion.VQModelInterface")).eval()
    assert isinstance(stage, VQModelInterface)
    grids = CodeGrids.of(stage)
    between = [grids.tables[0][:2].mean(0).expand(16, -1)]
    image = grids.decode(between, (4, 4))
    codes = between[0].t().reshape(1, -1, 4, 4)
    torch.testing.assert_close(image, stage.decode(codes, force_not_quantize=True))
    assert not torch.equal(image, stage.decode(codes))


def test_two_levels() -> None:
    stage = build(TWO_LEVEL).eval().requires_grad_(False)
    grids = CodeGrids.of(stage)
    side = stage.downsampling_factor
    image = torch.rand(1, 3, 2 * side, 3 * side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    indices = grids.encode(image)
    assert [len(rows) for rows in indices] == [h * w for h, w in grids.shapes((2, 3))]
    again = grids.decode(grids.look_up(indices), (2, 3))
    torch.testing.assert_close(again, stage.decode_indices(stage.encode_to_indices(image)))
    marks = torch.tensor([[True, False, False], [False, False, True]])
    fine = grids.refined(marks)[1].view(*grids.shapes((2, 3))[1])
    factor = grids.factors[1]
    assert fine[:factor, :factor].all() and int(fine.sum()) == 2 * factor**2


def test_a_stage_of_labels_or_of_other_channels_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(UserError, match="this first stage is one of labels, and a guide looks at"):
        CodeGrids.of(build(SEGMENTATION))
    monkeypatch.setattr(VQModel, "reads_labels", False)  # as first stages of other code may say
    for channels in (2, 4):
        with pytest.raises(UserError, match=f"is one of {channels} channels, and a guide looks"):
            CodeGrids.of(build(first_stage_config(channels=channels)))


def test_a_kept_quantizer_looks_up_the_codes_in_use(tmp_path: object) -> None:
    grids = CodeGrids.of(build(first_stage_config(VQGAN + "EMAVQ")))
    assert grids.tables[0].shape == (12, 4) and not grids.tables[0].requires_grad
