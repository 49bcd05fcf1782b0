"""Transformers that sample several tokens a step, and what they could reach: for `sampling.py`."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from taming.modules.transformer.decoding import CachedDecoder
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.mingpt import GPT
from taming.modules.transformer.orders import (
    generate_in_steps,
    left_after,
    path_of,
    random_orders,
    sizes_of,
)

TOKENS_A_STEP = 8  # on average
ROWS_OF_PRODUCTS = 512  # with which a machine multiplies as fast as it can


def in_steps(gpt: GPT, prompt: Tensor, dtype: torch.dtype) -> Callable[[], Tensor]:
    """A function that samples greedily in a random order, several tokens a step."""
    length = gpt.config.block_size
    decoder = CachedDecoder(gpt, len(prompt), length, dtype)
    path = path_of(random_orders(len(prompt), length, prompt.device), 1)
    sizes = sizes_of_steps(length)
    return lambda: generate_in_steps(decoder, prompt, path, sizes, lambda x, done: x.argmax(-1))


def sizes_of_steps(length: int) -> list[int]:
    return sizes_of(left_after(length, length // TOKENS_A_STEP), length)


def operations(gpt: GPT, sizes: list[int]) -> int:
    """Of a transformer's linear layers for one sequence in steps of these sizes.

    Each step reads what the one before has chosen, the last of it once for every code that is asked
    for; the last layer is finished, and the head computed, for those alone.
    """
    asked, config = sum(sizes), gpt.config
    width = config.n_embd
    rows = 1 + asked - sizes[-1] + asked - len(sizes)
    blocks = 12 * width**2 * (rows * config.n_layer) - 9 * width**2 * (rows - asked)
    return 2 * (blocks + asked * width * config.vocab_size)


def products_alone(gpt: GPT, batch: int, count: int, dtype: torch.dtype) -> Callable[[], None]:
    """A function that does `count` operations in the transformer's largest products, as it samples
    so many sequences, each with many rows."""
    layers = Weights(gpt, dtype, batch).layers
    x = torch.ones(ROWS_OF_PRODUCTS, gpt.config.n_embd, dtype=dtype, device=gpt.pos_emb.device)
    calls = max(1, round(count / (2 * len(x) * 4 * gpt.config.n_embd**2)))

    @torch.inference_mode()
    def run() -> None:
        for call in range(calls):
            layers[call % len(layers)].up(x)

    return run
