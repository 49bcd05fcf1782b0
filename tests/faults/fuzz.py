"""Campaigns of made-up input: many cases of each target, and those that have once failed.

Most cases are good input with a few changes, as those get furthest. Nothing is shrunk and a bad
case ends nothing: a campaign counts, and keeps one example of each kind of failure.
"""

from __future__ import annotations

import copy
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DataObject

from tests.faults.made_up_configs import (
    ALL_BASES,
    key_elsewhere,
    main_arguments,
    script_arguments,
    wrong_entry,
)
from tests.faults.made_up_input import (
    BASES,
    SMALL_RUN,
    coco,
    config,
    image,
    layout,
    list_file,
    mask,
    open_images,
    overrides,
    sampling_arguments,
    stranger,
    training_arguments,
    yaml_text,
)
from tests.faults.sandbox import GOOD, Sandbox
from tests.kit.scenes import coco_content

# Changes to configs, override by override; "..." stands for no value at all.
KNOWN_CHANGES: tuple[tuple[str, Any], ...] = (
    ("data.params.validation.params.training_images_list_file", 1e-4),
    ("data.params.train.params", [1, 2]),
    ("data.params.train", [1]),
    ("data.params.num_workers", None),
    ("data.params.num_workers", {"a": 1}),
    ("data.params.batch_size", "abc"),
    ("lightning.trainer", 0),
    ("model", None),
    ("model.params", [1]),
    ("model.target", []),
    ("model.target", 0),
    ("model.params.embed_dim", "\0"),
    ("model.params.n_embed", None),
    ("model.params.n_embed", 10**12),
    ("model.params.ddconfig", 1),
    ("model.params.ddconfig.ch_mult", -0.5),
    ("model.params.ddconfig.dropout", "x"),
    ("model.params.lossconfig.params.disc_ndf", "abc"),
    ("model.params.lossconfig.params.disc_weight", "\0"),
    ("model.params.lossconfig.params.disc_num_layers", {"target": "os.getcwd"}),
)


def known_cases() -> list[tuple[str, Any]]:
    """(target, case) of input that once ended in a traceback, or never."""
    cases: list[tuple[str, Any]] = []
    for path, value in KNOWN_CHANGES:
        tree = copy.deepcopy(BASES["vqgan"])
        *parents, last = path.split(".")
        node = tree
        for key in parents:
            node = node[key]
        node[last] = value
        cases.append(("config", tree))
    base = ["-b", "ASSETS/vqgan.yaml"]
    cases += [
        ("training_arguments", [*base, "model.params=[1]"]),
        ("training_arguments", [*base, "model.params.n_embed="]),
        ("sampling_arguments", ["-n", "1", "--classes", "1", "-o", "\0"]),
        ("sampling_arguments", ["-n", "1", "--classes", "1", "model.params.pkeep=x"]),
        ("sampling_arguments", ["-n", "99999999999999999999"]),
        ("layout", "[" * 100_000),
        ("layout", [{"class": [1, 2], "box": [0.1, 0.2, 0.4]}]),
    ]
    for identity in ([], {}, float("inf")):
        content = coco_content()
        content["annotations"][2]["id"] = identity
        cases.append(("coco", {"instances": content}))
    cases.append(("coco", {"instances": coco_content() | {"images": True}}))
    content = coco_content()
    content["images"][0]["height"] = float("nan")
    cases.append(("coco", {"instances": content}))
    # A gray pixel, whose data claim to have 4 GB.
    png = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\1\0\0\0\1\x08\0\0\0\0:~\x9bU\xec\0\0\nIDATx\x9c"
    cases.append(("image", png.decode("latin-1")))
    gumbel = copy.deepcopy(BASES["gumbel"])
    gumbel["model"]["params"]["ddconfig"]["z_channels"] = 1e3
    cases.append(("config", gumbel))
    named = copy.deepcopy(SMALL_RUN)
    named["model"]["params"]["cond_stage_config"] = "${a.b}"
    cases.append(("stranger", named))
    cases.append(("open_images", {"class-descriptions-boxable.csv": "/m/01s55n,Suit\x8acase\n"}))
    return cases


# ---------------------------------------------------------------------- campaigns

# name -> (maker of cases, target, share of all cases)
CAMPAIGNS: dict[str, tuple[Any, str, float]] = {
    "configs": (config, "config", 0.10),
    "configs with a wrong entry": (wrong_entry, "config", 0.14),
    "configs with a key elsewhere": (key_elsewhere, "config", 0.06),
    "strangers' configs": (stranger, "stranger", 0.08),
    "YAML": (yaml_text, "yaml_text", 0.04),
    "overrides": (overrides, "training_arguments", 0.06),
    "command lines": (training_arguments, "training_arguments", 0.06),
    "command lines with several configs": (main_arguments, "training_arguments", 0.04),
    "command lines of sampling": (sampling_arguments, "sampling_arguments", 0.04),
    "command lines of other scripts": (script_arguments, "script_arguments", 0.06),
    "list files": (list_file, "list_file", 0.06),
    "COCO annotations": (coco, "coco", 0.06),
    "Open Images annotations": (open_images, "open_images", 0.06),
    "layouts": (layout, "layout", 0.06),
    "masks": (mask, "mask", 0.04),
    "images and their metadata": (image, "image", 0.04),
}


def shown(case: Any) -> str:
    """A case in a line: what differs from the nearest base, or all of it."""
    if isinstance(case, dict) and case.keys() & {"model", "data"}:
        bases = (*ALL_BASES.values(), SMALL_RUN)
        lines = min((_edits(base, case) for base in bases), key=len)
        return "; ".join(lines)[:400]
    return repr(case)[:400]


def _edits(base: Any, case: Any, path: str = "") -> list[str]:
    if isinstance(base, dict) and isinstance(case, dict):
        keys = dict.fromkeys([*base, *case])
        pairs = [(f"{path}.{key}".strip("."), key) for key in keys]
        return [
            line
            for where, key in pairs
            if base.get(key) is not case.get(key)
            for line in _edits(base.get(key, "nothing"), case.get(key, "nothing"), where)
        ]
    same = repr(base) == repr(case)
    return [] if same else [f"{path} = {case!r}"[:200]]


@dataclass
class Campaign:
    """What became of the cases of one name: `bad` has an example of each kind of failure."""

    name: str
    cases: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    bad: dict[str, tuple[str, Any]] = field(default_factory=dict)
    bad_cases: int = 0

    def add(self, case: Any, answer: str) -> None:
        """Count a case."""
        self.cases += 1
        kind = answer.partition(":")[0]
        self.answers[kind] += 1
        if kind not in GOOD:
            self.bad_cases += 1
            self.bad.setdefault(_kind_of(answer), (answer, case))


def _kind_of(answer: str) -> str:
    """Failures of the same place and type are one kind."""
    head = answer.split(": ")[:2]
    return re.sub(r"\d{4,}|0x[0-9a-f]+|/tmp/\S+", "N", ": ".join(head))[:120]


def run_campaign(sandbox: Sandbox, name: str, count: int, number: int = 0) -> Campaign:
    """Run `count` cases, a function of the seed `number`."""
    make, target, _ = CAMPAIGNS[name]
    campaign = Campaign(name)

    @seed(number)
    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.data())
    def run(data: DataObject) -> None:
        case = make(data)
        campaign.add(case, sandbox.run(target, case))

    run()
    return campaign
