"""What the pictures of the gallery are made of: data, trained models, samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch

from taming.data.examples.photographs import write_photographs
from taming.shipped import find_config
from taming.training.apart import RUN_TIME, run_apart, train_apart

LANDSCAPES = "data/landscapes"
SAMPLING = ("--top_k", "200", "--top_p", "0.92", "--temperature", "0.9")
SMALL_STEPS, SMALL_GPT = 2, ("n_layer=1", "n_embd=24")
AUTO = "auto"


def precision_here(precision: str) -> str:
    """Of training, as the Trainer names it: for `AUTO`, mixed where that is fast."""
    if precision != AUTO:
        return precision
    fast = torch.cuda.is_available() or torch.cpu._is_avx512_bf16_supported()
    return "bf16-mixed" if fast else "32"


@dataclass
class Workshop:
    """What pictures are made of; each thing is made when it is first asked for.

    Attributes:
        work: the folder with data, runs and samples.
        seed: of data order, weights and samples.
        precision: of training, as `--precision` has it; "auto" is what is fast here.
        small: a few steps on a few images, to see that everything runs.
    """

    work: Path
    seed: int = 23
    precision: str = AUTO
    small: bool = False
    _runs: dict[str, str] = field(default_factory=dict)

    def run(self, words: Sequence[str]) -> None:
        """Run a subcommand of `taming` in the folder `work`."""
        run_apart(words, self.work)

    def render(self) -> Path:
        """Render the landscapes, if they are not there; returns their folder."""
        folder, counts = self.work / LANDSCAPES, ("2000", "96")
        if self.small:
            counts = ("16", "8")
        if not (folder / "palette.txt").is_file():  # which is written last
            sizes = ("--train", counts[0], "--validation", counts[1])
            self.run(["examples", "--scenes", "landscapes", "--outdir", LANDSCAPES, *sizes])
        return folder

    @cached_property
    def photographs(self) -> Path:
        """Photographs that come with packages."""
        folder = self.work / "data/photographs"
        if not (folder / "list.txt").is_file():
            write_photographs(folder)
        return folder

    @cached_property
    def hardware(self) -> tuple[str, ...]:
        """Flags of training: the GPU, if there is one, and the precision."""
        gpu = ("--gpus", "0,") if torch.cuda.is_available() else ()
        return ("--precision", precision_here(self.precision), *gpu)

    def train(self, name: str, *overrides: str) -> str:
        """Train the config gallery/`name` to its end, if it is not; returns the run, relative to
        `work`."""
        if name not in self._runs:
            self._runs[name] = self._train(name, overrides)
        return self._runs[name]

    def _train(self, name: str, overrides: tuple[str, ...]) -> str:
        small = ("--max_steps", str(SMALL_STEPS)) if self.small else ()
        flags = (*self.hardware, "--enable_progress_bar", "false", *small)
        start = ("--base", f"gallery/{name}", "--seed", str(self.seed), *overrides)
        run = train_apart(name, self.work / "logs", start, flags, self.work)
        return f"logs/{run.name}"

    def transformer(self, name: str, condition: str = "") -> str:
        """The run of gallery/`name`_transformer, on cached codes, with the stages that it needs."""
        self.render()
        runs = {"first_stage": self.train("vqgan")}
        if condition:
            runs["cond_stage"] = self.train(f"{condition}_vqgan")
        stages = [f"model.params.{stage}_config={run}" for stage, run in runs.items()]
        if self.small:
            network = "model.params.transformer_config.params"
            stages += [f"{network}.{size}" for size in SMALL_GPT] + ["data.params.batch_size=4"]
        config = str(find_config(f"gallery/{name}_transformer"))
        codes = f"data/codes_{name}{self.later(*runs.values())}"
        self.run(["encode", "--base", config, "--out", codes, "--flips", *stages])
        return self.train(f"{name}_transformer", *stages, f"data.params.codes={codes}")

    def later(self, *runs: str) -> str:
        """What names of what is made of runs end in: the times of those before which there was one
        of the same name, of another recipe."""
        names = [Path(run).name for run in runs]
        firsts = [min(self.work.glob(f"logs/{RUN_TIME}{n[len(RUN_TIME) :]}")).name for n in names]
        pairs = zip(names, firsts, strict=True)
        return "".join(f"_{n[: len(RUN_TIME) - 1]}" for n, first in pairs if n != first)

    def samples(self, subcommand: str, run: str, name: str, flags: Sequence[str]) -> Path:
        """The folder of what a subcommand samples from a run; the same call makes no more."""
        folder = f"samples/{name}{self.later(run)}"
        seed = ("--seed", str(self.seed))
        self.run([subcommand, "-r", run, "--outdir", folder, *seed, *SAMPLING, *flags])
        return self.work / folder

    def count(self, number: int) -> str:
        return "1" if self.small else str(number)
