"""Two processes that train one model: what they average and sum, though DDP does not, and that they
agree with one process over the batches of both."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.utilities.rank_zero import rank_zero_only
from torch import Tensor
from torch.utils.data import DataLoader

from taming.devices import own_share
from taming.distributed import disconnect
from taming.models.codes import codebook_use
from taming.models.logged_means import means_where_written
from taming.training.strategies import SyncedBatchNorm
from tests.kit.datasets import Items, images
from tests.kit.launch import Launcher
from tests.kit.models import GAN_LOSS, VQGAN, build, first_stage_config, unconditional_config
from tests.kit.processes import in_two_processes
from tests.kit.training import tiny_trainer
from tests.support import ROOT

DISCRIMINATED = {**GAN_LOSS, "params": {**GAN_LOSS["params"], "disc_start": 0}}


class Gradients(pl.Callback):
    """Those with which the discriminator took each step, and its state before the first."""

    def __init__(self) -> None:
        self.steps: list[list[Tensor]] = []
        self.start: dict[str, Tensor] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: Any) -> None:
        discriminator = pl_module.discriminator
        self.start = {n: t.clone() for n, t in discriminator.state_dict().items()}
        parameters = list(discriminator.parameters())
        trainer.optimizers[1].register_step_pre_hook(
            lambda *_: self.steps.append([p.grad.clone() for p in parameters])
        )


def train(folder: Path) -> None:
    """Two steps over two batches each of this process's own images, and validation on them."""
    number, _ = own_share()
    rank_zero_only.rank = number  # type: ignore[attr-defined]  # not the parent's
    model = build(first_stage_config(lossconfig=DISCRIMINATED, use_ema=True))
    if number == 1:  # discriminators and averages start the same, however they were made
        torch.nn.init.zeros_(model.discriminator.main[0].weight)
        model.model_ema.encoderconv_inweight.zero_()
    model.accumulate_grad_batches = 2
    gradients = Gradients()
    trainer = tiny_trainer(
        folder,
        devices=2,
        strategy="ddp",
        max_steps=2,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        callbacks=[gradients],
    )
    own = images(16)[8 * number : 8 * number + 8]
    loader = DataLoader(Items({"image": own}), batch_size=2)
    trainer.fit(model, loader, loader)
    averages = {f"model_ema.{name}" for name, _ in model.model_ema.named_buffers()}
    assert averages <= set(model._ddp_params_and_buffers_to_ignore)
    logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
    codes = model.eval().encode_to_indices(own.permute(0, 3, 1, 2))
    state = {"steps": gradients.steps, "start": gradients.start, "codes": codes, "logged": logged}
    state["sides"] = sides_in_training(model.train(), own[:1], number)
    torch.save({**state, "model": model.state_dict()}, folder / f"{number}.pt")
    disconnect()


def sides_in_training(model: Any, batch: Tensor, number: int) -> list[int]:
    """Of batches in training, of a process whose random numbers are its own."""
    torch.manual_seed(number)
    model.batch_resize_range, model._step = (16, 96), 9
    resized = [model.get_input({"image": batch}, "image") for _ in range(8)]
    return [one.shape[2] for one in resized]


# ---------------------------------------------------------------------- as one process

STEPS, BATCH = 10, 2
QUANTIZER = {
    "target": "taming.modules.vqvae.nearest.VectorQuantizer2",
    "params": {"n_e": 12, "e_dim": 4, "beta": 0.25, "entropy_weight": 0.1},
}
ALIKE: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    # (model, options of its loss, and its own)
    "batch normalization, R1, entropy, channels last": (
        "VQModel",
        {"r1_weight": 0.1},
        {"quantizer_config": QUANTIZER, "channels_last": True},
    ),
    "ActNorm, averaged codebook": ("EMAVQ", {"use_actnorm": True}, {}),
}
CODES = "a transformer"
WRITTEN = 2  # every so many steps


class Losses(pl.Callback):
    """What is logged of each step."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.rows.append({name: float(v) for name, v in trainer.callback_metrics.items()})


def of_first_stage(case: str) -> dict[str, Any]:
    target, of_loss, options = ALIKE[case]
    loss = {**DISCRIMINATED, "params": {**DISCRIMINATED["params"], **of_loss}}
    return first_stage_config(VQGAN + target, lossconfig=loss, **options)


def losses(folder: Path, case: str, number: int | None = None) -> list[dict[str, float]]:
    """Of ten steps over the batches of both processes, or of the process of that number alone."""
    torch.manual_seed(0)
    model = build(unconditional_config() if case == CODES else of_first_stage(case))
    model.learning_rate = 2e-4
    logged = Losses()
    trainer = tiny_trainer(
        folder,
        devices=1 if number is None else 2,
        strategy="auto" if number is None else "ddp",
        plugins=[SyncedBatchNorm()],
        max_steps=STEPS,
        log_every_n_steps=WRITTEN,
        limit_val_batches=0,
        use_distributed_sampler=False,
        callbacks=[logged],
    )
    batches = images(2 * STEPS * BATCH).unflatten(0, (STEPS, 2, BATCH))
    own = (batches if number is None else batches[:, number]).reshape(-1, 16, 16, 3)
    trainer.fit(model, DataLoader(Items({"image": own}), batch_size=len(own) // STEPS))
    return logged.rows


def train_alike(folder: Path) -> None:
    number, _ = own_share()
    for case in (*ALIKE, CODES):
        torch.save(losses(folder, case, number), folder / f"{case}, {number}.pt")
        disconnect()


def log_others(folder: Path) -> None:
    """Values of other names in each process, as a loss of a user's may have."""
    number, _ = own_share()
    trainer = tiny_trainer(folder, devices=2, strategy="ddp", max_steps=1, log_every_n_steps=1)
    seen = list[dict[str, Any]]()

    class Own(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            for values in ({"a": 1.0 + number}, {"a": 1.0, "b": 2.0} if number else {"c": 3.0}):
                seen.append(means_where_written(trainer, values))

    trainer.callbacks.append(Own())
    model = build(unconditional_config())
    trainer.fit(model, DataLoader(Items({"image": images(2)}), batch_size=1))
    torch.save(seen, folder / f"others {number}.pt")
    disconnect()


def train_all(folder: Path) -> None:
    for function in (train, train_alike, log_others):
        function(folder)


@pytest.fixture(scope="module")
def results(launcher: Launcher, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Of both processes."""
    folder = tmp_path_factory.mktemp("ranks")
    # Not forks of this process: tests before this one may have started threads of autograd.
    program = str(Path(__file__).relative_to(ROOT))
    ended = launcher.run([str(folder)], folder, program=program)
    assert ended.code == 0, ended.output
    loaded = [torch.load(folder / f"{number}.pt") for number in range(2)]
    return [{**result, "folder": folder} for result in loaded]


def test_two_processes_play_one_game(results: list[dict[str, Any]]) -> None:
    first, second = results
    for name, tensor in first["start"].items():
        assert torch.equal(tensor, second["start"][name]), name
    assert len(first["steps"]) == 2
    for ours, theirs in zip(first["steps"], second["steps"], strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))
        assert max(gradient.abs().max() for gradient in ours) > 0
    for name, tensor in first["model"].items():
        assert torch.equal(tensor, second["model"][name]), name


def test_images_of_a_step_have_one_size_in_all_processes(results: list[dict[str, Any]]) -> None:
    first, second = (result["sides"] for result in results)
    assert first == second and len(set(first)) > 2


def test_the_codes_of_all_processes_are_counted(results: list[dict[str, Any]]) -> None:
    counts = [torch.bincount(r["codes"].flatten(), minlength=12) for r in results]
    usage, perplexity = codebook_use(counts[0] + counts[1])
    assert not torch.equal(*counts)
    for name in ("val/aeloss", "val/discloss", "val/rec_loss", "val/logits_real"):
        assert results[0]["logged"][name] == results[1]["logged"][name]  # the mean of both
    assert results[0]["logged"]["val/codebook_usage"] == pytest.approx(usage)
    assert results[0]["logged"]["val/codebook_perplexity"] == pytest.approx(perplexity)


@pytest.mark.parametrize("case", [*ALIKE, CODES])
def test_two_processes_agree_with_one(
    results: list[dict[str, Any]], tmp_path: Path, case: str
) -> None:
    """All losses of ten steps, the adaptive weight and the discriminator's included. Those that are
    written are of both."""
    folder = results[0]["folder"]
    one, other = (torch.load(folder / f"{case}, {number}.pt") for number in range(2))
    alone = losses(tmp_path, case)
    assert len(alone) == len(one) == STEPS
    names = {"train/aeloss", "train/discloss", "train/d_weight", "train/quant_loss"}
    assert (names if case != CODES else {"train/loss"}) <= alone[0].keys()
    assert case == CODES or alone[0]["train/d_weight"] > 0.1
    for step, expected in enumerate(alone):
        for name, value in expected.items():
            mean = (one[step][name] + other[step][name]) / 2
            assert mean == pytest.approx(value, rel=1e-5, abs=1e-5), (step, name)
        if (step + 1) % WRITTEN == 0:
            assert one[step] == other[step]


def test_values_of_other_names_stay_each_process_s_own(results: list[dict[str, Any]]) -> None:
    folder = results[0]["folder"]
    seen = [torch.load(folder / f"others {number}.pt") for number in range(2)]
    assert [one[0] for one in seen] == [{"a": 1.5}, {"a": 1.5}]
    assert [one[1] for one in seen] == [{"c": 3.0}, {"a": 1.0, "b": 2.0}]


if __name__ == "__main__":
    in_two_processes(train_all, Path(sys.argv[1]))
