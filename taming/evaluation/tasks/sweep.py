"""One run under many sampler settings."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from itertools import product
from typing import Any

from taming.config import did_you_mean
from taming.errors import UserError
from taming.evaluation.sources.run import RunSource
from taming.evaluation.tasks.fidelity import Evaluation, FidelityEvaluator, flattened
from taming.evaluation.tasks.side_by_side import SideBySide
from taming.sampling.plan import SamplingPlan
from taming.sampling.rejection import GROUP, Classifier

ACCEPTANCE = "acceptance"  # the share of `--reject_ratio`; 1 needs no classifier
OTHER_NAMES = {"reject_ratio": ACCEPTANCE}


def _top_k(text: str) -> int | tuple[int, ...]:
    """A number, or several of "100+200", of which each sample has one."""
    first, *more = (int(part) for part in text.split("+"))
    return (first, *more) if more else first


SWEPT: dict[str, Callable[[str], Any]] = {
    "top_k": _top_k,
    **dict.fromkeys(("top_p", "temperature", "guidance", ACCEPTANCE), float),
}


def parse_sweep(text: str) -> dict[str, list[Any]]:
    """{"top_k": [50, 100]} of "top_k=50,100"; several settings are separated by semicolons.

    The samples of "top_k=50,50+100" have k = 50, and then one of both each.

    Raises UserError for unknown settings and for values that are no numbers.
    """
    swept: dict[str, list[Any]] = {}
    for part in filter(None, (part.strip() for part in text.split(";"))):
        name, _, values = (piece.strip() for piece in part.partition("="))
        name = OTHER_NAMES.get(name, name)
        if name not in SWEPT:
            raise UserError(f"--sweep has no '{name}'{did_you_mean(name, SWEPT)}")
        try:
            swept[name] = [SWEPT[name](value) for value in values.split(",") if value.strip()]
        except ValueError:
            raise UserError(f"--sweep {part}: {name} takes numbers such as {name}=1,2") from None
        if not swept[name]:
            raise UserError(f"--sweep {part}: give at least one value")
    if not swept:
        raise UserError("--sweep is empty; give say top_k=50,100;top_p=0.9,1.0")
    return swept


def evaluate_sweep(
    evaluator: FidelityEvaluator | SideBySide, run: RunSource, swept: Mapping[str, list[Any]]
) -> Iterator[tuple[dict[str, Any], Evaluation | None]]:
    """Settings and numbers of every combination.

    Raises UserError, before anything is sampled, for values that the model does not sample by, and
    for a classifier that is not there.
    """
    chosen = [dict(zip(swept, values, strict=True)) for values in product(*swept.values())]
    plans = [_changed(run.plan, values) for values in chosen]
    for plan in plans:
        plan.check(run.model)
    for name in dict.fromkeys(plan.classifier for plan in plans if plan.classifier):
        Classifier(name, run.plan.device)
    for values, plan in zip(chosen, plans, strict=True):
        yield values, evaluator(run.with_plan(plan))


def shown(value: Any) -> str:
    """A swept value as `parse_sweep` takes it."""
    return "+".join(map(str, value)) if isinstance(value, tuple) else f"{value:g}"


def _changed(plan: SamplingPlan, values: Mapping[str, Any]) -> SamplingPlan:
    """The plan with other settings, and with another share of accepted samples."""
    settings = {name: value for name, value in values.items() if name != ACCEPTANCE}
    plan = replace(plan, settings=replace(plan.settings, **settings))
    if ACCEPTANCE not in values:
        return plan
    ratio = values[ACCEPTANCE]
    if ratio == 1:  # all are accepted, of whatever pool
        return replace(plan, reject_ratio=ratio, classifier=None, reject_pool=GROUP)
    return replace(plan, reject_ratio=ratio)


def start_of_sweep(swept: Mapping[str, list[Any]], args: argparse.Namespace) -> None:
    """Set the flags of rejection to where a sweep over the acceptance can start.

    Raises UserError if there are shares below 1 and no classifier.
    """
    if ACCEPTANCE not in swept:
        return
    rejecting = [ratio for ratio in swept[ACCEPTANCE] if ratio < 1]
    if rejecting and args.classifier is None:
        raise UserError(f"--sweep {ACCEPTANCE}= needs --classifier, such as resnet101")
    args.reject_ratio = rejecting[0] if rejecting else 1.0
    if not rejecting:
        args.classifier, args.reject_pool = None, GROUP


def row(chosen: Mapping[str, Any], metrics: Mapping[str, Any]) -> dict[str, Any]:
    """A line of the sweep's table; deviations over splits and subsets are left out."""
    numbers = {name: value for name, value in flattened(metrics) if not name.endswith(".std")}
    own = {name: shown(v) if isinstance(v, tuple) else v for name, v in chosen.items()}
    return {**own, **{name.removesuffix(".mean"): value for name, value in numbers.items()}}
