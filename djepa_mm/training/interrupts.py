"""Stopping a run from outside: by a signal, or by an event from another thread."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interruptible(stop: threading.Event | None = None) -> Iterator[Callable[[], bool]]:
    """Yields a function that says whether the run shall end: on SIGINT, SIGTERM or the event. A second SIGINT is the
    ordinary one. Signals reach the main thread alone; elsewhere only the event counts."""
    caught: list[int] = []

    def catch(number: int, _: Any) -> None:
        caught.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)

    def stopped() -> bool:
        return bool(caught) or (stop is not None and stop.is_set())

    main = threading.current_thread() is threading.main_thread()
    old = {number: signal.signal(number, catch) for number in (signal.SIGINT, signal.SIGTERM)} if main else {}
    try:
        yield stopped
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
