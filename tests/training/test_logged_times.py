"""Times of TensorBoard's events, over several starts of a run."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch.utils.tensorboard import SummaryWriter

from taming.training.logged_times import read_seconds


def write_start(
    folder: Path, points: dict[int, float], begun: float, name: str = "val/loss"
) -> None:
    """A start at the clock's `begun`, whose validation is logged at seconds by step."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("time.time", lambda: begun)
        writer = SummaryWriter(str(folder), filename_suffix=f".{begun:.0f}")  # type: ignore[no-untyped-call]
        for step, second in points.items():
            writer.add_scalar(name, 1.0, step, walltime=begun + second)  # type: ignore[no-untyped-call]
            writer.add_scalar("lr", 1.0, step, walltime=begun + second + 5)  # type: ignore[no-untyped-call]
        writer.close()  # type: ignore[no-untyped-call]


def test_times_add_up_over_starts(tmp_path: Path) -> None:
    write_start(tmp_path, {10: 100.0, 20: 200.0}, begun=1000.0)
    # Begun anew, a day later, at step 10: its step 20 is the one that counts.
    write_start(tmp_path, {20: 90.0, 30: 190.0}, begun=90_000.0)
    assert read_seconds(tmp_path, "val/loss") == {10: 100.0, 20: 205.0 + 90.0, 30: 205.0 + 190.0}
    assert read_seconds(tmp_path, "loss") == {} == read_seconds(tmp_path / "nowhere", "lr")
