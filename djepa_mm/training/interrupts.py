"""Stopping a run from outside: by a signal, or by an event from another thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from djepa_mm.data.batches import SIGNALS


class Interrupted(BaseException):
    """A signal has come while the run could be left where it was. No Exception, so that nobody takes it for a fault."""


class Interrupts:
    """What asks a run to end: SIGINT, SIGTERM, SIGUSR1 (which Slurm can send before the time is over), or an event.

    A second SIGINT is the ordinary one. Signals reach the main thread alone; elsewhere only the event counts."""

    def __init__(self, stop: threading.Event | None = None) -> None:
        self.stop = stop
        self._caught = self._waiting = False

    def __bool__(self) -> bool:
        return self._caught or (self.stop is not None and self.stop.is_set())

    @contextmanager
    def heard(self) -> Iterator[None]:
        """In here, signals are caught."""
        main = threading.current_thread() is threading.main_thread()
        old = {number: signal.signal(number, self._catch) for number in SIGNALS} if main else {}
        try:
            yield
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    @contextmanager
    def ending_this(self) -> Iterator[None]:
        """In here, a signal raises Interrupted at once, and so does one that has come before."""
        self._waiting = True
        try:
            if self:
                raise Interrupted
            yield
        finally:
            self._waiting = False

    def _catch(self, number: int, _: Any) -> None:
        self._caught = True
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if self._waiting:
            self._waiting = False
            raise Interrupted
