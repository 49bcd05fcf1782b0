"""Tensors of a file into a model, without a second copy of either in memory."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from taming.checkpoint.fit import groups, misfit
from taming.checkpoint.formats import is_mapped, read_content
from taming.checkpoint.names import (
    AVERAGES,
    COLORS,
    OPTIONAL,
    STATISTICS,
    Tensors,
    ends_in,
    is_of,
)
from taming.checkpoint.runs import find_run
from taming.checkpoint.shards import require_whole
from taming.checkpoint.weight_sets import choose, require_plain_tensors, say
from taming.distributed import is_first_process
from taming.errors import UserError
from taming.weight_choice import ordinary_choice

log = logging.getLogger(__name__)


class LargeTensorsUnset(TorchFunctionMode):
    """A context in which large tensors get no random initial values, as loading overwrites them.

    The operating system provides memory only once it is written to.
    """

    LARGE = 2**16
    FILLS = frozenset((Tensor.normal_, Tensor.uniform_, nn.init.kaiming_uniform_))
    FILLS |= {nn.init.normal_, nn.init.trunc_normal_, nn.init.uniform_}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self.FILLS:
            tensor = args[0] if args else kwargs["tensor"]
            if tensor.numel() > self.LARGE:
                return tensor
        return func(*args, **kwargs)


def weights_for(own: Tensors, content: Any, source: str | Path) -> tuple[Tensors, list[str]]:
    """The weights in a file's content for a model with the tensors `own`, and names to ignore.

    `taming.weight_choice` says which; what is unusual about them is said in one line.

    Raises:
        UserError: if there are none, or the model has no such parts as are to be loaded.
    """
    choice = ordinary_choice()
    require_whole(content, source)
    names = tuple(f".{name}" for name in own)
    require_plain_tensors(content, lambda key: key.endswith(names), source)
    chosen = choose(content, source, own, choice.kind)
    state, notes = _without_other_statistics(chosen.tensors, own), list(chosen.notes)
    kinds = {
        (str(state[name].dtype), str(tensor.dtype))
        for name, tensor in own.items()
        if name in state and tensor.is_floating_point() and state[name].dtype != tensor.dtype
    }
    for name, tensor in own.items():
        if name in state and tensor.is_floating_point():
            _check_numbers(name, state[name], source)
    if broken := next((n for n in own if n in state and _begins_with_nan(state[n])), None):
        notes.append(f"'{broken}' is not a number (NaN), as after training diverged: take another")
    notes += [f"{there} as {here}".replace("torch.", "") for there, here in sorted(kinds)]
    ignored: list[str] = []
    if parts := choice.parts:
        state = _only(parts, state, own, source)
        ignored = [name for name in own if name not in state]
        notes.append(f"{', '.join(parts)} alone: all other weights are random")
    if notes:
        say(str(source), tuple(notes))
    return state, ignored


def _without_other_statistics(state: Tensors, own: Tensors) -> Tensors:
    """Without those of another number of scales than a model has, which takes such weights too."""
    wrong = {
        name
        for name, tensor in own.items()
        if ends_in(name, STATISTICS) and name in state and state[name].shape != tensor.shape
    }
    return {name: state[name] for name in state if name not in wrong} if wrong else state


def _begins_with_nan(tensor: Tensor) -> bool:
    """A look at the first number alone: all of a large file need not be read for it."""
    return bool(tensor.is_floating_point() and tensor.numel() and tensor.flatten()[0].isnan())


def _check_numbers(name: str, tensor: Tensor, source: str | Path) -> None:
    """Refuse (`UserError`) what is no weight; masks may be saved as other numbers."""
    whole = name.endswith(".weight") and not tensor.is_floating_point()
    if tensor.is_complex() or whole:
        kind = str(tensor.dtype).removeprefix("torch.")
        raise UserError(
            f"{source}: '{name}' is {kind}, and the model's weights are real numbers; save them as "
            "float32, float16 or bfloat16"
        )


def _only(
    parts: Sequence[str], state: Tensors, own: Tensors, source: str | Path
) -> dict[str, Tensor]:
    """The tensors of some parts of a model; those of a single part may lack its name.

    Raises:
        UserError: if the model or the file has no such part.
    """
    known = dict.fromkeys(name.partition(".")[0] for name in own)
    there = [part for part in known if any(name.startswith(f"{part}.") for name in state)]
    heads = tuple(f"{part}." for part in parts)
    for part, head in zip(parts, heads, strict=True):
        if not any(name.startswith(head) for name in own):
            raise UserError(f"--parts: the model has no '{part}', only {', '.join(known)}")
        if there and not any(name.startswith(head) for name in state):
            raise UserError(f"--parts: {source} has no '{part}', only {', '.join(there)}")
    if len(parts) == 1 and not there:
        state = {heads[0] + name: tensor for name, tensor in state.items()}
    return {name: tensor for name, tensor in state.items() if name.startswith(heads)}


def load_weights(
    module: nn.Module,
    state_dict: Tensors,
    *,
    source: str | Path = "the checkpoint",
    ignore_keys: Iterable[str] = (),
    optional: Sequence[str] = OPTIONAL,
    assign: bool = False,
) -> list[str]:
    """Put `state_dict` into `module`; returns the names that kept their initial values.

    Args:
        source: where the tensors come from, for errors.
        ignore_keys: names that start with one of these are dropped.
        optional: names with a part that starts with one of these may be missing or in excess (the
            losses and averages, which only training needs); so may be logged images' colors.
        assign: let the module's parameters and buffers, which stay the same objects, take the
            memory of `state_dict` instead of a copy, if device, dtype and layout agree. For tensors
            that nobody else uses: pages of a mapped file then serve as memory until they are
            written to, which changes the process's own memory alone.

    Raises:
        UserError: for any other difference, as the model would not be the one that was saved.
    """
    own = module.state_dict(keep_vars=True)
    names = _common_names(own, state_dict, source, tuple(ignore_keys), optional)
    fitting = {name: state_dict[name] for name in names}
    if assign:
        _take_memory(own, fitting)
    module.load_state_dict(fitting, strict=False)  # copies, where the memory is not the same
    return sorted(own.keys() - fitting.keys())


def load_file(module: nn.Module, path: str | Path, ignore_keys: Iterable[str] = ()) -> Path:
    """Put the weights of a checkpoint or run folder into `module`, as `load_weights` does.

    They are copied part by part, and the file's pages released in between, so that hardly any
    memory is needed beside the module's; files of torch before 1.6 are read as a whole. Returns the
    file's path.
    """
    file = find_run(path).checkpoint
    own, version = module.state_dict(keep_vars=True), _version(file)
    state, ignored = weights_for(own, read_content(file), file)
    names = _common_names(own, state, file, (*ignore_keys, *ignored), OPTIONAL)
    mapped = is_mapped(file)
    for part in _parts({name: state[name].nbytes for name in names}) if mapped else [names]:
        module.load_state_dict({name: state[name] for name in part}, strict=False)
        state = weights_for(own, read_content(file), file)[0] if mapped else {}
        if _version(file) != version:
            raise UserError(f"{file} was replaced while it was being read; load it again")
    return file


def load_added(
    module: nn.Module, path: str | Path, names: Iterable[str], ignore_keys: Iterable[str] = ()
) -> None:
    """Put weights of a file into those tensors of a module that it has got since the others were
    loaded. Those that the file lacks, or has in another shape, stay as they were made."""
    file = find_run(path).checkpoint
    own = module.state_dict(keep_vars=True)
    state, ignored = weights_for(own, read_content(file), file)
    wanted = [name for name in names if not name.startswith((*ignore_keys, *ignored))]
    fitting = [n for n in wanted if n in state and state[n].shape == own[n].shape]
    module.load_state_dict({name: state[name] for name in fitting}, strict=False)
    kept = [n for n in wanted if n not in fitting and not _has_part(n, OPTIONAL)]
    if kept and is_first_process():
        text = "; ".join(groups(kept, "not in the checkpoint: left as the constructor made them"))
        log.warning("%s: %s", file, text)


def _version(file: Path) -> tuple[int, int, int]:
    status = file.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _parts(sizes: Mapping[str, int]) -> Iterator[list[str]]:
    """Names in groups of about a tenth of all bytes, or of 16 MiB."""
    limit, part, size = max(2**24, sum(sizes.values()) // 10), list[str](), 0
    for name, nbytes in sizes.items():
        if part and size + nbytes > limit:
            yield part
            part, size = [], 0
        part.append(name)
        size += nbytes
    yield part


def _common_names(
    own: Tensors, loaded: Tensors, source: object, ignored: tuple[str, ...], optional: Sequence[str]
) -> list[str]:
    """The names that a model and its weights share; the others are logged, or a `UserError`."""
    kept = {name: tensor for name, tensor in loaded.items() if not name.startswith(ignored)}
    needed = {name: tensor for name, tensor in own.items() if not name.startswith(ignored)}
    check_fit(needed, kept, source=source, optional=optional)
    missing, excess = sorted(own.keys() - kept.keys()), sorted(kept.keys() - own.keys())
    missing = [name for name in missing if not is_of(name, (AVERAGES,))]  # begin at the weights
    trains = any(is_of(name, OPTIONAL) for name in own)  # else it is no news
    for line in groups(missing, "not in the checkpoint or ignored: initialized anew"):
        log.info("%s: %s", source, line)
    for line in groups(excess, "left out, which only its training needed"):
        log.log(logging.INFO if trains else logging.DEBUG, "%s: %s", source, line)
    return [name for name in own if name in kept]


def check_fit(
    own: Tensors, loaded: Tensors, *, source: object, optional: Sequence[str] = ()
) -> None:
    """Refuse `loaded` tensors that lack the names and shapes of a model's `own`.

    Names that begin with one of `optional`, or have a part that does, may be on one side alone; so
    may, with any of them, the colors of logged images. The `UserError` names the key of the config
    that is likely wrong.
    """
    missing = [name for name in sorted(own.keys() - loaded.keys()) if not _has_part(name, optional)]
    excess = [name for name in sorted(loaded.keys() - own.keys()) if not _has_part(name, optional)]
    if error := misfit(source, loaded, own, missing, excess):
        raise error


def _take_memory(own: Tensors, loaded: Tensors) -> None:
    """Let a module's tensors use the memory of the loaded ones if their layouts are equal.

    Tensors that share memory on either side, as a transformer's masks do, are left to be copied.
    """
    shared = _overlapping(loaded) | _overlapping({name: own[name] for name in loaded})
    for name in loaded.keys() - shared:
        if _layout(own[name]) == _layout(loaded[name]) and loaded[name].is_contiguous():
            own[name].data = loaded[name]


def _layout(tensor: Tensor) -> tuple[Any, ...]:
    return tensor.device, tensor.dtype, tensor.shape, tensor.stride()


def _overlapping(tensors: Tensors) -> set[str]:
    """The names of tensors that have memory in common with another one."""
    shared: set[str] = set()
    end, last = 0, ""
    for start, name in sorted((tensor.data_ptr(), name) for name, tensor in tensors.items()):
        size = tensors[name].nbytes
        if size and start < end:
            shared |= {name, last}
        if start + size > end:
            end, last = start + size, name
    return shared


def _has_part(name: str, parts: Sequence[str]) -> bool:
    if parts and ends_in(name, (COLORS, *STATISTICS)):
        return True
    return is_of(name, parts)
