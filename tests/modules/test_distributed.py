"""Two processes on the CPU: what must be equal on all ranks is."""

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from taming.modules.util import ActNorm
from taming.modules.vqvae.quantize import EMAVectorQuantizer


def latents(rank):
    return torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(rank)) + 3 * rank


def train(rank, folder):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    torch.manual_seed(0)
    plain = EMAVectorQuantizer(6, 2, 0.25)
    revived = EMAVectorQuantizer(6, 2, 0.25, decay=0.5, revive_after=1)
    norm = ActNorm(2)
    torch.manual_seed(rank)  # each process draws its own latents
    for _ in range(4):
        plain(latents(rank))
        revived(latents(rank))
        norm(latents(rank))
    parts = {"plain": plain, "revived": revived, "norm": norm}
    torch.save({name: part.state_dict() for name, part in parts.items()}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_codebook_and_statistics_agree(tmp_path):
    mp.spawn(train, (str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    for part in first:
        for name, tensor in first[part].items():
            assert torch.equal(tensor, second[part][name]), (part, name)
    torch.manual_seed(0)
    alone = EMAVectorQuantizer(6, 2, 0.25)
    for _ in range(4):
        alone(torch.cat([latents(0), latents(1)]))
    torch.testing.assert_close(first["plain"]["embedding.weight"], alone.embedding.weight)
