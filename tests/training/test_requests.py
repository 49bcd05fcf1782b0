"""What signals ask for, and what several of them do."""

from __future__ import annotations

import signal
from types import SimpleNamespace
from typing import Any

import pytest

from taming.errors import Stopped
from taming.training import stopping
from taming.training.stopping import NOTHING, SAVE, SAVE_NOW, TERMINATE, Requests


def test_the_highest_of_what_signals_ask_for_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping.os, "_exit", lambda _: pytest.fail("it is a second interrupt"))
    requests = Requests()
    requests.gentle = True
    requests._handle(signal.SIGUSR1, None)
    assert requests.stop is None
    assert [requests.agreed(SAVE), requests.agreed(SAVE)] == [SAVE_NOW, SAVE]  # asked for once
    requests._handle(signal.SIGINT, None)
    assert requests.stop == signal.SIGINT
    for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1):
        requests._handle(number, None)
        assert requests.stop == signal.SIGTERM
    assert [requests.agreed(SAVE), requests.agreed(NOTHING)] == [TERMINATE, TERMINATE]
    requests.gentle = False
    with pytest.raises(Stopped):
        requests._handle(signal.SIGTERM, None)


def test_handlers_are_ours_within_a_start_which_begins_afresh() -> None:
    requests = Requests()
    requests.gentle, requests._wanted = True, TERMINATE
    numbers = (signal.SIGUSR1, signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    with pytest.raises(KeyError), requests.handled():
        assert [signal.getsignal(number) for number in numbers] == [requests._handle] * 3
        assert requests.stop is None and not requests.gentle
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Lightning does
        requests.take_over()
        assert requests.gentle and signal.getsignal(signal.SIGTERM) == requests._handle
        raise KeyError
    assert [signal.getsignal(number) for number in numbers] == before


def test_nothing_is_exchanged_after_the_agreement_to_stop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "world_size", lambda: 2)
    requests, sent = Requests(), list[int]()
    answers = iter([NOTHING, SAVE, TERMINATE])
    agreement: Any = SimpleNamespace(received=lambda: next(answers), send=sent.append)
    requests._agreement = agreement
    assert [requests.agreed(own) for own in (SAVE, NOTHING, SAVE)] == [NOTHING, SAVE, TERMINATE]
    assert sent == [SAVE, NOTHING]


@pytest.mark.parametrize(
    ("launched", "later", "exits"), [(False, 0, True), (True, 0, False), (True, 2, True)]
)
def test_a_second_interrupt_ends_at_once_unless_it_is_torchruns_copy(
    monkeypatch: pytest.MonkeyPatch, launched: bool, later: float, exits: bool
) -> None:
    codes = list[int]()
    monkeypatch.setattr(stopping.os, "_exit", codes.append)
    if launched:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x")
    requests = Requests()
    requests.gentle = True
    requests._handle(signal.SIGINT, None)
    requests._since -= later
    requests._handle(signal.SIGINT, None)
    assert codes == [130] * exits
