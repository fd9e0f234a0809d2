"""A first Ctrl-C or SIGTERM requests a stop between steps; a second one interrupts immediately."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest

from sightline import process
from sightline.training.interrupt import catch_stop_signals, exit_on_sigterm, raise_on_sigterm

SIGNALS = [signal.SIGINT, signal.SIGTERM]


pytestmark = pytest.mark.usefixtures("claimed")


def test_a_library_sets_no_handler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "_claimed", False)
    before = [signal.getsignal(number) for number in SIGNALS]
    with raise_on_sigterm(), exit_on_sigterm(str), catch_stop_signals():
        assert [signal.getsignal(number) for number in SIGNALS] == before


@pytest.mark.parametrize("number", SIGNALS)
def test_first_signal_is_a_request(number: signal.Signals) -> None:
    with catch_stop_signals() as stop:
        assert not stop.requested
        signal.raise_signal(number)
        assert stop.requested


@pytest.mark.parametrize("second", SIGNALS)
@pytest.mark.parametrize("first", SIGNALS)
def test_second_signal_interrupts_immediately(first: signal.Signals, second: signal.Signals) -> None:
    with catch_stop_signals() as stop:
        signal.raise_signal(first)
        assert stop.requested
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(second)


@pytest.mark.parametrize("number", SIGNALS)
def test_handlers_are_restored(number: signal.Signals) -> None:
    received: list[int] = []
    previous_handler = signal.signal(number, lambda signum, frame: received.append(signum))
    try:
        with catch_stop_signals():
            signal.raise_signal(number)
        assert received == []
        with pytest.raises(ValueError, match="within"), catch_stop_signals():
            raise ValueError("within")
        signal.raise_signal(number)
        assert received == [number]
    finally:
        signal.signal(number, previous_handler)


def test_each_context_starts_without_a_request() -> None:
    with catch_stop_signals() as first:
        signal.raise_signal(signal.SIGINT)
    with catch_stop_signals() as second:
        assert first.requested
        assert not second.requested


def test_other_threads_set_no_handlers() -> None:
    observed: list[bool] = []

    def train() -> None:
        before = [signal.getsignal(s) for s in SIGNALS]
        with catch_stop_signals() as stop:
            observed.append(stop.requested)
            observed.append([signal.getsignal(s) for s in SIGNALS] == before)

    thread = threading.Thread(target=train)
    thread.start()
    thread.join()
    assert observed == [False, True]


def test_last_words_are_written_while_standard_error_is_suppressed() -> None:
    code = (
        "import os, signal; from sightline import process; from sightline._keras import imports;"
        "from sightline.training.interrupt import exit_on_sigterm; process.claim()\n"
        "with exit_on_sigterm(lambda: 'Stopped.'), imports.suppress_stderr(), imports.suppress_stderr():\n"
        "    os.kill(os.getpid(), signal.SIGTERM)"
    )
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (completed.returncode, completed.stderr) == (130, "error: Stopped.\n")
