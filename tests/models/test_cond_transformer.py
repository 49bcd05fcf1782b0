"""The transformer stage against the golden numbers, through the real Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from taming.config import instantiate_from_config
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from tests.kit.models import cosine_config, first_stage_config, tiny_model, transformer_config
from tests.support import assert_close, defaults, fill_by_name, load_golden

GOLDEN_RUNS = ("net2net_coord", "net2net_class")


def golden_model(name: str) -> tuple[Net2NetTransformer, dict[str, Tensor], dict[str, Any]]:
    tensors, spec = load_golden(name)
    model = instantiate_from_config(spec["model"])
    fill_by_name(model)
    model.learning_rate = spec["learning_rate"]
    return model, tensors, spec


class Batches(Dataset):
    def __init__(self, golden: dict[str, Tensor], count: int) -> None:
        self.golden, self.count = golden, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        keys = ("image", "coord", "class_label")
        return {key: self.golden[f"batch{index}.{key}"] for key in keys}


class Losses(pl.Callback):
    def __init__(self) -> None:
        self.values: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        self.values.append(float(trainer.callback_metrics["train/loss"]))


@pytest.mark.parametrize("name", GOLDEN_RUNS)
def test_training_and_sampling_equal_the_golden_run(
    name: str, tmp_path: Path, threads: None
) -> None:
    model, golden, spec = golden_model(name)
    losses = Losses()
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=len(spec["losses"]),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[losses],
        default_root_dir=str(tmp_path),
    )
    batches = Batches(golden, len(spec["losses"]))
    trainer.fit(model, DataLoader(batches, batch_size=None))
    assert losses.values == pytest.approx(spec["losses"], rel=2e-3, abs=1e-3)
    state = model.state_dict()
    for key, norm in spec["final_norms"].items():
        assert math.isclose(float(state[key].double().norm()), norm, rel_tol=2e-3), key
    for key, value in golden.items():
        if key.startswith("final."):
            torch.testing.assert_close(
                state[key.removeprefix("final.")], value, rtol=2e-3, atol=2e-3
            )
    _check_sampling(model.eval(), golden, batches[len(batches) - 1])


@torch.no_grad()
def _check_sampling(
    model: Net2NetTransformer, golden: dict[str, Tensor], batch: dict[str, Tensor]
) -> None:
    model.load_state_dict(
        {k.removeprefix("final."): v for k, v in golden.items() if k.startswith("final.")},
        strict=False,
    )
    x, c = model.get_xc(batch)
    quant, z_indices = model.encode_to_z(x)
    _, c_indices = model.encode_to_c(c)
    assert_close(z_indices, golden["z_indices"])
    assert_close(c_indices, golden["c_indices"])
    logits, target = model(x, c)
    assert_close(target, golden["target"])
    assert_close(logits[:, -3:], golden["logits_last"])
    greedy = model.sample(z_indices[:, :0], c_indices, 256, sample=False)
    assert_close(greedy, golden["greedy"])
    half = model.sample(z_indices[:, :128], c_indices, 128, top_k=5, sample=False)
    assert_close(half, golden["greedy_half"])
    assert_close(model.decode_to_img(greedy, quant.shape), golden["greedy_image"])


def test_weight_decay_is_for_linear_weights() -> None:
    model, _, spec = golden_model("net2net_class")
    groups = model.configure_optimizers().param_groups
    sizes = [[sum(p.numel() for p in group["params"]), group["weight_decay"]] for group in groups]
    assert sizes == spec["weight_decay_groups"]
    assert {(group["lr"], group["betas"], group["eps"]) for group in groups} == {
        (model.learning_rate, (0.9, 0.95), 1e-8)
    }


def test_stages_stay_frozen() -> None:
    model, _, _ = golden_model("net2net_coord")
    assert not model.first_stage_model.training and not model.cond_stage_model.training
    model.train()
    assert model.transformer.training
    own = variant(**CONDITIONS["self"])
    assert own.cond_stage_model is own.first_stage_model
    assert not model.first_stage_model.training and not model.cond_stage_model.training
    assert not any(p.requires_grad for p in model.first_stage_model.parameters())
    with_loss = tiny_model(transformer_config(first_stage_config=first_stage_config()))
    assert not any(name.startswith("first_stage_model.loss") for name in with_loss.state_dict())
    assert not any(name.startswith("loss.") for name in with_loss.first_stage_model.state_dict())


def variant(**changes: Any) -> Net2NetTransformer:
    _, spec = load_golden("net2net_coord")
    params = {**spec["model"]["params"], **changes}
    return instantiate_from_config({"target": spec["model"]["target"], "params": params}).eval()


def batch_of(size: int = 3) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "image": torch.rand(size, 32, 32, 3, generator=generator) * 2 - 1,
        "coord": torch.rand(size, 32, 32, 1, generator=generator),
        "class_label": torch.arange(size),
        "tokens": torch.arange(4 * size).reshape(size, 4) % 40,
    }


CONDITIONS: dict[str, dict[str, Any]] = {
    "coord": {},
    "class": {
        "cond_stage_key": "class_label",
        "cond_stage_config": {
            "target": "taming.modules.util.Labelator",
            "params": {"n_classes": 7},
        },
    },
    "none": {"cond_stage_config": "__is_unconditional__"},
    "flag": {"unconditional": True},
    "self": {"cond_stage_config": "__is_first_stage__", "cond_stage_key": "image"},
    "tokens": {
        "cond_stage_key": "tokens",
        "cond_stage_config": {
            "target": "taming.models.dummy_cond_stage.DummyCondStage",
            "params": {"conditional_key": "tokens"},
        },
    },
    "spiral": {
        "permuter_config": {
            "target": "taming.modules.transformer.permuter.SpiralOut",
            "params": {"H": 16, "W": 16},
        }
    },
}


@pytest.mark.parametrize("name", CONDITIONS)
def test_pictures_under_every_condition(name: str) -> None:
    model = variant(**CONDITIONS[name])
    pictures = model.log_images(batch_of(), max_images=2)
    expected = {"inputs", "reconstructions", "samples_half", "samples_nopix", "samples_det"}
    assert expected <= pictures.keys()
    assert all(picture.shape[0] == 2 for picture in pictures.values())
    assert ("conditioning" in pictures) == (name in ("coord", "class", "self", "spiral"))
    assert torch.equal(pictures["samples_half"].isfinite().all(), torch.tensor(True))


def test_images_of_another_size_than_samples_are_told_of_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model(transformer_config())  # of 8 x 8 pixels and 4 x 4 codes
    for size, said in ((8, 0), (4, 1), (4, 1)):
        model.check_batch({"image": torch.zeros(2, size, size, 3), "class_label": torch.arange(2)})
        line = "images of 4 x 4 pixels make 2 x 2 codes, and samples will have 4 x 4"
        assert caplog.text.count(line) == caplog.text.count("samples will") == said


def test_permuted_indices_decode_to_the_same_image() -> None:
    model, plain = variant(**CONDITIONS["spiral"]), variant()
    plain.load_state_dict(model.state_dict(), strict=False)
    x, _ = model.get_xc(batch_of())
    quant, indices = model.encode_to_z(x)
    _, expected = plain.encode_to_z(x)
    assert not torch.equal(indices, expected)
    assert_close(
        model.decode_to_img(indices, quant.shape), plain.decode_to_img(expected, quant.shape)
    )


def test_published_defaults() -> None:
    options = defaults(Net2NetTransformer)
    assert (options.pop("first_stage_key"), options.pop("cond_stage_key")) == ("image", "depth")
    assert (options.pop("pkeep"), options.pop("downsample_cond_size")) == (1, -1)
    assert not any(options.values())  # neither paths, nor dropped conditions, nor other tokens


def test_losses_are_logged_of_every_process() -> None:
    model = tiny_model(transformer_config(scheduler_config=cosine_config()))
    batch = {"image": torch.rand(3, 8, 8, 3), "class_label": torch.arange(3)}
    model.log = Mock()
    losses = [model.training_step(batch, 0), model.validation_step(batch, 0)]
    losses.append(model.test_step(batch, 0))
    (first, *rest) = model.log.call_args_list
    assert model.loss_terms["train/loss"] == losses[0] == first.args[1]
    assert first.args[0] == "train/loss" and first.kwargs["batch_size"] == 3
    assert model.logged_names() == {"train/loss", "val/loss"}
    assert not model.loss_terms["train/loss"].requires_grad
    assert [call.args[0] for call in rest] == ["val/loss", "test/loss"]
    assert all(call.kwargs["sync_dist"] and call.kwargs["batch_size"] == 3 for call in rest)
    optimizer = model.configure_optimizers()
    assert optimizer["lr_scheduler"]["interval"] == "step"
    assert optimizer["lr_scheduler"]["scheduler"].optimizer is optimizer["optimizer"]


def test_the_start_token_is_the_configs() -> None:
    for kind in ({"cond_stage_config": "__is_unconditional__"}, {"unconditional": True}):
        model = variant(**kind, sos_token=7)
        assert model.encode_to_c(torch.zeros(2, 3, 8, 8))[1].tolist() == [[7], [7]]
        assert model.cond_stage_key == "image" and model.learning_rate == 4.5e-6


@pytest.mark.parametrize(
    ("resumed", "loaded", "stage", "warned"),
    [
        (None, None, None, True),
        ("last.ckpt", None, None, False),
        (None, "last.ckpt", None, False),
        (None, None, "last.ckpt", False),
    ],
)
def test_a_first_stage_that_is_not_trained_is_warned_of(
    resumed: str | None,
    loaded: str | None,
    stage: str | None,
    warned: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = tiny_model()
    model.loaded_from, model.first_stage_model.loaded_from = loaded, stage
    for first in (False, True):  # the first process speaks
        model._trainer = SimpleNamespace(is_global_zero=first, ckpt_path=resumed)
        model.on_fit_start()
        messages = [record.message for record in caplog.records]
        sentence = "the first_stage is not trained: set model.params.first_stage_config to a run"
        assert messages == ([sentence] if warned and first else [])


def test_weights_are_loaded_but_for_what_is_ignored(tmp_path: Path) -> None:
    state = tiny_model().state_dict()
    torch.save({"state_dict": state}, tmp_path / "model.ckpt")
    options = {"ckpt_path": str(tmp_path / "model.ckpt"), "ignore_keys": ["transformer.head"]}
    model = instantiate_from_config(transformer_config(**options))
    assert torch.equal(model.transformer.ln_f.weight, state["transformer.ln_f.weight"])
    assert not torch.equal(model.transformer.head.weight, state["transformer.head.weight"])
    assert model.loaded_from == str(tmp_path / "model.ckpt")


def test_pkeep_replaces_inputs_in_training_only() -> None:
    _, spec = load_golden("net2net_coord")
    gpt = spec["model"]["params"]["transformer_config"]
    vocabulary = 50  # ten tokens more than codes
    larger = {**gpt, "params": {**gpt["params"], "vocab_size": vocabulary}}
    model = variant(pkeep=0.9, transformer_config=larger)
    torch.manual_seed(0)
    kept = model._keep_some(torch.full((8, 1024), vocabulary))  # that no noise equals
    noise = kept[kept != vocabulary]
    assert 0.09 < len(noise) / kept.numel() < 0.11
    assert noise.unique().tolist() == list(range(vocabulary))
    seen: list[Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    x, c = model.get_xc(batch_of())
    targets = [model.train(training)(x, c)[1] for training in (False, True)]
    assert torch.equal(*targets)  # what is predicted stays
    condition = model.encode_to_c(c)[1]
    plain, noisy = seen
    assert torch.equal(plain, torch.cat((condition, targets[0]), dim=1)[:, :-1])
    m = condition.shape[1]
    assert torch.equal(plain[:, :m], noisy[:, :m])
    assert 0.06 < float((plain[:, m:] != noisy[:, m:]).float().mean()) < 0.13


def test_pkeep_zero_draws_all_indices_at_once() -> None:
    model = variant(pkeep=0.0)
    calls: list[int] = []
    model.transformer.ln_f.register_forward_hook(lambda *args: calls.append(1))
    _, c = model.encode_to_c(model.get_xc(batch_of())[1])
    drawn = model.sample(c[:, :0], c, 256, sample=True)
    assert drawn.shape == (3, 256) and len(calls) == 1
    assert drawn.max() < 40


def test_latent_shape_and_downsampled_condition() -> None:
    model = variant(downsample_cond_size=16)
    assert model.latent_shape() == (8, 16, 16)
    _, indices = model.encode_to_c(model.get_xc(batch_of())[1])
    assert indices.shape == (3, 64)


def test_a_missing_key_is_named() -> None:
    with pytest.raises(UserError, match="no 'depth'"):
        variant().get_input("depth", batch_of())


def dropping(cond_drop: float, **changes: Any) -> Net2NetTransformer:
    _, spec = load_golden("net2net_class")
    params = {**spec["model"]["params"], "cond_drop": cond_drop, **changes}
    return instantiate_from_config({**spec["model"], "params": params})


def test_conditions_are_dropped_in_training_only() -> None:
    model = dropping(0.9)
    golden, _ = load_golden("net2net_class")
    x, c = model.get_xc(Batches(golden, 1)[0])
    x, c = x.repeat(32, 1, 1, 1), c.repeat(32)
    seen: list[Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, 0]))
    torch.manual_seed(0)
    model.train()(x, c)
    model.eval()(x, c)
    assert model.null_token == model.transformer.config.vocab_size - 1
    dropped = seen[0] == model.null_token
    assert 0.8 < float(dropped.float().mean()) < 1
    assert torch.equal(seen[0][~dropped], c[~dropped])
    assert torch.equal(seen[1], c)


def test_a_condition_is_dropped_as_a_whole() -> None:
    model = variant(**CONDITIONS["tokens"], cond_drop=0.5).train()
    seen: list[Tensor] = []
    model.transformer.register_forward_pre_hook(lambda _, args: seen.append(args[0][:, :4]))
    torch.manual_seed(0)
    x, _ = model.get_xc(batch_of())
    tokens = torch.arange(4).repeat(32, 1)
    model(x[:1].expand(32, -1, -1, -1), tokens)
    dropped = seen[0][:, 0] == model.null_token
    assert 4 < dropped.sum() < 28
    assert (seen[0][dropped] == model.null_token).all()
    assert torch.equal(seen[0][~dropped], tokens[~dropped])


def test_conditions_that_are_images_are_looked_at_as_images() -> None:
    """Unless they are segmentations, which may have any numbers."""
    batch = {"image": torch.rand(1, 8, 8, 3) * 2 - 1, "sketch": torch.full((1, 8, 8, 3), 200.0)}
    batch["sketch"][0, 0, 0, 0] = 0
    for labels in (3, None):
        stage = first_stage_config(n_embed=20, colorize_nlabels=labels)
        changes = {"cond_stage_config": stage, "cond_stage_key": "sketch"}
        model = tiny_model(transformer_config({"block_size": 40}, **changes))
        if labels:
            model.check_batch(batch)
            continue
        with pytest.raises(UserError, match="'sketch' of the data has values from 0 to 200"):
            model.check_batch(batch)


def test_sequences_are_measured_before_training() -> None:
    """Of 16 codes, and a condition that is made smaller: 4 x 4 pixels are 2 x 2 codes."""
    batch = {"image": torch.rand(1, 8, 8, 3) * 2 - 1, "class_label": torch.zeros(1)}
    stage = {"cond_stage_config": first_stage_config(n_embed=20), "cond_stage_key": "image"}
    stage["downsample_cond_size"] = 4
    tiny_model(transformer_config({"block_size": 19}, **stage)).check_batch(batch)
    with pytest.raises(UserError, match="16 tokens of an image and 4 of its .* at least 19"):
        tiny_model(transformer_config({"block_size": 18}, **stage)).check_batch(batch)
    order = {**CONDITIONS["spiral"]["permuter_config"], "params": {"H": 4, "W": 5}}
    with pytest.raises(UserError, match="permuter orders 20 positions, but the latent has 16"):
        tiny_model(transformer_config(permuter_config=order)).check_batch(batch)


def test_the_vocabulary_holds_the_condition_stages_codes() -> None:
    for needed in (23, 24):  # of which there are 23 tokens
        stage = {"cond_stage_config": first_stage_config(n_embed=needed)}
        if needed == 23:
            tiny_model(transformer_config(**stage))
            continue
        with pytest.raises(UserError, match="23, too small for the 24 tokens of the condition"):
            tiny_model(transformer_config(**stage))


def test_condition_dropout_adds_no_weights() -> None:
    assert dropping(0.1).state_dict().keys() == dropping(0.0).state_dict().keys()


def test_condition_dropout_needs_a_condition_and_a_token() -> None:
    with pytest.raises(UserError, match="has none"):
        dropping(0.1, cond_stage_config="__is_unconditional__")
    with pytest.raises(UserError, match="from 0 to below 1"):
        dropping(1.0)
    params = load_golden("net2net_class")[1]["model"]["params"]
    for share in (-0.1, 1.0):
        with pytest.raises(UserError, match=f"cond_drop is a share, from .*, not {share}"):
            Net2NetTransformer(**params, cond_drop=share)
    vocabulary = dropping(0.0).transformer.config.vocab_size
    labels = {
        "target": "taming.modules.util.Labelator",
        "params": {"n_classes": vocabulary},
    }
    with pytest.raises(UserError, match=f"vocab_size at least {vocabulary + 1}"):
        dropping(0.1, cond_stage_config=labels)


def test_labels_are_checked_before_they_are_on_a_gpu() -> None:
    model = tiny_model()
    good: Any = ({"class_label": torch.tensor([0, 4])}, {"codes": torch.zeros(1)}, [1], None)
    for batch in good:
        assert model.on_before_batch_transfer(batch, 0) is batch
    with pytest.raises(UserError, match="class labels from 0 to 5 do not fit n_classes: 5"):
        model.on_before_batch_transfer({"class_label": torch.tensor([0, 5])}, 0)
