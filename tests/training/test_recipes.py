"""Whether a run was trained as a command line would train one now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from taming.training import apart
from taming.training.apart import train_apart
from taming.training.cli import main as main_command
from taming.training.recipes import difference, recipe_of_run, recipe_of_words
from tests.kit.codes import FIRST, write_home

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions
OWN = """
from tests.kit.datasets import Noise


class Own(Noise):
    pass
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_home(tmp_path_factory.mktemp("recipes"))


@pytest.fixture
def words(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A training of one step in an empty folder."""
    monkeypatch.chdir(tmp_path)
    Path("own.yaml").write_text((home / "transformer.yaml").read_text())
    flags = ["--seed", "1", "--max_steps", "1", "--enable_progress_bar", "false"]
    return ["--base", "own.yaml", "-n", "run", f"{FIRST}{home / 'first'}", *flags]


def test_what_makes_another_run(
    home: Path, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("own_data.py").write_text(OWN)
    config = OmegaConf.load("own.yaml")
    for split in ("train", "validation"):
        config.data.params[split].target = "own_data.Own"  # of the user's
    OmegaConf.save(config, "own.yaml")
    main([*words, "-t", "True"])
    (run,) = Path("logs").glob("*_run")
    before = recipe_of_run(run)

    def changed(*more: str) -> str | None:
        return difference(before, recipe_of_words([*words, *more]))

    assert changed() is None
    assert changed("--precision", "32", "--log_every_n_steps", "7") is None
    for name in ("bf16", "bf16-mixed"):
        assert changed("--precision", name) == "precision was 32 and is bf16-mixed"
    assert changed("--seed", "2") == "seed was 1 and is 2"
    assert changed("--max_steps", "3") == "max_steps was 1 and is 3"
    assert changed("--accumulate_grad_batches", "2") == "accumulate_grad_batches was None and is 2"
    assert changed("model.base_learning_rate=1") == "model.base_learning_rate was 1.5e-05 and is 1"
    assert changed("data.params.batch_size=3") == "data.params.batch_size was 4 and is 3"
    other = changed(f"{FIRST}{home / 'other'}")
    assert other is not None and "first_stage_config.params.ckpt_path was" in other
    config.model.params.pkeep = 0.5
    OmegaConf.save(config, "own.yaml")
    assert changed() == "model.params.pkeep was None and is 0.5"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert recipe_of_words(words, tmp_path)["model.params.pkeep"] == 0.5
    assert Path.cwd() == tmp_path / "elsewhere"


def test_what_was_interrupted_goes_on_beside_a_newer_run_of_another_recipe(
    home: Path,
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    calls: list[Sequence[str]] = []

    def run(words: Sequence[str], folder: Path | None = None) -> None:
        calls.append(words)
        main(words[1:])

    monkeypatch.setattr(apart, "run_apart", run)
    start, flags = [*words[:5], f"data.params.codes={home / 'codes'}"], words[5:]
    first = train_apart("run", Path("logs"), start, flags)
    (first / apart.FINISHED).unlink()  # as if it was stopped
    monkeypatch.setenv("TAMING_RUN_TIME", "9026-01-01T00-00-00")
    other = train_apart("run", Path("logs"), [*start, "model.params.pkeep=0.5"], flags)
    assert other.name == "9026-01-01T00-00-00_run" and calls[1][1] == "--base"
    said = capsys.readouterr().out
    assert f"{first} is of another recipe (model.params.pkeep was None and is 0.5): a new" in said
    assert train_apart("run", Path("logs"), start, flags) == first
    assert calls[2][1:3] == ["-r", str(first.resolve())] and (first / apart.FINISHED).is_file()
    assert train_apart("run", Path("logs"), start, flags) == first and len(calls) == 3
