"""A transformer and its two stages in use: images and conditions to indices, and back."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from taming.checkpoint import StartsFromFile
from taming.errors import UserError
from taming.models.codes import (
    CACHED,
    CACHED_CONDITION,
    CodesInterface,
    as_grid,
    as_pictures,
    channels_first,
    entry_of,
)
from taming.models.first_stage import ConditionStage, DecodingStage, FirstStage, index_count
from taming.models.reading_order import ReadingOrder
from taming.models.result_checks import checked_entry, encoding_of, name_of_method
from taming.models.training_options import TransformerWays
from taming.modules.given_tensors import check_indices, check_sequence
from taming.modules.transformer import decoding, own_methods
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.inference import Weights
from taming.modules.transformer.masked import continued
from taming.modules.transformer.plain import vocabulary_of
from taming.modules.transformer.token_choice import check_choice, filter_logits, sample_token
from taming.modules.transformer.variants import check_layout
from taming.modules.util import ConditionKind
from taming.pictures import text_images

log = logging.getLogger(__name__)


class CodeSampling(StartsFromFile, pl.LightningModule):
    """A transformer between a frozen first stage and a frozen condition stage.

    Subclasses set the attributes; what they mean is said at `Net2NetTransformer`.
    """

    transformer: GPT  # or a module of a user's, see `taming.modules.transformer.plain`
    first_stage_model: FirstStage
    cond_stage_model: ConditionStage
    permuter: nn.Module
    condition_kind: ConditionKind  # this and the next are the condition stage's
    n_classes: int | None
    be_unconditional: bool
    first_stage_key: str
    cond_stage_key: str
    downsample_cond_size: int
    pkeep: float
    cond_drop: float
    sos_token: int
    ways = TransformerWays()
    reading = ReadingOrder()
    _vocab_size = 0  # of transformers that do not tell it
    _tokens_seen = False  # whether the vocabulary has been seen to have those of a batch
    _weights_seen = False  # whether `warn_of_random_weights` has looked at them

    @property
    def n_codes(self) -> int:
        """How many tokens of the vocabulary stand for image codes: the first ones."""
        return index_count(self.first_stage_model)

    @property
    def vocab_size(self) -> int:
        """How many tokens the transformer knows: codes, and what stands for conditions."""
        return vocabulary_of(self.transformer) or self._vocab_size

    @property
    def null_token(self) -> int:
        """What stands at every position of a dropped condition: the vocabulary's last token.

        It adds no weight, so that any checkpoint can be trained on with `cond_drop`. No real map
        has it throughout; of a single-token condition it is no value.
        """
        return self.vocab_size - 1

    @property
    def masked(self) -> bool:
        """Whether the transformer fills in masked codes, in no order (`attention: full`)."""
        return isinstance(self.transformer, GPT) and self.transformer.config.attention == "full"

    @property
    def mask_token(self) -> int:
        """What stands in the place of masked codes: the vocabulary's last token, which is no code.

        It can be the null token, too, as that stands in the condition alone.
        """
        return self.vocab_size - 1

    def warn_of_random_weights(self) -> None:
        """Say, once, that samples will be noise, if nothing was loaded and nothing was trained."""
        if not self._weights_seen and isinstance(self.transformer, GPT):
            # Position embeddings are zeros until a step or a checkpoint changes them.
            if not self.transformer.pos_emb.any():
                log.warning(
                    "the transformer has random weights, so that samples are noise: load a "
                    "checkpoint, for example by taming.load('logs/<run>')"
                )
            self._weights_seen = True

    def check_layout(self, condition: int | None, shape: Sequence[int] | None = None) -> None:
        """`variants.check_layout` of the transformer, if it is one of this project's."""
        if isinstance(self.transformer, GPT):
            check_layout(self.transformer.config, condition, shape)

    def latent_shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of the codes at the resolution of the first stage's config."""
        return self.first_stage_model.latent_shape()

    def get_input(self, key: str, batch: Mapping[str, Any]) -> Tensor:
        """`batch[key]`: images [B, H, W(, C)] -> [B, C, H, W], bytes scaled to [-1, 1]; labels [B],
        tokens [B, n] as is."""
        x = entry_of(batch, key, "the model's stage keys")
        if x.dim() in (3, 4):
            return channels_first(x)
        return x.float() if x.is_floating_point() else x

    def get_xc(self, batch: Mapping[str, Any], N: int | None = None) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] and conditions of the first `N` entries of a batch."""
        name, keys = name_of_method(self, "get_input"), (self.first_stage_key, self.cond_stage_key)
        x, c = (checked_entry(self.get_input(key, batch), name) for key in keys)
        return x[:N], c[:N]

    @torch.no_grad()
    def encode_to_z(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Images [B, C, H, W] -> (codes [B, c, h, w], indices [B, h*w] in predicted order)."""
        quant, _, (_, _, indices) = encoding_of(self.first_stage_model, x)
        return quant, self.permuter(indices.reshape(len(quant), -1))

    @torch.no_grad()
    def encode_to_c(self, c: Tensor) -> tuple[Tensor, Tensor]:
        """Conditions -> (the condition stage's codes, indices [B, n])."""
        if self.downsample_cond_size > -1:
            c = F.interpolate(c, size=self.downsample_cond_size)  # of both sides
        quant, _, (_, _, indices) = encoding_of(self.cond_stage_model, c)
        return quant, indices.reshape(len(c), -1)

    def cached_indices(self, batch: Mapping[str, Any]) -> tuple[Tensor, Tensor]:
        """Of a batch of codes: the indices that its images and conditions would be encoded to."""
        z_indices = self.permuter(batch[CACHED].flatten(1))
        if self.be_unconditional:
            return z_indices, self.cond_stage_model.encode(z_indices)[2][2]
        if CACHED_CONDITION not in batch:
            raise UserError(
                f"the codes are without conditions, and the model has '{self.cond_stage_key}'; "
                "encode the data with the config of this model"
            )
        return z_indices, batch[CACHED_CONDITION].flatten(1)

    @torch.no_grad()
    def decode_to_img(self, index: Tensor, zshape: Sequence[int]) -> Tensor:
        """Indices [B, h*w] in predicted order, and (b, c, h, w) of the codes -> images."""
        index = self.permuter(index, reverse=True)
        shape = (zshape[0], zshape[2], zshape[3], zshape[1])
        quant = self.first_stage_model.quantize.get_codebook_entry(index.reshape(-1), shape)
        return self.first_stage_model.decode(quant)

    def as_pictures(self, x: Tensor) -> Tensor:
        """Images of the first stage -> [B, 1 or 3, H, W]; segmentations in their labels' colors."""
        return as_pictures(self.first_stage_model, x)

    def decode_to_picture(self, index: Tensor, zshape: Sequence[int]) -> Tensor:
        """`decode_to_img`, as pictures to look at."""
        return self.as_pictures(self.decode_to_img(index, zshape))

    def encode_to_indices(self, x: Tensor) -> Tensor:
        return self.first_stage_model.encode_to_indices(x)

    def decode_indices(self, indices: Tensor) -> Tensor:
        check_indices(indices, self.n_codes)
        return self.first_stage_model.decode_indices(as_grid(indices))

    def top_k_logits(self, logits: Tensor, k: int) -> Tensor:
        """All but the `k` largest of the last dimension set to -inf."""
        return filter_logits(logits, top_k=k)

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
        global generator's; `taming.sampling` has one per sample. `callback` is called with 0 to
        `steps` - 1, each as soon as so many indices are there before the latest one.
        """
        for name, tokens in (("x", x), ("c", c)):
            check_sequence(tokens, name, self.vocab_size)
        check_choice(steps, temperature, top_k, top_p)
        self.warn_of_random_weights()
        self.check_layout(c.shape[1])
        prompt = torch.cat((c, x), dim=1)  # (B, m + n)
        numbers = torch.rand(steps, len(prompt), device=prompt.device) if sample else None

        def filtered(logits: Tensor) -> Tensor:
            # (B, V): tokens beyond the first stage's codes stand for conditions alone.
            logits = filter_logits(logits[:, : self.n_codes], temperature)
            if top_k is not None:
                logits = self.top_k_logits(logits, top_k)
            if top_p is not None:
                logits = filter_logits(logits, top_p=top_p)
            return logits

        def pick(logits: Tensor, n: int) -> Tensor:
            return sample_token(filtered(logits), None if numbers is None else numbers[n])

        if self.masked:
            new = continued(
                Weights(self.transformer, rows=len(prompt)),
                x,
                c,
                steps,
                filtered,
                n_codes=self.n_codes,
                mask_token=self.mask_token,
                random=sample,
                on_code=callback,
            )
        elif self.pkeep <= 0:  # trained on noise as image inputs: one pass gives every index
            logits = own_methods.one_pass_logits(self.transformer, prompt, steps)  # (B, steps, V)
            new = x.new_empty(len(x), steps)
            for n in range(steps):
                new[:, n] = pick(logits[:, n], n)
                callback(n)
        else:
            length = prompt.shape[1] + steps - 1
            decoder = own_methods.decoder_for(self.transformer, len(prompt), length)
            new = decoding.generate(decoder, prompt, steps, pick, lambda _, n: callback(n))
        return torch.cat((x, new), dim=1)

    @torch.no_grad()
    def log_images(
        self,
        batch: Mapping[str, Any],
        temperature: float | None = 1.0,
        top_k: int | None = 100,
        max_images: int = 4,
        **_: Any,
    ) -> dict[str, Tensor]:
        """Pictures of a batch, [B, 1 or 3, H, W] by name, of labels in their colors.

        `inputs`, `reconstructions`, those of `condition_images`, and `samples_half` (lower half
        sampled), `samples_nopix` (all of it), `samples_det` (argmax).
        """
        if CACHED in batch:
            images, z_indices, c_indices, z_shape = self._decoded(batch, max_images)
        else:
            x, c = (part.to(self.device) for part in self.get_xc(batch, max_images))
            quant_z, z_indices = self.encode_to_z(x)
            quant_c, c_indices = self.encode_to_c(c)
            z_shape = quant_z.shape
            images = {"inputs": self.as_pictures(x)}
            images["reconstructions"] = self.decode_to_picture(z_indices, z_shape)
            images |= self.condition_images(c, quant_c, (x.shape[2], x.shape[3]))
        half, nothing = z_indices[:, : z_indices.shape[1] // 2], z_indices[:, :0]
        for name, start, random in (
            ("samples_half", half, True),
            ("samples_nopix", nothing, True),
            ("samples_det", nothing, False),
        ):
            steps = z_indices.shape[1] - start.shape[1]
            indices = self.sample(
                start,
                c_indices,
                steps,
                1.0 if temperature is None else temperature,
                sample=random,
                top_k=100 if top_k is None else top_k,
            )
            images[name] = self.decode_to_picture(indices, z_shape)
        return images

    def _decoded(
        self, batch: Mapping[str, Any], count: int
    ) -> tuple[dict[str, Tensor], Tensor, Tensor, Sequence[int]]:
        """What `log_images` needs, of the first of a batch of codes, of which there are no images:
        pictures by name, indices of images and conditions, and the shape of the codes."""
        entries = (CACHED, CACHED_CONDITION)
        batch = {key: batch[key][:count].to(self.device) for key in entries if key in batch}
        z_indices, c_indices = self.cached_indices(batch)
        grid = batch[CACHED].shape  # (B, h, w)
        z_shape = (grid[0], self.first_stage_model.quantize.e_dim, *grid[1:])
        images = {"reconstructions": self.decode_to_picture(z_indices, z_shape)}
        tokens, stage = batch.get(CACHED_CONDITION), self.cond_stage_model
        if self.condition_kind == "class":
            _, _, height, width = (copies := images["reconstructions"]).shape
            images |= self.condition_images(c_indices[:, 0], copies, (height, width))
        elif tokens is not None and tokens.dim() == 3 and isinstance(stage, CodesInterface):
            images["conditioning_rec"] = as_pictures(stage, stage.decode_indices(tokens))
        return images, z_indices, c_indices, z_shape

    def condition_images(
        self, c: Tensor, quant: Tensor, size: tuple[int, int]
    ) -> dict[str, Tensor]:
        """`conditioning` and, if the stage decodes, `conditioning_rec`: [B, 1 or 3, H, W].

        Args:
            c: what the data gave: labels [B] are written out, images [B, C, H, W] are shown
                (labels in their colors); token lists [B, n] have no image here.
            quant: its codes, from `encode_to_c`.
            size: (height, width) of written labels.
        """
        if self.be_unconditional:
            return {}
        if c.dim() < 2:
            return {"conditioning": text_images([str(int(label)) for label in c], size).to(quant)}
        if c.dim() != 4:
            return {}
        images, stage = {"conditioning": c}, self.cond_stage_model
        if self.condition_kind in ("image", "coordinates") and isinstance(stage, DecodingStage):
            images["conditioning_rec"] = stage.decode(quant)
        return {name: as_pictures(stage, image) for name, image in images.items()}
