from unittest.mock import Mock

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from taming.errors import UserError
from taming.modules.vqvae import codebook
from taming.modules.vqvae.bsq import BSQ
from taming.modules.vqvae.codebook import nearest_code
from taming.modules.vqvae.cosine import CosineQuantizer
from taming.modules.vqvae.ema import EmbeddingEMA
from taming.modules.vqvae.fsq import FSQ
from taming.modules.vqvae.ibq import IBQ
from taming.modules.vqvae.lfq import LFQ
from taming.modules.vqvae.multi_scale import MultiScaleQuantizer
from taming.modules.vqvae.quantize import (
    EMAVectorQuantizer,
    GumbelQuantize,
    VectorQuantizer,
    VectorQuantizer2,
)
from taming.modules.vqvae.residual import ResidualQuantizer
from taming.modules.vqvae.simvq import SimVQ
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
        CosineQuantizer(40, 8, 0.25, **remapped),
        FSQ([8, 5], **remapped),
        LFQ(64, **remapped),
        BSQ(64, **remapped),
        IBQ(40, 8, **remapped),
        SimVQ(40, 8, **remapped),
        MultiScaleQuantizer(40, 8, [1, 2], **remapped),
        ResidualQuantizer(40, 8, 2, **remapped),
        ResidualQuantizer(40, 8, 2, shared=True, **remapped),
    ):
        assert quantizer.re_embed == 13 + (expected == "extra")
        several = isinstance(quantizer, ResidualQuantizer)
        for table in quantizer.levels if several else [quantizer]:
            assert table.unknown_index == (13 if expected == "extra" else expected)
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
