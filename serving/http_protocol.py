"""uvicorn's HTTP connection with what it leaves to a proxy: bounded headers, no patience with stalled clients.

Offers of another protocol (``Upgrade``) are ignored, as RFC 9110 allows (7.8). httptools takes them for accepted: it
drops the request's body, which is read as the next request then. So its parser never sees that header.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

LARGEST_HEADERS = 64 << 10

_UPGRADE = re.compile(rb"(?im)^upgrade(?=[ \t]*:)")
_IGNORED = b"Ignored"
_BLANK_LINE = re.compile(rb"\r?\n\r?\n")


def limited_protocol(timeout: float) -> type[HttpToolsProtocol]:
    """Return the protocol class.

    Args:
        timeout: seconds that the headers of a request may take to arrive, and that a client may leave an answer
            unread.
    """

    class Limited(HttpToolsProtocol):
        _headers_due: asyncio.TimerHandle | None = None
        _reading_due: asyncio.TimerHandle | None = None
        _trailer_bytes = 0
        _in_message = False
        _body_bytes: int | None = 0

        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named)
            self._kept = bytearray()

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._await_headers()

        def data_received(self, data: bytes) -> None:
            while data and not self.transport.is_closing():
                data = self._body(data) if self._in_message else self._head(data)

        def _body(self, data: bytes) -> bytes:
            """Pass a message's bytes on; returns those after its body where its length is known."""
            if self._body_bytes is None:  # chunked: the parser alone knows the end
                self._trailer_bytes += len(data) if self._headers_due is not None else 0
                super().data_received(data)
                if self._trailer_bytes > LARGEST_HEADERS:
                    self.transport.abort()
                return b""
            super().data_received(data[: self._body_bytes])
            rest = data[self._body_bytes :]
            self._body_bytes -= len(data) - len(rest)
            return rest

        def _head(self, data: bytes) -> bytes:
            """Pass a request's line and headers on once they are whole, without ``Upgrade``; returns what follows."""
            searched = max(len(self._kept) - 3, 0)
            self._kept += data
            self._await_headers()
            if not self._kept[:1].isalpha() and not self._kept[:1].isspace():  # TLS, or no protocol that is known here
                end = len(self._kept)
            else:
                blank = _BLANK_LINE.search(self._kept, searched)
                end = 0 if blank is None else blank.end()
            if (end or len(self._kept)) > LARGEST_HEADERS:
                self.transport.abort()
            if end == 0:
                self._unset_keepalive_if_required()
                return b""
            head, rest = bytes(self._kept[:end]), bytes(self._kept[end:])
            self._kept.clear()
            super().data_received(_UPGRADE.sub(_IGNORED, head))
            return rest

        def _unsupported_upgrade_warning(self) -> None:
            # CONNECT, or an offer in what follows a chunked request at once: nothing after it can be told apart.
            self.transport.abort()

        def on_message_begin(self) -> None:
            self._in_message, self._trailer_bytes = True, 0
            self._await_headers()
            super().on_message_begin()

        def on_header(self, name: bytes, value: bytes) -> None:
            if self._headers_due is not None:
                super().on_header(name, value)
                return
            # A trailer: it comes when the request has been read by its headers, and must not change them.
            self._trailer_bytes += len(name) + len(value)
            if self._trailer_bytes > LARGEST_HEADERS:
                self.transport.abort()

        def on_headers_complete(self) -> None:
            self._headers_due = cancel(self._headers_due)
            headers = dict(self.headers)
            length = headers.get(b"content-length", b"0")
            self._body_bytes = None if b"transfer-encoding" in headers else int(length)
            super().on_headers_complete()

        def on_message_complete(self) -> None:
            self._in_message = False
            super().on_message_complete()

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
                self._headers_due = self.loop.call_later(timeout, self.transport.abort)

    return Limited


def cancel(timer: asyncio.TimerHandle | None) -> asyncio.TimerHandle | None:
    """Stop a timer; returns ``None``, to be kept in its place."""
    if timer is not None:
        timer.cancel()
    return None
