"""Jobs of SLURM, which are queued again before their time is over, and go on with what they began.

The script of such a job starts anew, with the words that it had the first time: a run notes in its
folder which job has begun it, and the job finds it there.
"""

from __future__ import annotations

import glob
import logging
import os
import subprocess
from pathlib import Path

log = logging.getLogger(__name__)

_NOTE = "slurm_job.txt"  # in the folder of a run


def job() -> str | None:
    """The name by which SLURM can queue this job again; None outside of SLURM."""
    array, number = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_JOB_ID")
    return f"{array}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if array else number


def note_job(folder: Path) -> None:
    """Write into a new run's folder which job has begun it, if one has."""
    if (name := job()) is not None:
        (folder / _NOTE).write_text(f"{name}\n", encoding="utf-8")


def begun_before(place: Path) -> Path | None:
    """The folder of the run that this job has begun before it was queued again.

    `place` is where a new run would be; the one that is looked for has the same name behind another
    time. None if this is the job's first start.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    _, _, label = place.name.partition("_")
    notes = place.parent.glob(f"*_{glob.escape(label)}/{_NOTE}")
    own = [note.parent for note in notes if note.read_text("utf-8").strip() == job()]
    return max(own, default=None, key=lambda folder: folder.name)


def queue_again() -> None:
    """Have SLURM end this job, and start it again when it is its turn."""
    name = job()
    try:
        done = subprocess.run(["scontrol", "requeue", str(name)], check=False)
    except OSError as error:
        log.warning("job %s is not queued again: %s", name, error)
        return
    if done.returncode:
        log.warning("job %s is not queued again: scontrol ended with %d", name, done.returncode)
