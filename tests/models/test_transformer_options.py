"""Options of a transformer's training: each does what it says, and changes nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.modules.transformer.mingpt import GPT
from tests.kit.models import tiny_model, transformer_config
from tests.kit.training import fit, noted_compilations

COLUMNS = {
    "codes": torch.randint(20, (6, 4, 4), generator=torch.Generator().manual_seed(5)),
    "condition_codes": torch.arange(12).view(6, 2) % 5,
}
TOKENS = {
    "cond_stage_config": {
        "target": "taming.models.dummy_cond_stage.DummyCondStage",
        "params": {"conditional_key": "tokens"},
    },
    "cond_stage_key": "tokens",
}


def make(gpt: dict[str, Any] | None = None, **options: Any) -> Net2NetTransformer:
    """A model with two tokens of a condition before 16 codes."""
    sizes = {"block_size": 17, "attn_pdrop": 0.1, "resid_pdrop": 0.1, **(gpt or {})}
    model = tiny_model(transformer_config(sizes, **TOKENS, **options))
    model.learning_rate = 1e-2
    return model


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[Tensor] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.values.append(trainer.callback_metrics["train/loss"].clone())


def trained(model: Net2NetTransformer, folder: Path) -> Tensor:
    losses = Losses()
    torch.manual_seed(0)
    fit(model, COLUMNS, folder, callbacks=[losses])
    return torch.stack(losses.values)


def test_training_predicts_the_image_alone() -> None:
    """The head is spared the condition's positions, but in evaluation, whose digits stay."""
    model, seen = make(), []
    model.transformer.head.register_forward_pre_hook(lambda _, x: seen.append(x[0].shape[1]))
    logits = {}
    for training in (True, False):
        model.train(training)
        with torch.no_grad(), torch.random.fork_rng():
            model.transformer.eval()
            logits[training], _ = model.predict(
                COLUMNS["codes"].flatten(1), COLUMNS["condition_codes"]
            )
    assert seen == [16, 17] and logits[True].shape == (6, 16, 23)
    torch.testing.assert_close(logits[True], logits[False])
    gpt, idx = model.transformer, COLUMNS["codes"].flatten(1)
    whole, loss = gpt(idx, targets=idx)[0], gpt(idx, targets=idx, start=3)[1]
    expected = nn.functional.cross_entropy(whole[:, 3:].flatten(0, 1), idx[:, 3:].flatten())
    torch.testing.assert_close(loss, expected)


class OldGPT(GPT):
    """A subclass from before `start`."""

    def forward(self, idx: Tensor, embeddings: Any = None, targets: Any = None) -> Any:
        return super().forward(idx, embeddings, targets)


def test_transformers_of_others_know_no_start() -> None:
    model = make({"attn_pdrop": 0.0, "resid_pdrop": 0.0})
    own = OldGPT(23, 17, n_layer=2, n_head=2, n_embd=16)
    own.load_state_dict(model.transformer.state_dict())
    expected = model.train().shared_step(COLUMNS)
    model.transformer = own
    torch.testing.assert_close(model.train().shared_step(COLUMNS), expected)


def test_activations_are_made_again(tmp_path: Path) -> None:
    plain, again = make(), make(checkpoint_activations=True)
    assert torch.equal(trained(plain, tmp_path), trained(again, tmp_path))
    assert again.transformer.gradient_checkpointing and not plain.transformer.gradient_checkpointing


def test_blocks_are_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled = noted_compilations(monkeypatch)
    model = make(compile=True)
    trained(model, tmp_path)
    assert compiled == list(model.transformer.blocks)
    trained(make(), tmp_path)
    assert len(compiled) == 2


@pytest.mark.slow
def test_compiled_training_follows_the_plain_one(tmp_path: Path) -> None:
    dropless = {"attn_pdrop": 0.0, "resid_pdrop": 0.0}
    losses = trained(make(dropless, compile=True), tmp_path)
    torch.testing.assert_close(losses, trained(make(dropless), tmp_path), rtol=1e-3, atol=1e-4)


def test_one_graph_serves_all_blocks() -> None:
    graphs = []

    def backend(graph: Any, inputs: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    gpt = make({"n_layer": 3}).transformer
    expected = gpt(COLUMNS["codes"].flatten(1))[0]
    for block in gpt.blocks:
        block.compile(dynamic=False, fullgraph=True, backend=backend)
    torch.testing.assert_close(gpt(COLUMNS["codes"].flatten(1))[0], expected)
    assert len(graphs) == 1


def test_adamw_in_one_kernel(tmp_path: Path) -> None:
    model, plain = make(fused_optimizer=True), make()
    for one, fused in ((model, True), (plain, None)):
        groups = one.configure_optimizers().param_groups
        assert {group["fused"] for group in groups} == {fused}
    torch.testing.assert_close(trained(model, tmp_path), trained(plain, tmp_path))


class Own(nn.Module):
    """A transformer of somebody else's."""

    def __init__(self) -> None:
        super().__init__()
        self.config = type("Config", (), {"vocab_size": 23})


@pytest.mark.parametrize("option", ["compile", "checkpoint_activations"])
def test_options_are_for_the_projects_transformer(option: str) -> None:
    model = make(**{option: True})
    with pytest.raises(UserError, match="are for GPT, and this transformer is a Own"):
        model.ways.prepare(Own())


def test_other_names_are_refused() -> None:
    with pytest.raises(UserError, match="channels_last"):  # a first stage's
        instantiate_from_config(transformer_config(channels_last=True), "model", "module")
