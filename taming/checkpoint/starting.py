"""Models that start from the weights in a file, also those of what subclasses add to them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

from torch import Tensor, nn

from taming.checkpoint.weights import load_added, load_file
from taming.errors import UserError
from taming.imports import many_imports
from taming.user_code import calling, name_of

with many_imports():  # scripts and notebooks come here first
    from pytorch_lightning import LightningModule

Constructor = Callable[..., None]


@dataclass(frozen=True)
class _Start:
    """What to start from; `loaded`: the model's tensors by then, None if they did not fit yet."""

    path: str
    ignored: tuple[Sequence[str], ...]
    loaded: dict[str, Tensor] | None


class StartsFromFile(nn.Module):
    """A model whose constructor may take the file with weights that it starts from.

    They are loaded there, as a subclass's constructor may build on them. What that adds or replaces
    gets its own from the same file, once the last of the constructors is done.
    """

    loaded_from: str | None = None  # the file with its weights
    _start: _Start | None = None

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        constructor, *later = _constructors_of(cls)
        if "__init__" in vars(cls):
            cls.__init__ = _completing(constructor)  # type: ignore[method-assign]
        elif constructor not in _COMPLETING and not _COMPLETING.isdisjoint(later):

            @functools.wraps(constructor)  # of another class, beside one that starts from a file
            def inherited(self: StartsFromFile, *args: Any, **kwargs: Any) -> None:
                super(cls, self).__init__(*args, **kwargs)

            cls.__init__ = _completing(inherited)  # type: ignore[method-assign]

    def init_from_ckpt(self, path: str, ignore_keys: Sequence[str] = ()) -> None:
        """Load weights from a checkpoint or run folder; losses may be missing from it."""
        self.loaded_from = str(load_file(self, path, ignore_keys))
        begin_averages(self)

    def begin_averages(self) -> None:
        """Called with loaded weights: averages that the model keeps of its own begin at these.

        The weights of a file may be such averages themselves, and it need not have any.
        """

    def start_from(self, path: str, *ignored: Sequence[str]) -> None:
        """In a constructor: `init_from_ckpt`, which is called again at the end if it fails now."""
        loaded = None
        try:
            self.init_from_ckpt(path, *ignored)
            loaded = self.state_dict(keep_vars=True)
        except (UserError, AttributeError):  # weights or modules of what is still to be added
            pass
        self._start = _Start(path, ignored, loaded)

    def complete_start(self) -> None:
        """Load what is still to be loaded, after the last of the constructors."""
        start, self._start = self._start, None
        if start is None:
            return
        if start.loaded is None:
            configure(self)
            return self.init_from_ckpt(start.path, *start.ignored)
        own, loaded = self.state_dict(keep_vars=True), start.loaded
        if added := [name for name, tensor in own.items() if loaded.get(name) is not tensor]:
            load_added(self, start.path, added, *start.ignored)


_COMPLETING: WeakSet[Constructor] = WeakSet()


def _constructors_of(cls: type) -> list[Constructor]:
    return [vars(each)["__init__"] for each in cls.__mro__ if "__init__" in vars(each)]


def _completing(constructor: Constructor) -> Constructor:
    """A constructor that completes the start, if it is the last one to end."""

    # Lightning's `save_hyperparameters` looks for callers with this name and this variable.
    @functools.wraps(constructor)
    def __init__(self: StartsFromFile, *args: Any, **kwargs: Any) -> None:  # noqa: N807
        __class__ = StartsFromFile  # noqa: F841
        constructor(self, *args, **kwargs)
        if _constructors_of(type(self))[0] is __init__:
            self.complete_start()

    _COMPLETING.add(__init__)
    return __init__


def begin_averages(model: nn.Module) -> None:
    """Have a model whose weights were loaded, and the models in it, begin their averages."""
    for part in model.modules():
        if isinstance(part, StartsFromFile):
            part.begin_averages()


def configure(model: nn.Module) -> None:
    """Call Lightning's hook that may add modules to a model, as the Trainer does first."""
    if isinstance(model, LightningModule):
        with calling(type(model), f"{name_of(type(model))}.configure_model"):
            model.configure_model()


def configure_for(model: nn.Module, names: Set[str]) -> bool:
    """`configure` a model that has not all of the weights' names; whether it was done."""
    lacks = not names <= model.state_dict(keep_vars=True).keys()
    if lacks:
        configure(model)
    return lacks
