from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from vector_quantize_pytorch import VectorQuantize

from taming.errors import UserError
from taming.modules.vqvae import codebook, ema, revival
from taming.modules.vqvae.codebook import nearest_code
from taming.modules.vqvae.ema import EmbeddingEMA
from taming.modules.vqvae.quantize import (
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)
from tests.support import GOLDEN, assert_close, defaults, load_golden

USED = str(GOLDEN / "used.npy")
VARIANTS = {
    "vq1": lambda: VectorQuantizer(40, 8, 0.25),
    "vq2_legacy": lambda: VectorQuantizer2(40, 8, 0.25),
    "vq2": lambda: VectorQuantizer2(40, 8, 0.25, legacy=False),
    "vq2_sane": lambda: VectorQuantizer2(40, 8, 0.25, sane_index_shape=True),
    "vq2_remap": lambda: VectorQuantizer2(40, 8, 0.25, remap=USED, unknown_index="extra"),
}


def averaged():
    return EMAVectorQuantizer(40, 8, 0.25)


@pytest.mark.parametrize("name", VARIANTS)
def test_golden_values_and_gradients(name):
    golden, _ = load_golden("quantizers")
    golden = {key.removeprefix(f"{name}."): value for key, value in golden.items()}
    quantizer = VARIANTS[name]()
    quantizer.embedding.weight.data.copy_(golden["weight"])
    z = golden["z"].requires_grad_()
    z_q, loss, (usage, _, indices) = quantizer(z)
    assert_close(z_q, golden["zq"])
    assert_close(loss, golden["loss"])
    assert_close(indices, golden["indices"])
    if "perplexity" in golden and name == "vq1":
        assert_close(usage, golden["perplexity"])
    ((z_q * golden["w"]).sum() + 3 * loss).backward()
    assert_close(z.grad, golden["dz"])
    assert_close(quantizer.embedding.weight.grad, golden["dweight"])


def test_golden_entry_of_remapped_indices():
    golden, _ = load_golden("quantizers")
    quantizer = VARIANTS["vq2_remap"]()
    quantizer.embedding.weight.data.copy_(golden["vq2_remap.weight"])
    entry = quantizer.get_codebook_entry(golden["vq2_remap.indices"], (2, 4, 5, 8))
    assert_close(entry, golden["vq2_remap.entry"])


def gumbel(**options):
    golden, spec = load_golden("quantizers")
    kl_weight = spec["gumbel"]["kl_weight"]
    quantizer = GumbelQuantize(16, 8, 40, kl_weight=kl_weight, **options)
    quantizer.proj.weight.data.copy_(golden["gumbel.proj_weight"])
    quantizer.proj.bias.data.copy_(golden["gumbel.proj_bias"])
    quantizer.embed.weight.data.copy_(golden["gumbel.embed"])
    return quantizer, golden


def test_golden_gumbel():
    quantizer, golden = gumbel()
    _, loss, _, logits = quantizer(golden["gumbel.z"], return_logits=True)
    assert_close(logits, golden["gumbel.logits"])
    assert_close(loss / quantizer.kl_weight, golden["gumbel.kl"] / quantizer.kl_weight)
    entry = quantizer.get_codebook_entry(torch.arange(40), (2, 4, 5, 8))
    assert_close(entry, golden["gumbel.entry"])
    uniform = GumbelQuantize(16, 8, 40, remap=USED)
    nn.init.zeros_(uniform.proj.weight)
    nn.init.zeros_(uniform.proj.bias)
    assert_close(uniform(golden["gumbel.z"])[1], torch.zeros(()))  # over the codes that are used


def test_gumbel_in_evaluation_takes_the_most_probable_code():
    quantizer, golden = gumbel()
    z_q, _, (_, _, indices) = quantizer.eval()(golden["gumbel.z"])
    assert_close(indices, golden["gumbel.logits"].argmax(dim=1))
    assert_close(z_q, quantizer.get_codebook_entry(indices, (2, 4, 5, 8)))


def test_gumbel_hard_and_soft_training():
    quantizer, golden = gumbel()
    z = golden["gumbel.z"].requires_grad_()
    z_q, _, (_, _, indices) = quantizer(z, temp=0.5)
    assert_close(z_q, quantizer.get_codebook_entry(indices, (2, 4, 5, 8)))
    z_q.sum().backward()
    assert z.grad.abs().sum() > 0 and quantizer.embed.weight.grad.abs().sum() > 0
    quantizer.straight_through = False
    soft, _, (_, _, indices) = quantizer(z)
    assert not torch.allclose(soft, quantizer.get_codebook_entry(indices, (2, 4, 5, 8)))


def test_gumbel_temperature_sharpens():
    quantizer, golden = gumbel(straight_through=False)
    torch.manual_seed(0)
    for own, given in ((1e-6, None), (1.0, 1e-6)):
        quantizer.temperature = own
        z_q, _, (_, _, indices) = quantizer(golden["gumbel.z"], given)
        assert_close(z_q, quantizer.get_codebook_entry(indices, (2, 4, 5, 8)))


@pytest.mark.parametrize("training", [True, False])
def test_gumbel_draws_used_codes_only(training):
    quantizer, golden = gumbel(remap=USED, use_vqinterface=False)
    z_q, _, indices = quantizer.train(training)(golden["gumbel.z"])
    assert indices.shape == (2, 4, 5) and indices.max() < 13
    assert_close(z_q, quantizer.get_codebook_entry(indices, (2, 4, 5, 8)))
    if not training:
        assert_close(indices, golden["gumbel.logits"][:, quantizer.used].argmax(dim=1))


def test_first_quantizer_returns_encodings():
    quantizer = VectorQuantizer(40, 8, 0.25)
    _, _, (_, encodings, indices) = quantizer(torch.randn(2, 8, 4, 5))
    assert indices.shape == (40, 1)
    assert encodings.shape == (40, 40)
    assert torch.equal(encodings, F.one_hot(indices[:, 0], 40).float())
    assert_close(codebook.perplexity(torch.tensor([[0, 0], [3, 5]]), 9), torch.tensor(2**1.5))


def test_published_defaults():
    remap = {"remap": None, "unknown_index": "random"}
    own = {"sane_index_shape": False, "legacy": True, "revive_after": 0}
    assert defaults(VectorQuantizer2) == {**remap, **own, "clustering": False}
    noise = {"kl_weight": 5e-4, "temp_init": 1, "straight_through": True, "use_vqinterface": True}
    assert defaults(GumbelQuantize) == {**noise, **remap, "revive_after": 0}
    averages = {"decay": 0.99, "eps": 1e-5}
    assert defaults(EmbeddingEMA) == averages
    own = {"revive_after": 0, "sane_index_shape": False}
    assert defaults(EMAVectorQuantizer) == {**averages, **remap, **own}
    quantizer = averaged()
    assert (quantizer.decay, quantizer.embedding.eps, quantizer.revive_after) == (0.99, 1e-5, 0)
    embedding = EMAVectorQuantizer(9, 4, 0.25, decay=0.5, eps=0.1).embedding
    assert (embedding.decay, embedding.eps) == (0.5, 0.1)


@pytest.mark.parametrize("options", [{}, {"unknown_index": "extra"}, {"unknown_index": 3}])
def test_every_quantizer_takes_a_remap(options):
    remapped = {"remap": USED, **options}
    expected = (options or {"unknown_index": "random"})["unknown_index"]
    for quantizer in (
        VectorQuantizer2(40, 8, 0.25, **remapped),
        EMAVectorQuantizer(40, 8, 0.25, **remapped),
        GumbelQuantize(8, 8, 40, **remapped),
    ):
        assert quantizer.re_embed == 13 + (expected == "extra")
        assert quantizer.unknown_index == (13 if expected == "extra" else expected)
    assert VectorQuantizer2(40, 8, 0.25).re_embed == 40


def test_codebook_starts_uniform():
    weight = VectorQuantizer2(50, 64, 0.25).embedding.weight
    assert weight.abs().max() <= 1 / 50 < 1.1 * weight.max() and weight.mean().abs() < 1e-3


@pytest.mark.parametrize(("unknown", "expected"), [("random", None), (2, {2}), ("extra", {3})])
def test_unknown_codes(tmp_path, unknown, expected):
    np.save(tmp_path / "used.npy", np.array([7, 3, 11]))
    quantizer = VectorQuantizer2(
        16, 4, 0.25, remap=str(tmp_path / "used.npy"), unknown_index=unknown
    )
    mapped = quantizer.remap_to_used(torch.arange(16))
    assert mapped[[7, 3, 11]].tolist() == [0, 1, 2]
    strangers = {mapped[i].item() for i in range(16) if i not in (7, 3, 11)}
    assert strangers == (expected or {0, 1, 2}) and mapped.max() < quantizer.re_embed
    assert quantizer.unmap_to_all(torch.tensor([[0, 2]])).tolist() == [[7, 11]]
    assert quantizer.unmap_to_all(mapped)[3] == 3


def test_remap_joins_the_sane_index_shape():
    quantizer = VectorQuantizer2(40, 8, 0.25, remap=USED, sane_index_shape=True)
    _, _, (_, _, indices) = quantizer(torch.randn(2, 8, 3, 4))
    assert indices.shape == (2, 3, 4) and indices.max() < 13
    assert quantizer.get_codebook_entry(indices).shape == (2, 3, 4, 8)


def test_bad_remap_is_named(tmp_path):
    with pytest.raises(UserError, match="nowhere.npy"):
        VectorQuantizer2(16, 4, 0.25, remap=str(tmp_path / "nowhere.npy"))
    with pytest.raises(UserError, match="unknown_index"):
        VectorQuantizer2(40, 4, 0.25, remap=USED, unknown_index="rnd")
    for unknown in (13, -1):  # which could not be decoded again
        with pytest.raises(UserError, match=f"unknown_index is {unknown}, .* one from 0 to 12, or"):
            VectorQuantizer2(40, 4, 0.25, remap=USED, unknown_index=unknown)
    path = str(tmp_path / "used.npy")
    for used in ([[1]], [], [-1, 2], [2, 16]):
        np.save(path, np.array(used, dtype=int))
        with pytest.raises(UserError, match="used.npy must list indices from 0 to 15"):
            VectorQuantizer2(16, 4, 0.25, remap=path)
    np.save(path, np.array([1.5]))
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("used", "empty"):
        with pytest.raises(UserError, match=f"{name}.npy is no .npy of used code indices"):
            VectorQuantizer2(16, 4, 0.25, remap=str(tmp_path / f"{name}.npy"))


def test_nearest_code_is_exact():
    torch.manual_seed(0)
    latents, codes = torch.randn(200, 6), torch.randn(70, 6)
    exact = torch.cdist(latents.double(), codes.double()).argmin(dim=1)
    assert torch.equal(nearest_code(latents, codes), exact)


def test_first_of_equally_near_codes():
    codes = torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    assert nearest_code(torch.tensor([[1.2, 0.0]]), codes).tolist() == [1]


def test_chunks_do_not_change_indices(monkeypatch):
    torch.manual_seed(0)
    latents, codes = torch.randn(500, 16), torch.randn(128, 16)
    whole = nearest_code(latents, codes)
    monkeypatch.setattr(codebook, "MAX_DISTANCES", 128 * 33)
    split = Mock(wraps=torch.split)
    monkeypatch.setattr(torch, "split", split)
    assert torch.equal(nearest_code(latents, codes), whole)
    assert split.call_args.args[1] == 33


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_reduced_matmul_precision_is_kept_out_and_restored(precision):
    torch.manual_seed(0)
    latents, codes = torch.randn(300, 64), 0.1 * torch.randn(512, 64)
    exact = nearest_code(latents, codes)
    torch.set_float32_matmul_precision(precision)
    try:
        assert torch.equal(nearest_code(latents, codes), exact)
        assert torch.get_float32_matmul_precision() == precision
    finally:
        torch.set_float32_matmul_precision("highest")


def test_distances_are_computed_in_full_precision_on_any_processor(monkeypatch):
    """Also where reduced precision would change nothing, as there is no hardware for it."""
    matmul, product, during = torch.backends.cuda.matmul, torch.addmm, []
    new = hasattr(matmul, "fp32_precision")  # since torch 2.9

    def precision():
        return matmul.fp32_precision if new else torch.get_float32_matmul_precision()

    def addmm(*args, **options):
        dtypes = {args[1].dtype, args[2].dtype}
        during.append((precision(), dtypes, torch.is_autocast_enabled("cpu")))
        return product(*args, **options)

    monkeypatch.setattr(torch, "addmm", addmm)
    latents, codes = torch.randn(3, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    before = precision()
    try:
        for switch in ("old", "new") if new else ("old",):
            if switch == "old":
                torch.set_float32_matmul_precision("medium")
            else:
                torch.set_float32_matmul_precision("highest")
                matmul.fp32_precision = "tf32"
            with torch.autocast("cpu", dtype=torch.bfloat16):
                nearest_code(latents, codes)
            assert during.pop() == ("ieee" if new else "highest", {torch.float32}, False)
            assert precision() == ("tf32" if new else "medium")
    finally:
        if new:
            matmul.fp32_precision = before
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [*VARIANTS.values(), averaged, lambda: GumbelQuantize(8, 8, 40)])
def test_autocast_changes_nothing(make, dtype):
    quantizer = make().eval()
    z = torch.randn(2, 8, 4, 5).to(dtype)
    plain = quantizer(z.float())
    with torch.autocast("cpu", dtype=dtype):
        z_q, loss, (_, _, indices) = quantizer(z)
    assert z_q.dtype == loss.dtype == torch.float32
    assert torch.equal(z_q, plain[0]) and torch.equal(loss, plain[1])
    assert torch.equal(indices, plain[2][2])


def test_works_inside_a_compiled_model():
    quantizer = VectorQuantizer2(40, 8, 0.25)
    z = torch.randn(1, 8, 4, 4)
    compiled = torch.compile(quantizer, backend="eager")
    torch.testing.assert_close(compiled(z)[0], quantizer(z)[0])


def test_ema_codes_reach_the_mean_of_their_latents():
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(3, 2, 0.25, decay=0.9)
    quantizer.embedding.weight.copy_(torch.tensor([[5.0, 5.0], [-5.0, 0.0], [0.0, -90.0]]))
    quantizer.embedding.embed_avg.copy_(quantizer.embedding.weight)
    z = torch.tensor([[4.0, 6.0], [6.0, 7.0], [-3.0, 1.0]]).T.reshape(1, 2, 3, 1)
    for _ in range(200):
        z_q, _, (_, _, indices) = quantizer(z)
    assert indices.tolist() == [0, 0, 1]
    expected = torch.tensor([[5.0, 6.5], [-3.0, 1.0]])
    torch.testing.assert_close(quantizer.embedding.weight[:2], expected, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(z_q[0, :, 2, 0], expected[1], atol=1e-3, rtol=1e-3)
    assert quantizer.embedding.weight[2].norm() < 91  # unused, and not thrown far away


def test_ema_loss_and_gradient_are_the_encoders():
    quantizer = EMAVectorQuantizer(40, 8, beta=0.25)
    z = torch.randn(2, 8, 4, 5, requires_grad=True)
    before = quantizer.embedding.weight.clone()
    z_q, loss, (usage, _, indices) = quantizer(z)
    codes = F.embedding(indices, before).reshape(2, 4, 5, 8).movedim(3, 1)
    assert_close(z_q, codes)
    assert_close(loss, 0.25 * (z - codes).square().mean())
    assert 1 < usage <= 40 and indices.shape == (40,)
    loss.backward()
    assert_close(z.grad, 0.5 * (z - codes).detach() / z.numel())
    assert not list(quantizer.parameters())


def test_ema_update_is_smoothed():
    """arXiv 1711.00937, equations 6 to 8, with Laplace smoothing."""
    embedding = EmbeddingEMA(3, 2, decay=0.9, eps=0.5)
    averages = embedding.embed_avg.clone()
    rows, indices = torch.randn(5, 2), torch.tensor([0, 0, 2, 0, 2])
    embedding.follow(rows, indices)
    sums = torch.stack([rows[[0, 1, 3]].sum(0), torch.zeros(2), rows[[2, 4]].sum(0)])
    sizes, averages = torch.tensor([1.2, 0.9, 1.1]), 0.9 * averages + 0.1 * sums
    assert_close(embedding.cluster_size, sizes)
    assert_close(embedding.embed_avg, averages)
    smoothed = (sizes + 0.5) / (3.2 + 3 * 0.5) * 3.2
    assert_close(embedding.weight, averages / smoothed[:, None])


def test_ema_equals_the_library():
    """Also in where its codes move to."""
    ours = EMAVectorQuantizer(12, 6, 0.25, decay=0.9, eps=1e-3)
    theirs = VectorQuantize(
        6,
        12,
        decay=0.9,
        eps=1e-3,
        rotation_trick=False,
        accept_image_fmap=True,
        commitment_weight=0.25,
    )
    states = (("weight", "embed"), ("embed_avg", "embed_avg"), ("cluster_size", "cluster_size"))
    for own, _ in states[:2]:
        getattr(ours.embedding, own).copy_(torch.randn(12, 6, generator=seeded(1)))
    for own, other in states:
        getattr(theirs._codebook, other).copy_(getattr(ours.embedding, own)[None])
    start = ours.codes.clone()
    for batch in range(4):
        own = torch.randn(2, 6, 4, 5, generator=seeded(batch)).requires_grad_()
        other = own.detach().clone().requires_grad_()
        z_q, loss, (_, _, indices) = ours(own)
        expected, places, of_library = theirs(other)
        assert torch.equal(indices, places.flatten())
        weights = torch.randn(z_q.shape, generator=seeded(9))
        ((z_q * weights).sum() + 3 * loss).backward()
        ((expected * weights).sum() + 3 * of_library.sum()).backward()
        pairs = [(z_q, expected), (loss, of_library.sum()), (own.grad, other.grad)]
        pairs += [
            (getattr(ours.embedding, mine), getattr(theirs._codebook, library)[0])
            for mine, library in states
        ]
        for mine, library in pairs:
            torch.testing.assert_close(mine, library, atol=1e-5, rtol=1e-5)
    assert (ours.codes - start).norm(dim=1).min() > 1e-3  # also unused ones


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_revived_code_weighs_as_much_as_a_new_one():
    """With the weight that it had, the next update would throw it far away."""
    embedding = EmbeddingEMA(4, 2, decay=0.9, eps=1e-5)
    embedding.cluster_size.copy_(torch.tensor([0.5, 1e-6, 2.0, 0.49]))
    before, rows = embedding.weight.clone(), torch.randn(6, 2) + 50
    embedding.revive(rows, threshold=0.5)
    assert embedding.cluster_size.tolist() == [0.5, 1, 2, 1]
    assert torch.equal(embedding.weight[[0, 2]], before[[0, 2]])
    many = EmbeddingEMA(50, 2)
    many.revive(torch.arange(2000.0).reshape(1000, 2), threshold=2)
    assert many.weight.max() > 1000  # any latent may be taken
    for code in (1, 3):
        assert (rows == embedding.weight[code]).all(dim=1).any()
        assert torch.equal(embedding.embed_avg[code], embedding.weight[code])


def test_moving_averages_count_all_processes_and_revive_alike(monkeypatch):
    one, two = (EmbeddingEMA(4, 2) for _ in range(2))
    two.load_state_dict(one.state_dict())
    rows, indices = torch.randn(5, 2), torch.tensor([0, 0, 2, 0, 2])
    one.follow(rows.repeat(2, 1), indices.repeat(2))
    monkeypatch.setattr(ema, "sum_over_ranks", lambda tensor: 2 * tensor)
    monkeypatch.setattr(revival, "same_on_all_ranks", lambda tensor: torch.full_like(tensor, 7))
    two.follow(rows, indices)
    for name, tensor in one.state_dict().items():
        assert_close(two.state_dict()[name], tensor)
    two.cluster_size[1] = 0
    two.revive(rows, threshold=0.5)
    assert (two.weight == 7).all(dim=1).tolist() == [False, True, False, False]


def test_ema_state_names_and_frozen_evaluation():
    quantizer = EMAVectorQuantizer(40, 8, 0.25).eval()
    state = {name: tensor.clone() for name, tensor in quantizer.state_dict().items()}
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "embedding.weight": (40, 8),
        "embedding.cluster_size": (40,),
        "embedding.embed_avg": (40, 8),
    }
    quantizer(torch.randn(2, 8, 4, 5))
    with torch.no_grad():  # the discriminator's turn
        quantizer.train()(torch.randn(2, 8, 4, 5))
    quantizer.embedding.update = False
    quantizer(torch.randn(2, 8, 4, 5))
    assert all(torch.equal(quantizer.state_dict()[name], old) for name, old in state.items())


def test_ema_with_remap():
    quantizer = EMAVectorQuantizer(40, 8, 0.25, remap=USED, unknown_index="extra")
    _, _, (_, _, indices) = quantizer(torch.randn(2, 8, 4, 5))
    assert indices.shape == (40, 1) and indices.max() <= 13
    shaped = EMAVectorQuantizer(40, 8, 0.25, sane_index_shape=True)
    assert shaped(torch.randn(2, 8, 4, 5))[2][2].shape == (2, 4, 5)


def revived(after):
    torch.manual_seed(0)
    quantizer = EMAVectorQuantizer(8, 2, 0.25, decay=0.9, revive_after=after)
    quantizer.embedding.weight.add_(100)
    quantizer.embedding.weight[0] = 0
    quantizer.embedding.embed_avg.copy_(quantizer.embedding.weight)
    z = torch.randn(2, 2, 6, 6)
    used = []
    for _ in range(12):
        _, _, (_, _, indices) = quantizer(z)
        used.append(len(indices.unique()))
    return used, quantizer.embedding.weight.clone()


def test_dead_codes_are_revived_on_time_and_reproducibly():
    assert revived(after=0)[0] == [1] * 12
    used, weight = revived(after=5)
    assert used[:6] == [1] * 6 and used[6] > 4
    assert torch.equal(weight, revived(after=5)[1])
    assert revived(after=1)[0][2] > 4
