"""What computes on a GPU, on one that is made up: PyTorch's fake tensors have a device and a shape.

A tensor on another device than the others raises, as on a GPU, and so does every wait for a value
(`.item()`, an `if` on a tensor), which would leave the GPU idle. Modules alone are in
`tests/test_parts.py`; here is what is around them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves

from taming.config import instantiate_from_config
from taming.data.helper_types import Annotation, AnnotationList
from taming.data.utils import custom_collate
from taming.evaluation.metrics.reconstruction import _differences
from taming.evaluation.metrics.ssim import ms_ssim, ssim
from taming.models import distillation
from taming.models.codes import CodeHistogram, in_colors
from taming.modules.ema import LitEma
from taming.modules.linear import training_kernel
from taming.modules.packed_weight import PackedWeight
from taming.modules.transformer import mingpt
from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.inference import Weights
from taming.modules.vqvae.quantize import VectorQuantizer2
from taming.sampling import engine, sample_images, sample_sliding_window
from taming.sampling.requests import Request, condition_indices
from taming.sampling.settings import SampleSettings
from tests.kit.models import (
    SPIRAL,
    first_stage_config,
    transformer_config,
    unconditional_config,
)
from tests.kit.parts import CACHED
from tests.kit.parts import gpt as small_gpt

GPU = torch.device("cuda")


def slow(*values: Any) -> Any:
    """A case that takes a second or more, though each operation is made up."""
    return pytest.param(*values, marks=pytest.mark.slow)


IMAGES = (2, 3, 32, 32)


@pytest.fixture(autouse=True)
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Steps are not recorded as graphs, which takes a real one."""
    monkeypatch.setattr(CachedDecoder, "_as_graph", lambda self, step: step)
    monkeypatch.setattr(torch.cuda, "device", nullcontext)
    with FakeTensorMode():
        yield


def on_gpu(make: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """A module on the GPU. What it computes has to say itself that it is there."""
    with GPU:
        return make(*args, **options)


def images(*shape: int) -> Tensor:
    return torch.rand(*(shape or IMAGES), device=GPU) * 2 - 1


def test_use_and_pictures_of_a_first_stage() -> None:
    model = on_gpu(instantiate_from_config, first_stage_config(use_ema=True))
    x = images(2, model.channels, 16, 16)
    histogram = CodeHistogram(model.quantize.n_e)
    histogram.add(torch.zeros(2, 8, 8, dtype=torch.long, device=GPU))
    assert histogram.counts_so_far().is_cuda and in_colors(x).is_cuda
    pictures = model.log_images({model.image_key: x.permute(0, 2, 3, 1)})
    assert all(picture.is_cuda for picture in pictures.values())


def test_bytes_become_images_on_the_gpu() -> None:
    model = on_gpu(instantiate_from_config, first_stage_config())
    pixels = torch.zeros(2, 16, 16, 3, dtype=torch.uint8, device=GPU)
    assert model.get_input({"image": pixels}, "image").is_cuda


@pytest.mark.parametrize("unknown", ["random", "extra", 3])
def test_remapped_indices(unknown: Any) -> None:
    quantizer: Any = on_gpu(VectorQuantizer2, 16, 4, 0.25)
    quantizer.remap, quantizer.unknown_index = "made up", 5 if unknown == "extra" else unknown
    quantizer.register_buffer("used", torch.arange(5, device=GPU))
    z_q, _, (_, _, indices) = quantizer(images(2, 4, 8, 8))
    assert z_q.is_cuda and quantizer.get_codebook_entry(indices).is_cuda


def test_averages_of_weights() -> None:
    model = on_gpu(nn.Linear, 3, 3)
    averages = on_gpu(LitEma, model)
    averages(model)
    with averages.swapped_in(model):
        assert model.weight.is_cuda


EMBEDDED = [name for name in CACHED if "adaln_classes" not in CACHED[name]]


@pytest.mark.parametrize("name", [n if n == "n_unmasked" else slow(n) for n in EMBEDDED])
def test_gpts_after_embeddings_and_with_a_past(name: str) -> None:
    gpt = on_gpu(small_gpt, **CACHED[name])
    idx = torch.zeros(2, 6, dtype=torch.long, device=GPU)
    assert gpt(idx, embeddings=torch.zeros(2, 3, 16, device=GPU))[0].is_cuda
    _, _, present = gpt.forward_with_past(idx)
    assert gpt.forward_with_past(idx[:, :1], past=present, past_length=6)[0].is_cuda


@pytest.mark.parametrize("dtype", [None, slow(torch.bfloat16)])
@pytest.mark.parametrize("name", [n if n == "all" else slow(n) for n in CACHED])
def test_cached_decoders(name: str, dtype: torch.dtype | None) -> None:
    gpt, idx = on_gpu(small_gpt, **CACHED[name]).eval(), torch.zeros(2, 4, dtype=torch.long)
    decoder = CachedDecoder(gpt, 2, 8, dtype)
    assert decoder.static  # recorded, on a GPU that is there
    for tokens in (idx, idx[:, :1], idx[:, :2]):
        read = decoder.extend if decoder.length else decoder.prefill
        assert read(tokens.to(GPU)).is_cuda


def test_kernels_of_processors_are_for_processors(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TAMING_KERNEL", "packed")
    gpt = on_gpu(small_gpt).eval().requires_grad_(False)
    assert Weights(gpt).kernel == "torch" and not isinstance(gpt.head.weight, PackedWeight)
    assert training_kernel(torch.zeros(1024, 1024, device=GPU), torch.float32, 256) == "torch"


@pytest.mark.parametrize("options", [slow({}), {"top_k": 5, "top_p": 0.9}])
def test_samplers_of_a_gpt(options: dict[str, Any]) -> None:
    gpt = on_gpu(mingpt.GPT, 20, 24, 1, 2, 16, n_unmasked=4).eval()
    idx = torch.zeros(2, 4, dtype=torch.long, device=GPU)
    assert mingpt.sample_with_past(idx, gpt, 3, **options).shape == (2, 3)
    options.pop("top_p", None)
    assert mingpt.sample(gpt, idx, 2, sample=True, **options).shape == (2, 6)
    assert mingpt.sample(gpt, idx, 1, **options).is_cuda


FIRST = "__is_first_stage__"
WITH_MAPS = {"cond_stage_config": FIRST, "cond_stage_key": "image"}
COORDINATES = {
    "target": "taming.modules.misc.coord.CoordStage",
    "params": {"n_embed": 8, "down_factor": 2},
}
WIDE = {"block_size": 40}
TRANSFORMERS: dict[str, dict[str, Any]] = {
    "classes": transformer_config(),
    "classes, in a spiral": transformer_config(permuter_config=SPIRAL),
    "classes, dropped": transformer_config(cond_drop=0.1, pkeep=0.5),
    "classes, all at once": transformer_config(pkeep=0.0),
    "classes, variants": transformer_config(CACHED["all"]),
    "unconditional": unconditional_config(first_stage_config=None),
    "images": transformer_config(WIDE, **WITH_MAPS, downsample_cond_size=8),
    "coordinates": transformer_config(WIDE, cond_stage_config=COORDINATES, cond_stage_key="coord"),
}
TRANSFORMERS["unconditional"]["params"]["first_stage_config"] = TRANSFORMERS["classes"]["params"][
    "first_stage_config"
]


def transformer(name: str) -> Any:
    config = copy.deepcopy(TRANSFORMERS[name])
    config["params"]["transformer_config"]["params"]["n_layer"] = 1
    model = on_gpu(instantiate_from_config, config)
    model.warn_of_random_weights = lambda: None  # it looks at them, once
    model._tokens_seen = True  # as after the first batch, whose tokens are waited for
    return model


def codes_of_classes() -> dict[str, Tensor]:
    codes = torch.zeros(2, 4, 4, dtype=torch.long, device=GPU)
    return {"codes": codes, "condition_codes": torch.zeros(2, 1, dtype=torch.long, device=GPU)}


def batch_of(size: int = 8) -> dict[str, Tensor]:
    return {
        "image": images(2, size, size, 3),
        "class_label": torch.arange(2, device=GPU),
        "coord": torch.rand(2, size, size, 1, device=GPU),
    }


RARE = (
    "images",
    "classes",
    "classes, in a spiral",
    "classes, all at once",
    "classes, variants",
    "coordinates",
    "unconditional",
)


@pytest.mark.parametrize("name", [slow(n) if n in RARE else n for n in TRANSFORMERS])
def test_steps_of_transformers(name: str) -> None:
    model = transformer(name)
    assert model.train().shared_step(batch_of()).is_cuda


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "images", "coordinates"])
def test_pictures_of_transformers(name: str) -> None:
    """But for classes, which are written out: their numbers have to be known."""
    pictures = transformer(name).eval().log_images(batch_of())
    assert all(picture.is_cuda for picture in pictures.values())


def test_steps_on_cached_codes() -> None:
    assert transformer("classes").train().shared_step(codes_of_classes()).is_cuda


@pytest.mark.slow
@pytest.mark.parametrize("teacher", ["classes", "classes, variants"])
def test_steps_with_a_teacher(teacher: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "load_run", lambda path: (transformer(teacher), None))
    monkeypatch.setattr(distillation, "_check_alike", lambda *models: None)  # by hashes
    model = transformer("classes").train()
    losses = model._learn_from(distillation.Teacher("logs/one", model), codes_of_classes())
    assert len(losses) == 3 and all(loss.is_cuda for loss in losses.values())


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("classes", SampleSettings(0.9, 5, 0.9)),
        slow("classes", SampleSettings()),
        slow("classes, in a spiral", SampleSettings()),
        slow("classes, variants", SampleSettings(0.9, 5, 0.9)),
        slow("classes, all at once", SampleSettings(0.9, 5, 0.9)),
    ],
)
def test_the_engine(name: str, settings: SampleSettings) -> None:
    model = transformer(name).eval()
    requests = [Request(n, (n % 5,), n % 5) for n in range(3)]
    steps: list[int] = []
    samples = sample_images(
        model, requests, settings, batch_size=2, on_step=lambda step: steps.append(step.done)
    )
    assert [sample.image.shape for sample in samples] == [(3, 8, 8)] * 3


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_the_engine_with_guidance(dtype: torch.dtype | None) -> None:
    model, settings = transformer("classes, dropped").eval(), SampleSettings(guidance=2.0)
    samples = sample_images(model, [Request(0, (1,), 1)], settings, batch_size=2, dtype=dtype)
    assert [sample.indices.shape for sample in samples] == [(16,)]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["unconditional", "coordinates", "images"])
def test_the_engine_through_windows(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "check_tokens", lambda gpt, tokens: None)  # in the CPU's memory
    model = transformer(name).eval()
    maps = torch.zeros(4, 5, dtype=torch.long)
    request = Request(0, (0,)) if name == "unconditional" else Request(0, condition=maps)
    [sample] = sample_images(model, [request], batch_size=2, shape=(4, 5))
    assert sample.indices.shape == (20,)


@pytest.mark.slow
def test_windows() -> None:
    gpt = on_gpu(mingpt.GPT, 20, 24, 1, 2, 16).eval()
    assert sample_sliding_window(gpt, None, (3, 3), 2, batch_size=2).is_cuda


def test_measures_of_images() -> None:
    first, second = torch.rand(2, 3, 192, 192, device=GPU), torch.rand(2, 3, 192, 192, device=GPU)
    values = [ssim(first, second), ms_ssim(first, second), *_differences(first, second).values()]
    assert all(value.is_cuda for value in values)


def test_labels_to_sample_are_checked_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    model, checked = transformer("classes"), []
    monkeypatch.setattr(model.cond_stage_model, "check", checked.append)
    assert condition_indices(model, torch.zeros(2, dtype=torch.long)).is_cpu
    assert len(checked) == 1 and checked[0].is_cpu


def test_batches() -> None:
    """Of all that datasets give: loaders' workers must not touch a GPU."""
    box = Annotation(1.0, "1", (0.0, 0.0, 1.0, 1.0), 1, "cup")
    items = [
        {
            "image": np.zeros((4, 4, 3), np.float32)[:, ::-1],
            "class_label": n,
            "codes": torch.zeros(4, 4, dtype=torch.long),
            "annotations": AnnotationList([box] * n),
            "boxes": [box] * (n + 1),
            "sizes": [4, 4],
            "name": "cup",
        }
        for n in range(2)
    ]
    batch = custom_collate(items)
    assert batch["image"].shape == (2, 4, 4, 3) and len(batch["annotations"]) == 2
    assert all(leaf.is_cpu for leaf in tree_leaves(batch) if isinstance(leaf, Tensor))
