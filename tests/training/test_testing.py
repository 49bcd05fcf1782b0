"""A config with test data is tested after training."""

from __future__ import annotations

from pathlib import Path

import pytest

from taming.training.cli import main as main_command
from tests.kit.resuming import run_config
from tests.kit.training import write_config

main = main_command.__wrapped__  # type: ignore[attr-defined]  # errors as exceptions


@pytest.mark.parametrize(
    ("case", "name"), [("vqgan", "test/rec_loss"), ("transformer", "test/loss")]
)
def test_test_data_are_scored(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    case: str,
    name: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    config = run_config(case)
    config.data.params.test = config.data.params.validation
    base = write_config(tmp_path, config)
    main(["--base", base, "-t", "-n", "run", "--max_epochs", "1"])
    assert name in capsys.readouterr().out
    (table,) = Path("logs").glob("*/csv/*/metrics.csv")
    assert name in table.read_text().splitlines()[0]
