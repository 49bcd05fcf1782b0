"""Images drawn from the transformer: continued index by index, and shown beside their conditions.

One call of `sample` and the pictures of a batch; `taming.sampling` draws many images, larger ones,
and with a generator per sample.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from taming.models.pictures import condition_pictures
from taming.modules.transformer.decoding import (
    CachedDecoder,
    draw,
    filter_logits,
    generate,
    one_pass_logits,
)
from taming.modules.transformer.mingpt import top_k_logits


class CodeSampling:
    """Draws the codes of a model with a `transformer` and the stages around it."""

    transformer: Any
    cond_stage_model: Any
    device: Any
    be_unconditional: bool
    pkeep: float
    n_codes: Any
    get_xc: Callable[..., tuple[Tensor, Tensor]]
    encode_to_z: Callable[..., tuple[Tensor, Tensor]]
    encode_to_c: Callable[..., tuple[Tensor, Tensor]]
    decode_to_img: Callable[..., Tensor]

    def top_k_logits(self, logits: Tensor, k: int) -> Tensor:
        """All but the `k` largest of the last dimension set to -inf."""
        return top_k_logits(logits, k)

    @torch.no_grad()
    def sample(
        self,
        x: Tensor,
        c: Tensor,
        steps: int,
        temperature: float = 1.0,
        sample: bool = False,
        top_k: int | None = None,
        callback: Callable[[int], Any] = lambda k: None,
        top_p: float | None = None,
    ) -> Tensor:
        """Continue indices `x` [B, n] under condition indices `c` [B, m] by `steps` indices.

        Returns [B, n + steps]. `sample=False` takes the most likely index. Randomness is torch's
        global generator's; `taming.sampling` has one per sample.
        """
        prompt = torch.cat((c, x), dim=1)
        numbers = torch.rand(steps, len(prompt), device=prompt.device) if sample else None

        def pick(logits: Tensor, n: int) -> Tensor:
            logits = filter_logits(logits[:, : self.n_codes], temperature, top_k, top_p)
            return draw(logits, None if numbers is None else numbers[n])

        if self.pkeep <= 0:  # trained with noise as its past: one pass draws every index
            logits = one_pass_logits(self.transformer, prompt, steps)
            new = torch.stack([pick(logits[:, n], n) for n in range(steps)], dim=1)
        else:
            decoder = CachedDecoder(self.transformer, len(prompt), prompt.shape[1] + steps - 1)
            new = generate(decoder, prompt, steps, pick, lambda _, n: callback(n))
        return torch.cat((x, new), dim=1)

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        max_images: int = 4,
        temperature: float = 1.0,
        top_k: int | None = 100,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Pictures of a batch: `inputs`, `reconstructions`, what the condition looks like, and
        `samples_half` (lower half drawn), `samples_nopix` (all drawn), `samples_det` (argmax)."""
        x, c = (part.to(self.device) for part in self.get_xc(batch, max_images))
        quant_z, z_indices = self.encode_to_z(x)
        quant_c, c_indices = self.encode_to_c(c)
        half, nothing = z_indices[:, : z_indices.shape[1] // 2], z_indices[:, :0]
        pictures = {"inputs": x, "reconstructions": self.decode_to_img(z_indices, quant_z.shape)}
        if not self.be_unconditional:
            pictures |= condition_pictures(
                self.cond_stage_model, c, quant_c, (x.shape[2], x.shape[3])
            )
        for name, start, random in (
            ("samples_half", half, True),
            ("samples_nopix", nothing, True),
            ("samples_det", nothing, False),
        ):
            steps = z_indices.shape[1] - start.shape[1]
            indices = self.sample(start, c_indices, steps, temperature, random, top_k)
            pictures[name] = self.decode_to_img(indices, quant_z.shape)
        return pictures
