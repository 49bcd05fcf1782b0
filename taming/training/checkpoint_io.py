"""How the trainer reads and writes the files of checkpoints."""

from __future__ import annotations

from typing import Any

from lightning_fabric.plugins import TorchCheckpointIO
from torch import nn

from taming.checkpoint import read_checkpoint, save_atomic
from taming.training.new_options import adapted


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically, and reads them, for a model, without executing anything."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self._model = model

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        save_atomic(checkpoint, path)

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        content = read_checkpoint(path)
        return {**content, "state_dict": adapted(content["state_dict"], self._model).state}
