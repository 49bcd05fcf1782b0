"""DALL-E's discrete VAE as a first stage, for comparison (arXiv 2102.12092, section 2.1)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from taming.atomic_files import write_text
from taming.checkpoint import load_weights, read_checkpoint, save_atomic
from taming.config_values import Count, FilePath, Pixels, Range
from taming.errors import UserError
from taming.models.codes import CodesInterface
from taming.modules.dalle import DalleDecoder, DalleEncoder, map_pixels, unmap_pixels
from taming.modules.util import Encoding
from taming.modules.vqvae.codebook import Codebook


class _Codes(Codebook):
    """The decoder's input layer, a linear map of one-hot codes, as the table that it is."""

    def __init__(self, n_e: int, e_dim: int) -> None:
        super().__init__(n_e, e_dim)
        self.embedding = nn.Embedding(n_e, e_dim)

    @property
    def codes(self) -> Tensor:
        return self.embedding.weight


class DalleVAE(CodesInterface):
    """Images [B, 3, H, W] in [-1, 1], H and W divisible by 8 <-> indices [B, H / 8, W / 8].

    For inference. The image is the mean of the decoder's logit-Laplace distribution. The defaults
    are the published model's; `resolution` is that of `latent_shape`.
    """

    def __init__(
        self,
        n_embed: Count = 8192,
        n_hid: Count = 256,
        n_init: Count = 128,
        blocks_per_group: Annotated[int, Range(1, 1000)] = 2,
        resolution: Pixels = 256,
        ckpt_path: FilePath | None = None,
    ) -> None:
        super().__init__()
        self.encoder = DalleEncoder(n_embed, n_hid, blocks_per_group)
        self.quantize = _Codes(n_embed, n_init)
        self.decoder = DalleDecoder(n_init, n_hid, blocks_per_group, resolution)
        if ckpt_path is not None:
            self.start_from(ckpt_path)

    def encode(self, x: Tensor) -> Encoding:
        """Images -> (codes [B, n_init, h, w], loss 0, (None, None, indices [B, h, w]))."""
        indices = self.encode_to_prequant(x).argmax(dim=1)
        codes = self.quantize.get_codebook_entry(indices, (*indices.shape, self.quantize.e_dim))
        return codes, codes.new_zeros(()), (None, None, indices)

    def encode_to_prequant(self, x: Tensor) -> Tensor:
        """Images [B, C, H, W] -> a logit per code, [B, n_embed, h, w]."""
        logits: Tensor = self.encoder(map_pixels(x))
        return logits

    def decode(self, quant: Tensor) -> Tensor:
        return unmap_pixels(self.decoder(quant)[:, :3].sigmoid())

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:
        """Images -> (reconstructions, loss 0)."""
        quant, loss, _ = self.encode(input)
        assert loss is not None
        return self.decode(quant), loss


def convert(folder: str | Path) -> Path:
    """Make a run of a folder with the published `encoder.pkl` and `decoder.pkl`.

    Writes `config.yaml` and `model.ckpt` beside them; nothing in the pickles is executed.

    Raises:
        UserError: for files that are missing or are something else.
    """
    folder = Path(folder)
    parts = {
        side: read_checkpoint(folder / f"{side}.pkl")["state_dict"]
        for side in ("encoder", "decoder")
    }
    try:
        state = _our_state(parts["encoder"], parts["decoder"])
        params = _parameters(state)
        with torch.device("meta"):
            model = DalleVAE(**params)
        load_weights(model, {name: t.to("meta") for name, t in state.items()}, source=folder)
    except (KeyError, IndexError):
        raise UserError(f"{folder}: encoder.pkl and decoder.pkl are not DALL-E's") from None
    save_atomic({"state_dict": state}, folder / "model.ckpt")
    config = {"model": {"target": "taming.models.dalle.DalleVAE", "params": params}}
    write_text(folder / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
    return folder


def _our_state(encoder: Mapping[str, Tensor], decoder: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {f"encoder.{name}": tensor for name, tensor in encoder.items()}
    state |= {f"decoder.{name}": tensor for name, tensor in decoder.items()}
    table, offset = state.pop("decoder.blocks.input.w"), state.pop("decoder.blocks.input.b")
    names = {"w": "weight", "b": "bias"}
    state = {
        f"{name[:-2]}.{names[name[-1]]}" if name[-2:] in (".w", ".b") else name: tensor.float()
        for name, tensor in state.items()
    }
    # (n_init, n_e, 1, 1) times a one-hot code is a column.
    state["quantize.embedding.weight"] = (table[:, :, 0, 0].t() + offset).float().contiguous()
    return state


def _parameters(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """The params of `DalleVAE` that weights of these shapes belong to."""
    n_embed, n_init = state["quantize.embedding.weight"].shape
    first = "encoder.blocks.group_1.block_"
    blocks = {name.removeprefix(first)[0] for name in state if name.startswith(first)}
    n_hid = len(state["encoder.blocks.input.weight"])
    return {"n_embed": n_embed, "n_hid": n_hid, "n_init": n_init, "blocks_per_group": len(blocks)}
