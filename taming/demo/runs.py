"""The runs of the page: those of the command line and of logs/, and what is loaded of one."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import streamlit as st

from taming.checkpoint.own_configs import own_configs
from taming.checkpoint.runs import name_of, runs_in
from taming.data.imagenet_classes import NAMES, SYNSETS
from taming.data.seeding import SeededDataset
from taming.demo.links import Choices
from taming.errors import UserError, sentence
from taming.models.cond_transformer import Net2NetTransformer
from taming.published_models import located
from taming.sampling.arguments import DataArguments, RunArguments
from taming.sampling.inputs import class_names
from taming.sampling.load import open_dataset
from taming.shipped import run_script
from taming.user_files import read_text

LOGS = Path("logs")
SHOWN = "shown run"  # in Streamlit's state


class Loaded(NamedTuple):
    """A model, its data (or None), its classes' names by number, and what to say of them; `version`
    is that of `version_of`."""

    model: Net2NetTransformer
    dataset: SeededDataset | None
    names: dict[int, str]
    text: str
    problem: str = ""  # why data that were to be there cannot be used
    version: int = 0


def found_runs(given: Sequence[str]) -> list[str]:
    """The runs `given`, then the transformers in logs/ that are not among them.

    Raises:
        UserError: if there are none.
    """
    known = {located(path).resolve() for path in given}
    more = [run for run in runs_in(LOGS) if run.resolve() not in known and has_transformer(run)]
    found = [*dict.fromkeys(given), *map(str, reversed(more))]  # the newest first
    if not found:
        raise UserError(
            f"there is no run of a transformer in logs/: train one ({run_script('digits')} does in "
            f"minutes; or {run_script('main')} with a transformer's YAML), fetch one "
            f"({run_script('download_models')}), or name one with -r"
        )
    return found


def is_gone(run: str, given: Sequence[str]) -> bool:
    """Whether a run, as `found_runs` has called it, is not there any more."""
    try:
        return run not in found_runs(given)
    except UserError:
        return True


def has_transformer(run: Path) -> bool:
    """Whether the configs beside a checkpoint are of a transformer, which can be sampled from."""
    try:
        return any("transformer_config" in read_text(path) for path in own_configs(run))
    except (OSError, ValueError):
        return False


def choose_run(choices: Choices, given: Sequence[str]) -> str:
    """One of `found_runs`; there is nothing to choose if it is the only one.

    Where the one that was chosen is not there any more, that is said, and what was pressed is not
    done with another.
    """
    runs = found_runs(given)
    shown = st.session_state.get(SHOWN)
    if shown is not None and shown not in runs:
        name = Path(shown).name
        choices.problems.append(f"the run {name} is not there any more; choose another")
        del st.session_state[SHOWN]
        st.session_state.pop("run", None)
        st.rerun()

    def text_of(run: str) -> str:
        return name_of(run, runs)

    if len(runs) > 1:
        run = choices.choice("Run", "run", runs, text_of=text_of, format_func=text_of)
        st.session_state[SHOWN] = run
        return run
    st.session_state[SHOWN] = runs[0]
    only = text_of(runs[0])
    choices.begin("run", "only run", runs[0], lambda text: _only(text, only), keep=False)
    choices.values["run"] = only
    return runs[0]


def _only(text: str, name: str) -> str:
    if text != name:
        raise UserError(f"the only run here is {name}")
    return text


def version_of(run: str) -> int:
    """When the newest file of a run's weights was written, in nanoseconds; 0 if none is here."""
    path, times = located(run), [0]
    patterns = ("checkpoints/*", "*.ckpt", "*.safetensors")
    for file in [path, *(file for pattern in patterns for file in path.glob(pattern))]:
        with suppress(OSError):
            times.append(file.stat().st_mtime_ns if file.is_file() else 0)
    return max(times)


def load(run_arguments: RunArguments, data: DataArguments) -> Loaded:
    """The model and its data, as they were when the page first showed the run: what is drawn in it
    is of the same weights. A page that is opened anew has the newest."""
    run = run_arguments.resume
    versions: dict[str, int] = st.session_state.setdefault("versions", {})
    version = versions.setdefault(run, version_of(run))
    loaded = _load(run_arguments, data, version)
    if version_of(run) <= version:
        return loaded
    return loaded._replace(text=f"{loaded.text}; a newer checkpoint is there: reload the page")


@st.cache_resource(show_spinner="Loading the model", max_entries=2)
def _load(run_arguments: RunArguments, data: DataArguments, version: int) -> Loaded:
    return _read(run_arguments, data)._replace(version=version)


def _read(run_arguments: RunArguments, data: DataArguments) -> Loaded:
    model, run, step, _ = data.load(run_arguments)
    text = f"{run.folder.name}, step {step}, on {model.device}"
    try:
        section = data.section(run, run_arguments)
    except UserError as error:
        if data.ignore_base_data:
            raise
        return Loaded(model, None, {}, f"{text}; no examples: {sentence(error)}")
    try:
        dataset = open_dataset(section, data.split)
    except UserError as error:
        own = model.n_classes == len(SYNSETS) and "taming.data.imagenet." in str(section)
        names = [NAMES[synset] for synset in SYNSETS] if own else []
        return Loaded(model, None, dict(enumerate(names)), text, sentence(error))
    return Loaded(model, dataset, class_names(dataset), text)
