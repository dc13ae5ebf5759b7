"""uvicorn's HTTP connection with what it leaves to a proxy: bounded headers and no patience with stalled clients."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEADERS = 64 << 10


def limited_protocol(timeout: float) -> type[HttpToolsProtocol]:
    """Return the protocol class.

    Args:
        timeout: seconds that the headers of a request may take to arrive, and that a client may leave an answer
            unread.
    """

    class Limited(HttpToolsProtocol):
        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None
        _header_bytes = 0

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._headers_due is not None:
                self._header_bytes += len(data)
                if self._header_bytes > LARGEST_HEADERS:
                    self.transport.abort()

        def on_message_begin(self) -> None:
            self._await_headers()
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._headers_due = cancel(self._headers_due)
            super().on_headers_complete()

        def pause_writing(self) -> None:
            super().pause_writing()
            cancel(self._reading_due)
            self._reading_due = self.loop.call_later(timeout, self.transport.abort)

        def resume_writing(self) -> None:
            self._reading_due = cancel(self._reading_due)
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._headers_due = cancel(self._headers_due)
            self._reading_due = cancel(self._reading_due)
            super().connection_lost(exc)

        def _await_headers(self) -> None:
            if self._headers_due is None:
                self._header_bytes = 0
                self._headers_due = self.loop.call_later(timeout, self.transport.abort)

    return Limited


def cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer; returns ``None``, to be kept in its place."""
    if timer is not None:
        timer.cancel()
    return None
