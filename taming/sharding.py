"""Weights that are divided among processes (FSDP2), and the files with each one's share of them.

Each parameter of a sharded module is a `DTensor`: every process keeps a part of its rows and of
their optimizer state, and gathers whole blocks while it computes with them (arXiv 2304.11277).
"""

from __future__ import annotations

import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint import CheckpointException, FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from taming.distributed import same_on_all_ranks
from taming.errors import UserError


def shard(
    module: nn.Module, parts: Iterable[nn.Module], mesh: DeviceMesh, dtype: torch.dtype | None
) -> None:
    """Divide the parameters of `module` among the processes of a one-dimensional mesh; once.

    All of them start with the first one's values. `parts` are gathered one at a time, in `dtype` if
    that is given, while gradients are averaged in float32. What belongs to no part (embeddings, the
    last norm and the head, a few percent) stays in float32: autocast casts where it matters.
    """
    if isinstance(module, FSDPModule):
        return
    # Autocast decides about the inputs of a block: those of its norms stay float32.
    policy = MixedPrecisionPolicy(dtype, torch.float32, cast_forward_inputs=False)
    for part in parts:
        _agree(part, mesh)
        fully_shard(part, mesh=mesh, mp_policy=policy)
    _agree(module, mesh)
    fully_shard(module, mesh=mesh)


def _agree(module: nn.Module, mesh: DeviceMesh) -> None:
    """Give all processes the first one's values of what is not sharded yet, on their device."""
    for parameter in module.parameters():
        if not is_sharded(parameter):
            parameter.data = same_on_all_ranks(parameter.data.to(mesh.device_type))


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor's rows are divided among processes."""
    return isinstance(tensor, DTensor)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor that may be sharded; every process has to ask for it."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def sharded_like(tensor: Tensor, own: Tensor | None) -> Tensor:
    """`tensor`, of which each process has all, divided as `own` is, if they are of equal shape."""
    if isinstance(tensor, DTensor) or not isinstance(own, DTensor) or tensor.shape != own.shape:
        return tensor
    placements, mesh = own.placements, own.device_mesh
    return distribute_tensor(tensor.to(own.device), mesh, placements, src_data_rank=None)


# ---------------------------------------------------------------------- files

# What the index of shards is made of. A pickle may name anything, and run it.
_NAMES = {
    "torch.distributed.checkpoint.metadata": {
        *("Metadata", "TensorStorageMetadata", "ChunkStorageMetadata", "TensorProperties"),
        *("BytesStorageMetadata", "MetadataIndex", "StorageMeta", "_MEM_FORMAT_ENCODING"),
    },
    "torch.distributed.checkpoint.filesystem": {"_StorageInfo"},
    "torch.serialization": {"_get_layout"},
    "torch": {"Size"} | {k for k, v in vars(torch).items() if isinstance(v, torch.dtype)},
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("pathlib") and name.endswith("Path"):
            return PurePosixPath  # where the files were written
        if name not in _NAMES.get(module, ()):
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


class _Reader(FileSystemReader):
    """torch's, which would run what the index names."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, ".metadata").open("rb") as file:
            metadata = _Unpickler(file).load()
        if not isinstance(metadata, Metadata):
            raise pickle.UnpicklingError("it is no index")
        metadata.storage_meta = metadata.storage_meta or StorageMeta()
        metadata.storage_meta.load_id = self.load_id
        return metadata


def save_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Write each process's share of sharded tensors to files of its own; all of them take part.

    Raises:
        UserError: if one cannot write.
    """
    try:
        dcp.save(dict(tensors), checkpoint_id=folder)
    except CheckpointException as error:
        raise UserError(f"cannot write {folder} ({_first_reason(error)})") from error


def load_shards(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Fill tensors, sharded among these processes or whole, from files that others may have cut.

    Raises:
        UserError: if they are damaged, or have no such tensors.
    """
    reader, alone = _Reader(folder), not any(map(is_sharded, tensors.values()))
    try:
        reader.read_metadata()  # torch would log what is wrong with it
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="torch.distributed is disabled")
            dcp.load(dict(tensors), storage_reader=reader, no_dist=alone)
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be read ({_first_reason(error)})") from error
    except (OSError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"{folder} cannot be read (its index .metadata: {error})") from error


def _first_reason(error: CheckpointException) -> str:
    failure: Any = next(iter(error.failures.values()))[0]
    return " ".join(str(failure).split()) or type(failure).__name__
