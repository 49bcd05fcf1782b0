"""Steps a second of guidance at 128 pixels, against a plain loop that is written out here.

    python benchmarks/guidance.py [--guide vit|small] [--device cuda]

In turn, the same first stage and the same guide, both with random weights, the same number of
cut-outs: `taming.guidance.guide`, and the loop of the public VQGAN-CLIP scripts: all distances to
the codebook, cut-outs one by one by slicing and pooling, then flips, affine maps, colors and noise
of the batch by torchvision, prompts one by one, Adam. The guide "vit" is a ViT of 86 million
weights with patches of 32 x 32 pixels at 224 (that of CLIP ViT-B/32, from torchvision), "small" the
classifier of scripts/report.py at 64 pixels.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from measure import interleaved, write_results
from torch import Tensor, nn
from torchvision import transforms
from torchvision.models import vit_b_32

from taming.config import instantiate_from_config, load_config
from taming.devices import choose_device
from taming.errors import command
from taming.evaluation.metrics.small_classifier import SmallClassifier
from taming.guidance import CodeGrids, CutSettings, GuideSettings, Objective, Target, guide
from taming.guidance.encoders import ImageEncoder
from taming.guidance.networks import ClassifierGuide, NetworkFeatures
from taming.models.vqgan import VQModel


def first_stage(channels: int, device: torch.device) -> VQModel:
    """A VQGAN of 128 x 128 pixels and 16 x 16 of 1,024 codes (f = 8)."""
    config = load_config(["configs/custom_vqgan.yaml"]).model
    changes = {"ch": channels, "ch_mult": [1, 1, 2, 4], "attn_resolutions": [16], "resolution": 128}
    config.params.ddconfig.update(changes)
    config.params.lossconfig.target = "taming.modules.losses.vqperceptual.DummyLoss"
    config.params.lossconfig.params = {}
    model: VQModel = instantiate_from_config(config, "model", "module")
    return model.eval().requires_grad_(False).to(device)


def encoder_named(name: str, device: torch.device) -> ImageEncoder:
    if name == "small":
        return ClassifierGuide.of_small(SmallClassifier(10, 64, 64).to(device))
    return NetworkFeatures(vit_b_32().to(device), 224, device)


class PlainLoop:
    """The public scripts' loop, in short."""

    def __init__(self, stage: VQModel, encoder: ImageEncoder, goal: Tensor, cutouts: int) -> None:
        self.stage, self.encoder, self.goal, self.cutouts = stage, encoder, goal, cutouts
        self.codebook = CodeGrids.of(stage).tables[0]
        self.augment = nn.Sequential(
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomAffine(10, translate=(0.1, 0.1), shear=10),
            transforms.ColorJitter(0.1, 0.1, 0.1),
        )

    def quantize(self, z: Tensor) -> Tensor:
        rows = z.movedim(1, 3)
        distances = rows.pow(2).sum(-1, keepdim=True) + self.codebook.pow(2).sum(1)
        distances = distances - 2 * rows @ self.codebook.T
        one_hot = F.one_hot(distances.argmin(-1), len(self.codebook)).to(self.codebook.dtype)
        codes = (one_hot @ self.codebook).movedim(3, 1)
        return z + (codes - z).detach()

    def cut(self, image: Tensor) -> Tensor:
        height, width = image.shape[2:]
        largest, smallest = min(height, width), 0.2 * min(height, width)
        cutouts = []
        for _ in range(self.cutouts):
            side = int(torch.rand([]) * (largest - smallest) + smallest)
            x = int(torch.randint(0, width - side + 1, ()))
            y = int(torch.randint(0, height - side + 1, ()))
            part = image[:, :, y : y + side, x : x + side]
            cutouts.append(F.adaptive_avg_pool2d(part, self.encoder.size))
        batch = self.augment(torch.cat(cutouts))
        noise = batch.new_empty([self.cutouts, 1, 1, 1]).uniform_(0, 0.05)
        return batch + noise * torch.randn_like(batch)

    def run(self, z: Tensor, steps: int) -> Tensor:
        z = z.clone().requires_grad_()
        low, high = self.codebook.amin(0)[:, None, None], self.codebook.amax(0)[:, None, None]
        optimizer = torch.optim.Adam([z], lr=0.1)
        for _ in range(steps):
            optimizer.zero_grad()
            image = (self.stage.decode(self.quantize(z)) + 1) / 2
            embeddings = self.encoder.encode_images(self.cut(image.clamp(0, 1))).float()
            x, y = F.normalize(embeddings, dim=-1), F.normalize(self.goal, dim=-1)
            loss = (x - y).norm(dim=-1).div(2).arcsin().square().mul(2).mean()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                z.copy_(z.clamp(low, high))
            loss.item()  # for the progress bar
        with torch.no_grad():
            return self.stage.decode(self.quantize(z))


def candidates(args: argparse.Namespace, device: torch.device) -> dict[str, Callable[[], Any]]:
    torch.manual_seed(0)
    stage, encoder = first_stage(args.channels, device), encoder_named(args.guide, device)
    with torch.no_grad():
        images = torch.rand(1, 3, encoder.size, encoder.size, device=device)
        goal = encoder.encode_images(images)[0].float()
    cuts = CutSettings(cutouts=args.cutouts, cut_min=0.2, cut_flip=0.5)
    objective = Objective(encoder, [Target("goal", 1.0, embedding=goal)], cuts)
    settings = GuideSettings(steps=args.steps)
    plain = PlainLoop(stage, encoder, goal, args.cutouts)
    start = torch.randint(stage.quantize.n_e, (1, 16, 16), device=device)
    z = stage.quantize.get_codebook_entry(start).movedim(3, 1)
    return {
        "taming.guidance": lambda: guide(stage, objective, settings),
        "plain loop": lambda: plain.run(z, args.steps),
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--device", default="auto")
    parser.add_argument("--guide", choices=("vit", "small"), default="small")
    parser.add_argument("--channels", type=int, default=32, help="of the first stage")
    parser.add_argument("--cutouts", type=int, default=16)
    parser.add_argument("--steps", type=int, default=10, help="of each call")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no_results", action="store_true", help="print, and write no file")
    args = parser.parse_args()
    device = choose_device(args.device)
    calls = candidates(args, device)
    seconds = interleaved(calls, device, args.rounds, warmup=1)
    medians = {name: row["median"] for name, row in seconds.items()}
    for name, median in medians.items():
        print(f"{name}: {args.steps / median:.3f} steps a second")
    ratio = round(medians["plain loop"] / medians["taming.guidance"], 3)
    print(f"{ratio} times the steps of the plain loop")
    if not args.no_results:
        facts = {"size": 128, **vars(args), "dtype": "fp32", "seconds": seconds, "ratio": ratio}
        print(f"written to {write_results(f'guidance-{args.guide}', device, facts)}")


if __name__ == "__main__":
    main()
