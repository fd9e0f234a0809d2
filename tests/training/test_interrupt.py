"""A first Ctrl-C or SIGTERM requests a stop between steps; a second one interrupts immediately."""

from __future__ import annotations

import signal
import threading

import pytest

from sightline import process
from sightline.training.interrupt import at_once, leaving, listening

SIGNALS = [signal.SIGINT, signal.SIGTERM]


pytestmark = pytest.mark.usefixtures("claimed")


def test_a_library_sets_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_claimed", False)
    before = [signal.getsignal(number) for number in SIGNALS]
    with at_once(), leaving(str), listening():
        assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_wish(number: signal.Signals) -> None:
    with listening() as stop:
        assert not stop.asked
        signal.raise_signal(number)
        assert stop.asked


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_second_signal_interrupts_at_once(first: signal.Signals, second: signal.Signals) -> None:
    with listening() as stop:
        signal.raise_signal(first)
        assert stop.asked
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_put_back(number: signal.Signals) -> None:
    heard: list[int] = []
    before = signal.signal(number, lambda found, frame: heard.append(found))
    try:
        with listening():
            signal.raise_signal(number)
        assert heard == []
        with pytest.raises(ValueError, match="within"), listening():
            raise ValueError("within")
        signal.raise_signal(number)
        assert heard == [number]
    finally:
        signal.signal(number, before)


def test_each_listener_starts_anew() -> None:
    with listening() as first:
        signal.raise_signal(signal.SIGINT)
    with listening() as second:
        assert first.asked
        assert not second.asked


def test_other_threads_train_without_listening() -> None:
    seen: list[bool] = []

    def train() -> None:
        before = [signal.getsignal(s) for s in SIGNALS]
        with listening() as stop:
            seen.append(stop.asked)
            seen.append([signal.getsignal(s) for s in SIGNALS] == before)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert seen == [False, True]
