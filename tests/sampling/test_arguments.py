from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from taming.errors import UserError
from taming.sampling.arguments import (
    DataArguments,
    RunArguments,
    SampleArguments,
    make_parser,
    read_arguments,
)
from taming.sampling.settings import SampleSettings
from tests.kit.runs import tiny_run
from tests.scripts.test_make_samples import write_data


@dataclass(frozen=True, kw_only=True)
class Arguments:
    data: DataArguments
    sampling: SampleArguments


def read(*flags: str) -> tuple[RunArguments, Arguments]:
    return read_arguments(make_parser("Test.", Arguments, top_k=100), Arguments, flags)


def test_all_flags() -> None:
    run, own = read(
        "-r", "logs/run", "-b", "a.yaml", "b.yaml", "-k", "5", "model.x=1", "--seed", "3"
    )
    assert run == RunArguments(
        resume="logs/run", base=("a.yaml", "b.yaml"), overrides=("model.x=1",)
    )
    assert (own.sampling.settings.top_k, own.sampling.seed, own.data.config) == (5, 3, ())


def test_defaults() -> None:
    run, own = read("-r", "run")
    assert (run.base, run.outdir, run.overrides) == ((), None, ())
    assert (run.device, run.precision) == ("auto", "fp32")
    assert (own.data.config, own.data.ignore_base_data, own.data.split) == ((), False, None)
    assert own.sampling.settings == SampleSettings(1.0, 100, 1.0, 1.0, "constant")
    assert (own.sampling.seed, own.sampling.batch_size) == (0, 4)
    assert SampleSettings() == SampleSettings(1.0, None, 1.0, 1.0, "constant")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "required: -r/--resume"),
        (["-r", "a", "--batch_size", "0"], "--batch_size must be at least 1, not 0"),
        (["-r", "a", "-p", "2"], "top_p must be"),
        (["-r", "a", "--speed", "2"], "unknown argument --speed"),
    ],
)
def test_one_sentence_for_wrong_flags(flags: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read(*flags)


def test_configs_of_data_change_the_model_unless_they_are_for_data_only(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data.yaml")
    config = tmp_path / "config.yaml"
    config.write_text("model: {params: {pkeep: 0.5}}\n" + data.read_text())
    flags = ["-r", str(tiny_run(tmp_path / "run")), "-c", str(config), "--device", "cpu"]
    for ignore, pkeep in (([], 0.5), (["--ignore_base_data"], 1.0)):
        run, own = read(*flags, "--precision", "bf16", *ignore, "model.params.sos_token=4")
        model, folder, step, dtype = own.data.load(run)
        assert (model.pkeep, model.sos_token, step, dtype) == (pkeep, 4, 7, torch.bfloat16)
        assert model.transformer.head.weight.dtype == torch.bfloat16
        assert len(own.data.open(folder, run)) == 3
    base = tmp_path / "base.yaml"
    base.write_text(config.read_text().replace("count: 3", "count: 5"))
    both = ["-b", str(base), *flags]  # --config has the last word, but for overrides
    for more, length in (([], 3), (["data.params.validation.params.count=7"], 7)):
        run, own = read(*both, *more)
        assert len(own.data.open(own.data.load(run).run, run)) == length
