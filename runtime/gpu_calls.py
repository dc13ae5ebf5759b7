"""Calls on GPUs that a capture of ONNX Runtime forbids meanwhile, in every thread of the process."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class GpuCalls:
    """Lets any number of calls use GPUs at the same time, or one capture alone. A thread enters once at a time."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._captures = False

    @contextmanager
    def shared(self) -> Iterator[None]:
        """Use a GPU; waits for the end of a capture."""
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._running += 1
        try:
            yield
        finally:
            with self._changed:
                self._running -= 1
                self._changed.notify_all()

    @contextmanager
    def alone(self, patience_s: float) -> Iterator[bool]:
        """Capture, if other calls end in time; later ones wait.

        Args:
            patience_s: seconds to wait for other calls, which hold up later ones as long.

        Yields:
            True while no other call runs; false where others did not end in time, and nothing waits.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._captures)
            self._captures = True
            is_alone = self._changed.wait_for(lambda: self._running == 0, patience_s)
            if not is_alone:
                self._end()
        try:
            yield is_alone
        finally:
            if is_alone:
                with self._changed:
                    self._end()

    def _end(self) -> None:
        self._captures = False
        self._changed.notify_all()


GPU_CALLS = GpuCalls()
"""The calls of this process's sessions on GPUs: runs, and what allocates."""
