"""First stages as two ONNX graphs: images -> indices, and indices -> images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from taming.atomic_files import atomic_path
from taming.errors import UserError
from taming.export.diffusers import NEAREST
from taming.models.codes import Size, decoded, size_of_codes
from taming.models.first_stage import FirstStage
from taming.models.vqgan import VQModel
from taming.shipped import extra

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
OPSET = 18


class _ToIndices(nn.Module):
    """Images [B, C, H, W] in [-1, 1] -> int64 indices [B, h, w]."""

    def __init__(self, model: FirstStage) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        model = self.model
        quantizer = model.quantize
        if not isinstance(model, VQModel) or not isinstance(quantizer, NEAREST):
            return model.encode_to_indices(images)
        # As the quantizer's search, without its switches of precision, which no graph can hold.
        latents = model.quant_conv(model.encoder(images)).permute(0, 2, 3, 1)  # (B, h, w, C)
        codes = quantizer.codes
        indices = (codes.square().sum(dim=1) - 2 * latents @ codes.t()).argmin(dim=-1)  # (B, h, w)
        return indices if quantizer.remap is None else quantizer.remap_to_used(indices)


class _ToImages(nn.Module):
    """Indices [B, h, w] -> images [B, C, H, W]; `size` is of the codes, in rows and columns."""

    def __init__(self, model: FirstStage, size: Size) -> None:
        super().__init__()
        self.model, self.size = model, size

    def forward(self, indices: Tensor) -> Tensor:
        return decoded(self.model, indices, self.size)


def to_onnx(
    model: FirstStage, folder: str | Path, size: Sequence[int] | None = None
) -> tuple[Path, Path]:
    """Write `encoder.onnx` and `decoder.onnx` for images of `size` (height, width) and any batch.

    `size` is the training size by default. Inputs and outputs are named "images" and "indices".

    Raises:
        UserError: if the packages that write ONNX are missing, or the files cannot be written.
    """
    folder = Path(folder)
    height, width = size or (model.downsampling_factor * side for side in model.latent_shape()[1:])
    device = next(model.parameters()).device
    images = torch.zeros(2, model.channels, height, width, device=device)
    with torch.no_grad():
        indices = model.encode_to_indices(images)
    _write(_ToIndices(model), images, folder / ENCODER, ("images", "indices"))
    _write(
        _ToImages(model, size_of_codes(model, images)),
        indices,
        folder / DECODER,
        ("indices", "images"),
    )
    return folder / ENCODER, folder / DECODER


def _write(module: nn.Module, example: Tensor, path: Path, names: tuple[str, str]) -> None:
    try:
        with atomic_path(path) as partial:
            torch.onnx.export(
                module.eval(),
                (example,),
                str(partial),
                input_names=[names[0]],
                output_names=[names[1]],
                dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
                opset_version=OPSET,
                dynamo=True,
                external_data=False,
                verbose=False,
            )
    except (ImportError, torch.onnx.errors.OnnxExporterError) as error:
        missing = isinstance(error, ImportError) or isinstance(error.__cause__, ImportError)
        if not missing and "onnxscript" not in str(error):
            raise
        raise UserError(f"writing ONNX needs more packages: {extra('export')}") from None
