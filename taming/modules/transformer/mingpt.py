"""The published names around the GPT, for code that imports them from here."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from taming import published_names
from taming.modules.transformer.decoding import generate
from taming.modules.transformer.gpt import GPT, Block, CausalSelfAttention, GPTConfig
from taming.modules.transformer.kmeans import KMeans
from taming.modules.transformer.own_methods import decoder_for, whole_logits
from taming.modules.transformer.token_choice import filter_logits, sample_token
from taming.modules.transformer.variants import check_whole

__all__ = [
    "GPT",
    "Block",
    "CausalSelfAttention",
    "GPT1Config",
    "GPTConfig",
    "KMeans",
    "sample",
    "sample_with_past",
    "top_k_logits",
]

__getattr__ = published_names.served_by(__name__)
logger = logging.getLogger(__name__)


class GPT1Config(GPTConfig):
    """The sizes of the first GPT, about 125 million parameters."""

    n_layer, n_head, n_embd = 12, 12, 768


def top_k_logits(logits: Tensor, k: int) -> Tensor:
    """`logits` (..., V) with all but the `k` largest set to -inf."""
    return filter_logits(logits, top_k=k)


def sample_with_past(
    x: Tensor,
    model: GPT,
    steps: int,
    temperature: float = 1.0,
    sample_logits: bool = True,
    top_k: int | None = None,
    top_p: float | None = None,
    callback: Callable[[int], None] | None = None,
) -> Tensor:
    """Sample `steps` tokens after the prompt `x` (B, T); returns them alone, int64 (B, steps).

    With `sample_logits` tokens are sampled (by torch's global generator), else the likeliest is
    taken. `callback(n)` is called after the n-th token. T + steps - 1 must fit into the model's
    block size.
    """
    decoder = decoder_for(model, len(x), x.shape[1] + max(steps, 1) - 1)
    uniform = torch.rand(steps, len(x), device=x.device) if sample_logits else None

    def pick(logits: Tensor, n: int) -> Tensor:
        filtered = filter_logits(logits, temperature, top_k, top_p)
        return sample_token(filtered, None if uniform is None else uniform[n])

    return generate(decoder, x, steps, pick, callback and (lambda _, n: callback(n)))


@torch.no_grad()
def sample(
    model: GPT,
    x: Tensor,
    steps: int,
    temperature: float = 1.0,
    sample: bool = False,
    top_k: int | None = None,
) -> Tensor:
    """`x` (B, T) followed by `steps` more tokens, (B, T + steps), as minGPT's function does.

    There is no limit to the length: each token sees the last `block_size` before it. Slower than
    `sample_with_past`, which computes no position twice.
    """
    if isinstance(model, GPT):
        check_whole(model.config, x.shape[1] + steps - 1)
    training = model.training
    model.eval()
    for _ in range(steps):
        seen = x[:, -model.get_block_size() :]
        logits = filter_logits(whole_logits(model, seen, -1)[:, 0], temperature, top_k)
        token = sample_token(logits, torch.rand(len(x), device=x.device) if sample else None)
        x = torch.cat((x, token[:, None]), dim=1)
    model.train(training)
    return x
