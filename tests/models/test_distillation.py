"""A transformer that learns from another: the loss, what is kept of the teacher, and refusals."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from omegaconf import OmegaConf
from torch import Tensor

from taming.checkpoint import load_run
from taming.errors import UserError
from taming.models.cond_transformer import Net2NetTransformer
from taming.training.cli import main as main_command
from tests.kit.models import CLASSES, SPIRAL, tiny_model, transformer_config
from tests.kit.runs import run_with_data, tiny_run
from tests.kit.training import fit, write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
GENERATOR = torch.Generator().manual_seed(7)
CODES = torch.randint(20, (6, 4, 4), generator=GENERATOR)
COLUMNS = {"codes": CODES, "condition_codes": torch.arange(6)[:, None] % 5}


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three layers, with the stages of `transformer_config()`."""
    config = transformer_config({"n_layer": 3, "embd_pdrop": 0.5}, cond_drop=0.2)
    return tiny_run(tmp_path_factory.mktemp("teacher") / "run", config)


def student(teacher: Path | None, gpt: dict[str, Any] | None = None, **params: Any) -> Any:
    sizes = {"n_layer": 1, **(gpt or {})}
    own = {} if teacher is None else {"teacher": str(teacher)}
    model = tiny_model(transformer_config(sizes, **own, **params))
    model.learning_rate = 1e-2
    return model


class Rows(pl.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        metrics = trainer.callback_metrics.items()
        self.rows.append({name: float(value) for name, value in metrics if "train" in name})


def gradients(model: Net2NetTransformer) -> dict[str, Tensor]:
    return {name: p.grad for name, p in model.transformer.named_parameters()}


def test_the_teacher_answers_where_it_is_asked_alone(teacher: Path) -> None:
    model, rows = student(teacher), list[int]()
    model.load_teacher()
    gpt, sequence = model.teacher.transformer, torch.arange(12).view(2, 6)
    expected = gpt(sequence)[0][:, 4:]
    gpt.head.register_forward_hook(lambda module, given, out: rows.append(out.shape[1]))
    torch.testing.assert_close(model.teacher.logits(sequence, 4), expected)
    assert rows == [2]


@pytest.mark.parametrize("weight", [None, 0.1, 0.7, 1.0])
def test_the_gradient_is_that_of_the_written_out_formula(
    teacher: Path, weight: float | None
) -> None:
    given = {} if weight is None else {"soft_loss_weight": weight}
    model, w = student(teacher, **given), 0.1 if weight is None else weight
    model.log = lambda *args, **kwargs: None
    model.load_teacher()
    loss = model.train().training_step(COLUMNS, 0)
    loss.backward()
    taught, models = gradients(model), (student(None), load_run(teacher)[0])
    sequence = torch.cat((COLUMNS["condition_codes"], CODES.flatten(1)), 1)[:, :-1]
    q, p = (one.transformer(sequence)[0].softmax(-1) for one in models)
    target = CODES.flatten(1)[..., None]
    cross_entropy = -q.gather(-1, target).log().mean()
    divergence = (p * (p.log() - q.log())).sum(-1).mean()
    expected = (1 - w) * cross_entropy + w * divergence
    expected.backward()
    torch.testing.assert_close(loss, expected)
    for name, gradient in gradients(models[0]).items():
        torch.testing.assert_close(taught[name], gradient, rtol=1e-4, atol=1e-6)
    assert all(parameter.grad is None for parameter in model.teacher.transformer.parameters())
    torch.testing.assert_close(model.loss_terms["train/hard_loss"], cross_entropy)
    torch.testing.assert_close(model.loss_terms["train/soft_loss"], divergence)
    assert model.logged_names() == {"val/loss", *model.loss_terms}


def test_the_teacher_stays_as_it_is_and_out_of_checkpoints(teacher: Path, tmp_path: Path) -> None:
    model, rows = student(teacher, soft_loss_weight=0.5, cond_drop=0.1, pkeep=0.9), Rows()
    names = set(model.state_dict())
    trainer = fit(model, COLUMNS, tmp_path, callbacks=[rows])
    state = load_run(teacher)[0].transformer.state_dict()
    assert not model.teacher.transformer.training
    for name, value in model.teacher.transformer.state_dict().items():
        assert torch.equal(value, state[name]), name
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(saved["state_dict"]) == names == set(student(None).state_dict())
    groups = trainer.optimizers[0].param_groups
    assert sum(len(group["params"]) for group in groups) == len(
        list(model.transformer.parameters())
    )
    assert {"train/loss", "train/hard_loss", "train/soft_loss"} <= rows.rows[0].keys()
    assert trainer.callback_metrics["val/loss"] > 0


def test_without_weight_a_teacher_says_nothing(tmp_path: Path) -> None:
    """Its run need not even be there; nor for a model that is only used."""
    silent, plain = student(tmp_path / "none", soft_loss_weight=0.0), student(None)
    both = []
    for model in (silent, plain):
        rows = Rows()
        torch.manual_seed(1)
        fit(model, COLUMNS, tmp_path, callbacks=[rows])
        both.append((rows.rows, model.state_dict()))
    assert both[0][0] == both[1][0] and "train/soft_loss" not in both[0][0][0]
    assert all(torch.equal(value, both[1][1][name]) for name, value in both[0][1].items())
    assert student(tmp_path / "none").teacher is None


def test_images_and_their_codes_teach_alike(teacher: Path) -> None:
    model = student(teacher)
    model.log = lambda *args, **kwargs: None
    model.load_teacher()
    images = torch.rand(6, 8, 8, 3, generator=GENERATOR) * 2 - 1
    batch = {"image": images, "class_label": COLUMNS["condition_codes"][:, 0]}
    codes = model.encode_to_indices(model.get_xc(batch)[0])
    expected = model.train().training_step({**COLUMNS, "codes": codes}, 0)
    assert torch.equal(model.training_step(batch, 0), expected)


def test_teacher_and_student_may_differ_inside(teacher: Path) -> None:
    """And in precision: both compute in the student's."""
    gpt = {"n_head": 1, "n_embd": 8, "rope_grid": [4, 4], "adaln_classes": 5, "qk_norm": True}
    model = student(teacher, gpt).bfloat16()
    model.log = lambda *args, **kwargs: None
    model.load_teacher()
    model.teacher.to(next(model.transformer.parameters()))
    loss = model.train().training_step(COLUMNS, 0)
    assert loss.isfinite() and model.loss_terms["train/soft_loss"].dtype == torch.float32
    assert model.teacher.transformer.pos_emb.dtype == torch.bfloat16
    loss.backward()


OTHER_STAGE = transformer_config()["params"]["first_stage_config"]
OTHER_STAGE = {**OTHER_STAGE, "params": {**OTHER_STAGE["params"], "n_embed": 19}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"gpt": {"vocab_size": 24}}, "vocab_size of .*run is 23, and this model's 24"),
        ({"first_stage_config": OTHER_STAGE}, "first stage's n_codes of .* is 20, and .* 19"),
        (
            {"cond_stage_config": {**CLASSES, "params": {"n_classes": 4}}},
            "the condition's n_classes of .* is 5, and this model's 4",
        ),
        (
            {"cond_stage_config": "__is_unconditional__"},
            "the condition's kind of .* is class, and this model's none",
        ),
        ({"permuter_config": SPIRAL}, "the permuter of .* is Identity, and this model's SpiralOut"),
        (
            {"pkeep": 0.0},
            "reading of .* is conditions and codes, and .* conditions alone",
        ),
    ],
)
def test_indices_of_another_meaning_are_refused(
    teacher: Path, changes: dict[str, Any], message: str
) -> None:
    model = student(teacher, **changes)
    with pytest.raises(UserError, match=f"model.params.teacher: .*{message}"):
        model.load_teacher()


def test_another_first_stage_is_refused(teacher: Path) -> None:
    model = student(teacher)
    with torch.no_grad():
        model.first_stage_model.post_quant_conv.bias += 1
    with pytest.raises(UserError, match="first stage's weights of"):
        model.load_teacher()


def test_teachers_that_are_none(teacher: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="model.params.teacher: .*nowhere"):
        student(tmp_path / "nowhere").load_teacher()
    with pytest.raises(UserError, match="is a first stage; name a transformer"):
        student(run_with_data(tmp_path / "first")).load_teacher()
    with pytest.raises(UserError, match="soft_loss_weight is 0.3, but there is no teacher"):
        student(None, soft_loss_weight=0.3)
    undropped = tiny_run(tmp_path / "undropped")
    with pytest.raises(UserError, match="was trained without cond_drop"):
        student(undropped, cond_drop=0.1).load_teacher()
    short = tiny_run(tmp_path / "short", transformer_config({"block_size": 15}))
    model = student(short)
    model.load_teacher()
    batch = {"image": torch.zeros(1, 8, 8, 3), "class_label": torch.zeros(1).long()}
    with pytest.raises(UserError, match="block_size of .* is 15, too small for the 16 tokens"):
        model.check_batch(batch)


def test_main_refuses_a_teacher_before_the_run_has_a_folder(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = transformer_config({"vocab_size": 24}, teacher=str(teacher))
    data = {"target": "tests.kit.datasets.Noise", "params": {"length": 4}}
    params = {"batch_size": 2, "num_workers": 0, "train": data}
    whole = OmegaConf.create(
        {
            "model": {"base_learning_rate": 1e-3, **config},
            "data": {"target": "main.DataModuleFromConfig", "params": params},
        }
    )
    with pytest.raises(UserError, match="model.params.teacher: vocab_size"):
        main(["--base", write_config(tmp_path, whole), "-t"])
    assert not (tmp_path / "logs").exists()


def test_a_masked_teacher_predicts_no_code_after_others(tmp_path: Path) -> None:
    masked = tiny_run(tmp_path / "run", transformer_config({"attention": "full", "block_size": 17}))
    with pytest.raises(UserError, match="teacher: .*run has attention: full: .* attention: causal"):
        student(masked).load_teacher()


@pytest.mark.parametrize("order", ["random", "annealed"])
def test_a_teacher_of_any_order_reads_by_rows(order: str, tmp_path: Path) -> None:
    gpt = {"n_layer": 1, "target_positions": True}
    model = student(tiny_run(tmp_path / "run", transformer_config(gpt, order=order)))
    model.load_teacher()
    sequence = torch.cat((COLUMNS["condition_codes"], CODES.flatten(1)), 1)[:, :-1]
    by_rows = torch.arange(17).expand(6, -1)
    expected = model.teacher.transformer(sequence, path=by_rows)[0]
    torch.testing.assert_close(model.teacher.logits(sequence, 0), expected)


def test_a_teacher_of_another_grid_is_refused(tmp_path: Path) -> None:
    model = student(tiny_run(tmp_path / "run", transformer_config({"rope_grid": [2, 8]})))
    model.load_teacher()
    batch = {"image": torch.zeros(1, 8, 8, 3), "class_label": torch.zeros(1).long()}
    with pytest.raises(UserError, match=r"teacher: of .*run, the image.* rope_grid is \[2, 8\]"):
        model.check_batch(batch)


def test_settings_that_weights_do_not_tell_are_compared(tmp_path: Path) -> None:
    """The levels of a quantizer that has no weights."""

    def stage(levels: list[int]) -> dict[str, Any]:
        quantizer = {"target": "taming.modules.vqvae.fsq.FSQ", "params": {"levels": levels}}
        params = {**transformer_config()["params"]["first_stage_config"]["params"]}
        params |= {"n_embed": None, "embed_dim": None, "quantizer_config": quantizer}
        return {"target": "taming.models.vqgan.VQModel", "params": params}

    taught = tiny_run(tmp_path / "run", transformer_config(first_stage_config=stage([4, 5])))
    model = student(taught, first_stage_config=stage([5, 4]))
    with pytest.raises(UserError, match=r"stage's levels of .* is \[4, 5\], and .* \[5, 4\]"):
        model.load_teacher()
