"""When values were logged: the wall time of TensorBoard's events, as the tables have none."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator


def read_seconds(folder: Path, name: str) -> dict[int, float]:
    """Seconds of training until a value was logged, by step; empty without TensorBoard's files.

    Each start of a run has a file below `folder`; the time between starts does not count, and that
    of steps that were taken again counts twice. Of a step that was logged twice the later is taken.
    """
    seconds: dict[int, float] = {}
    before = 0.0
    for path in sorted(folder.glob("**/events.out.tfevents.*")):
        events = EventAccumulator(str(path), size_guidance={"scalars": 0})
        events.Reload()
        tags = events.Tags()["scalars"]
        if not tags:
            continue
        start = events.FirstEventTimestamp()
        for event in events.Scalars(name) if name in tags else ():
            seconds[event.step] = before + event.wall_time - start
        before += max(events.Scalars(tag)[-1].wall_time for tag in tags) - start
    return seconds
