"""Golden numbers and helpers that tests share; see tests/golden/README.md."""

from __future__ import annotations

import inspect
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from safetensors import safe_open
from torch import Tensor, nn

from taming.checkpoint import save_atomic
from taming.config import instantiate_from_config
from taming.kernel_choice import ONEDNN, TORCH
from taming.modules.linear import onednn_takes

ROOT = Path(__file__).parent.parent
GOLDEN = ROOT / "tests" / "golden"


def load_golden(name: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Tensors and spec of `tests/golden/<name>.safetensors`."""
    with safe_open(GOLDEN / f"{name}.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        return tensors, json.loads((file.metadata() or {}).get("spec", "{}"))


def load_manifest(name: str) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Model config and `{name: [shape, dtype]}` of a published model."""
    manifest = json.loads((GOLDEN / "manifests" / f"{name}.json").read_text())
    return manifest["model"], manifest["state_dict"]


def golden_weight(name: str, like: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + zlib.crc32(name.encode()))
    noise = torch.randn(like.shape, generator=generator)
    if "_emb" in name.rsplit(".", 1)[-1] or "tok_emb" in name:
        return noise
    if noise.dim() > 1:
        gain = 2 if ".attn." in name and "mid" not in name else 1
        return noise * gain / noise[0].numel() ** 0.5
    return 1 + 0.1 * noise if name.endswith("weight") else 0.1 * noise


@torch.no_grad()
def fill_by_name(module: nn.Module, seed: int = 0) -> nn.Module:
    """Give `module` the weights that the golden numbers were computed with (from names)."""
    for name, tensor in module.state_dict().items():
        fixed = name.endswith(("running_mean", "running_var", "attn.mask"))
        if tensor.is_floating_point() and not fixed:
            tensor.copy_(golden_weight(name, tensor, seed))
    return module


def golden_class_model() -> tuple[Any, list[dict[str, Tensor]]]:
    """The class-conditional transformer of the golden run, untrained, and its three batches."""
    tensors, spec = load_golden("net2net_class")
    model = instantiate_from_config(spec["model"])
    fill_by_name(model)
    keys = ("image", "class_label")
    batches = [{key: tensors[f"batch{i}.{key}"] for key in keys} for i in range(3)]
    return model.eval(), batches


def write_run(
    folder: Path, config: Mapping[str, Any], state: Mapping[str, Tensor] | None = None
) -> Path:
    """A run folder of a model's config at step 5, by default with random weights."""
    (folder / "configs").mkdir(parents=True)
    OmegaConf.save({"model": config}, folder / "configs" / "2021-project.yaml")
    state = instantiate_from_config(config).state_dict() if state is None else state
    save_atomic({"state_dict": state, "global_step": 5}, folder / "checkpoints" / "last.ckpt")
    return folder


@contextmanager
def double_precision() -> Iterator[None]:
    """What is computed in fp32 is computed in float64: `float()` keeps tensors double.

    An adversarial game amplifies rounding: in fp32, other kernels or threads soon choose another
    code, and Adam makes whole steps of a gradient that is nothing but noise. The golden run happens
    to stay within 2e-4 of what float64 gives, on every processor, version of torch and number of
    threads alike, so that all of it can be compared everywhere.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "float", Tensor.double)
        yield


@contextmanager
def exact_products() -> Iterator[None]:
    """Products and convolutions in fp32 keep the 13 bits that TF32 drops, on GPUs that have it.

    PyTorch lets convolutions drop them by default.
    """
    cudnn, precision = torch.backends.cudnn, torch.get_float32_matmul_precision()
    kept = {"benchmark": cudnn.benchmark, "deterministic": cudnn.deterministic}
    torch.set_float32_matmul_precision("highest")
    try:
        with cudnn.flags(cudnn.enabled, **kept, allow_tf32=False):
            yield
    finally:
        torch.set_float32_matmul_precision(precision)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """What its parameters are if a YAML leaves them out."""
    parameters = inspect.signature(function).parameters.items()
    return {name: p.default for name, p in parameters if p.default is not p.empty}


class Malicious:
    """Is pickled as a call, with its arguments."""

    def __init__(self, *call: Any) -> None:
        self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call[0], self.call[1:]


def assert_close(actual: Tensor, expected: Tensor) -> None:
    """The contract's tolerance for forward passes; integers must be equal."""
    tolerance = (
        {"atol": 1e-4, "rtol": 1e-4} if expected.is_floating_point() else {"atol": 0, "rtol": 0}
    )
    torch.testing.assert_close(actual, expected, **tolerance)


def require_onednn(dtype: torch.dtype, kernel: str = ONEDNN) -> None:
    """Skip a test of a kernel of oneDNN's where it does not multiply in bfloat16."""
    if kernel != TORCH and not onednn_takes(dtype):
        pytest.skip("oneDNN multiplies in bfloat16 on some processors alone")
