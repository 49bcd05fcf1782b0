"""Knowledge distillation: a transformer learns from what a larger one predicts (arXiv 1503.02531).

At every index of an image, with p the teacher's distribution over the vocabulary, q the student's,
y the image's own index and w the `soft_loss_weight`:

    loss = (1 - w) * -log q(y) + w * KL(p || q),   KL(p || q) = sum_k p(k) * (log p(k) - log q(k))

The mean of it over indices, in nats, is what is trained; both read the same sequence. Validation
scores the first term alone, w being 0, so that students compare with other models.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from taming.checkpoint import load_run
from taming.checkpoint.fingerprint import weights_hash
from taming.errors import UserError
from taming.models.code_sampling import CodeSampling
from taming.models.first_stage import tensors_of
from taming.models.forward_settings import option_of
from taming.models.stage_identity import describe_condition, describe_first_stage
from taming.modules.transformer.gpt import GPT
from taming.modules.transformer.own_methods import logits_from
from taming.modules.transformer.plain import block_size_of
from taming.modules.transformer.variants import check_layout


class Teacher:
    """A frozen transformer in evaluation mode.

    It is no module, so that neither its student's checkpoints nor its optimizer contain it.
    """

    def __init__(self, path: str, student: CodeSampling) -> None:
        """Load the run or checkpoint `path`.

        Raises:
            UserError: if there is none, or its indices mean something else than the student's.
        """
        try:
            model = load_run(path)[0]
            if not isinstance(model, CodeSampling):
                raise UserError(f"{path} is a first stage; name a transformer")
            _check_alike(path, model, student)
        except UserError as error:
            hint = "; to train without a teacher, set it to null"
            raise UserError(f"model.params.teacher: {error}{hint}") from None
        self.path = path
        self.transformer = model.transformer.requires_grad_(False)  # the stages are the student's

    def to(self, tensor: Tensor) -> None:
        """Move to the device of the student's weights, in their precision."""
        self.transformer.to(tensor)

    def check_length(self, condition: int | None, shape: Sequence[int]) -> None:
        """Refuse (`UserError`) sequences, and layouts, that the teacher was not built for."""
        if isinstance(self.transformer, GPT):
            try:
                check_layout(self.transformer.config, condition, shape)
            except UserError as error:
                raise UserError(f"model.params.teacher: of {self.path}, {error}") from None
        needed = (condition or 1) + shape[0] * shape[1] - 1
        if needed > (size := block_size_of(self.transformer)):
            raise UserError(
                f"model.params.teacher: block_size of {self.path} is {size}, too small for the "
                f"{needed} tokens that are read here; name a model of this size"
            )

    @torch.no_grad()
    def logits(self, sequence: Tensor, start: int) -> Tensor:
        """After the tokens of `sequence` (B, T) from `start` on: (B, T - start, V)."""
        return logits_from(self.transformer, sequence, start)


def soft_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher || student) of logits (B, n, V) each: the mean over the B * n indices, in nats."""
    dtype = torch.promote_types(student.dtype, torch.float32)
    log_p, log_q = (x.flatten(0, 1).log_softmax(-1, dtype=dtype) for x in (teacher, student))
    return F.kl_div(log_q, log_p, reduction="batchmean", log_target=True)


def _check_alike(path: str, teacher: CodeSampling, student: CodeSampling) -> None:
    if teacher.masked:
        raise UserError(
            f"{path} has attention: full: it fills in masked codes, and predicts none after the "
            "other, as this model does; name a transformer with attention: causal"
        )
    sizes = [model.vocab_size for model in (teacher, student)]
    if sizes[0] != sizes[1]:
        raise UserError(f"vocab_size of {path} is {sizes[0]}, and this model's {sizes[1]}")
    one, other = (_layout(model) for model in (teacher, student))
    rounded = any(
        weight.dtype in (torch.bfloat16, torch.float16)
        for model in (teacher, student)
        for weight in model.first_stage_model.parameters()
    )
    for name in {**one, **other}:
        values = one.get(name), other.get(name)
        if values[0] != values[1] and not (rounded and name.endswith("weights")):
            raise UserError(
                f"the {name} of {path} is {values[0]}, and this model's {values[1]}; indices must "
                "mean the same to both"
            )
    if student.cond_drop and not teacher.cond_drop:
        raise UserError(f"{path} was trained without cond_drop, which this model has")


def _layout(model: CodeSampling) -> dict[str, object]:
    """What decides which indices a transformer reads, in which order."""
    first = describe_first_stage(model.first_stage_model)
    condition = describe_condition(model) or {"kind": "none"}
    condition.pop("key", None)  # what the data calls it
    about: dict[str, object] = {}
    for stage, described in (("first stage", first), ("condition", condition)):
        settings = described.pop("settings", None) or {}
        about |= {f"{stage}'s {name}": value for name, value in described.items()}
        about |= {f"{stage}'s {option_of(name)}": value for name, value in settings.items()}
    about["sos_token"] = model.sos_token if model.be_unconditional else None
    about["permuter"] = type(model.permuter).__name__
    about["permuter's order"] = weights_hash(tensors_of(model.permuter))
    about["reading"] = "conditions alone" if model.pkeep <= 0 else "conditions and codes"
    return about
