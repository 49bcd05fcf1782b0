"""What users' quantizers, stages and methods may return, and what is said of anything else."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from taming.errors import UserError
from taming.models import result_checks as checks
from taming.models.codes import CodeHistogram
from tests.training.sign_quantizer import SignQuantizer

Z = torch.linspace(-1, 1, 2 * 3 * 4 * 5).reshape(2, 3, 4, 5).requires_grad_()
CODES, LOSS, (_, _, INDICES) = SignQuantizer(3)(Z)
INFO = (None, None, INDICES)


class Own(SignQuantizer):
    """Returns something else."""

    def __init__(self, result: Any) -> None:
        super().__init__(3)
        self.result = result

    def forward(self, z: Tensor) -> Any:
        return self.result


@pytest.mark.parametrize(
    "result",
    [
        (CODES, LOSS, INFO),
        [CODES, LOSS[None], [1, 2, INDICES.flatten()]],
        (CODES, LOSS, (None, None, INDICES.int())),
    ],
)
def test_what_a_quantizer_may_return(result: Any) -> None:
    codes, loss, (_, _, indices) = checks.quantize(Own(result), Z)
    assert codes is CODES and loss.item() == LOSS.item()
    assert torch.equal(indices.flatten(), INDICES.flatten())


@pytest.mark.parametrize(
    ("result", "returned"),
    [
        (None, "None"),
        (CODES, r"a tensor \[2, 3, 4, 5\] of float32"),
        ((CODES, LOSS), r"\(a tensor .*, a tensor \[\] of float32\)"),
        ({"codes": CODES, "loss": LOSS}, "a dict of 'codes', 'loss'"),
        ((CODES, LOSS, INFO, 1), r"\(a tensor .*, an object of type int\)"),
        ((CODES, LOSS, INDICES), r"\(.*, a tensor \[2, 4, 5\] of int64\)"),
        ((CODES, LOSS, (None, None, None)), r"\(.*, \(None, None, None\)\)"),
        (
            (CODES, LOSS, (None, None, INDICES.float())),
            r"\(.*, a tensor \[2, 4, 5\] of float32\)\)",
        ),
        ((CODES, LOSS, (None, None, INDICES > 1)), r"\(.*, a tensor \[2, 4, 5\] of bool\)\)"),
        ((CODES, LOSS, (None, None, INDICES.numpy())), r"\(.*, an array \[2, 4, 5\] of int64\)\)"),
        ((CODES, LOSS, (None, None, INDICES[:1])), r"\(.*, a tensor \[1, 4, 5\] of int64\)\)"),
        ((CODES[:1], LOSS, INFO), r"\(a tensor \[1, 3, 4, 5\] .*"),
        ((CODES[:, :1], LOSS, INFO), r"\(a tensor \[2, 1, 4, 5\] .*"),
        ((CODES[..., :2], LOSS, INFO), r"\(a tensor \[2, 3, 4, 2\] .*"),
        ((CODES[0], LOSS, INFO), r"\(a tensor \[3, 4, 5\] .*"),
        ((CODES.long(), LOSS, INFO), r"\(a tensor \[2, 3, 4, 5\] of int64.*"),
        ((CODES.detach().numpy(), LOSS, INFO), r"\(an array \[2, 3, 4, 5\] of float32.*"),
        ((CODES, CODES, INFO), r"\(a tensor .*, a tensor \[2, 3, 4, 5\] .*"),
        ((CODES, 0.5, INFO), r"\(a tensor .*, an object of type float, .*"),
        ((CODES, LOSS.long(), INFO), r"\(a tensor .*, a tensor \[\] of int64, .*"),
    ],
)
def test_what_a_quantizer_returns_is_checked(result: Any, returned: str) -> None:
    expected = r"test_result_checks.Own must return \(codes, loss, .* codes \[2, 3, 4, 5\] .*"
    with pytest.raises(UserError, match=rf"{expected}; it returned {returned}$"):
        checks.quantize(Own(result), Z)


class Unfinished(nn.Module):
    n_e, e_dim = 4, 3


@pytest.mark.parametrize(
    ("quantizer", "message"),
    [
        (nn.Identity(), "Identity must have attributes n_e and e_dim"),
        (SimpleNamespace(n_e="4", e_dim=3), "must have attributes n_e and e_dim"),
        (SimpleNamespace(n_e=4, e_dim=0), "must have attributes n_e and e_dim"),
        (SimpleNamespace(n_e=4, e_dim=3), r"must have a method forward\(z\)"),
        (Unfinished(), r"q: .*Unfinished must have a method forward\(z\)"),
    ],
)
def test_a_quantizer_has_sizes_and_can_be_called(quantizer: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        checks.check_quantizer(quantizer, "q")
    checks.check_quantizer(SignQuantizer(2), "q")


@pytest.mark.parametrize("indices", [[0, 4], [-1, 2]])
def test_indices_of_no_code_are_refused(indices: list[int]) -> None:
    histogram = CodeHistogram(4)
    histogram.add(torch.tensor([3, 0]))
    with pytest.raises(UserError, match=rf"from {indices[0]} to {indices[1]}, but it has 4 codes"):
        histogram.add(torch.tensor(indices))


X = torch.zeros(2, 3, 8, 8)
TOKENS = torch.zeros(2, 4, dtype=torch.long)
NUMBER = torch.ones(())


def stage(result: Any) -> Any:
    return checks.encoding_of(SimpleNamespace(encode=lambda _: result), X)


@pytest.mark.parametrize(
    ("check", "good", "bad"),
    [
        (lambda r: checks.checked_images(r, "own", 3), [X], [None, X.numpy(), X[0], X[:, :2]]),
        (lambda r: checks.checked_images(r, "own", None), [X[:, :2]], [X.long(), (X, 1)]),
        (
            lambda r: checks.checked_reconstruction(r, "own", X),
            [(X, NUMBER), [X, NUMBER]],
            [None, X, (X, None), (NUMBER, X), (X, NUMBER, 1), (X, X), (X[0], NUMBER)],
        ),
        (
            lambda r: checks.loss_of_step(r, "own"),
            [None, NUMBER, {"loss": NUMBER}, {}],
            ["x", 1.0, X, (NUMBER, {}), {"loss": 1.0}],
        ),
        (lambda r: checks.required_loss(r, "own"), [NUMBER], [None, X, {"loss": NUMBER}]),
        (
            lambda r: checks.checked_tokens(r, "own", 2),
            [(None, TOKENS), (X, TOKENS.int())],
            [None, TOKENS, (X, TOKENS.float()), (X, TOKENS[0]), (X, TOKENS[:1])],
        ),
        (lambda r: checks.checked_entry(r, "own"), [X, TOKENS], [None, [1], NUMBER]),
        (
            lambda r: checks.checked_inputs(r, "own"),
            [(X, TOKENS)],
            [None, X, (X,), (X, TOKENS[:1]), (X, None)],
        ),
        (
            lambda r: checks.checked_prediction(r, "own"),
            [(torch.zeros(2, 4, 7), TOKENS), (torch.zeros(2, 4, 7), TOKENS.flatten())],
            [None, torch.zeros(2, 4, 7), (X[0], TOKENS), (torch.zeros(2, 4, 7), TOKENS.float())],
        ),
        (
            stage,
            [(X, None, (None, None, TOKENS)), [X, NUMBER, [1, 2, TOKENS.flatten()]]],
            [
                *(TOKENS, (X, None, TOKENS), (X, None, (None, None, TOKENS.float()))),
                *((X[:1], None, (None, None, TOKENS)), (X, None, (None, None, TOKENS[0, :3]))),
            ],
        ),
    ],
)
def test_what_methods_return(check: Callable[[Any], Any], good: list[Any], bad: list[Any]) -> None:
    for result in good:
        check(result)
    for result in bad:
        with pytest.raises(UserError, match="must return .*; it returned"):
            check(result)


def test_tokens_are_those_of_the_vocabulary() -> None:
    checks.check_vocabulary(torch.tensor([0, 3]), "own", 4)
    for tokens in ([0, 4], [-1, 2]):
        with pytest.raises(UserError, match=rf"own gives tokens from {tokens[0]} to {tokens[1]}"):
            checks.check_vocabulary(torch.tensor(tokens), "own", 4)
