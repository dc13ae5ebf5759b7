"""Reading a request's body: bounded in size, in time, and after decompression, which leaves the event loop free.

Knows no routes.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from na_deploy.serving.errors import (
    ClientGoneError,
    InvalidRequestError,
    SlowClientError,
    TooLargeError,
    UnavailableError,
)
from na_deploy.serving.service import Service

_WINDOW = {"gzip": 31, "x-gzip": 31, "deflate": 47}  # zlib's window bits: gzip only; zlib or gzip by their header
_STEP = 1 << 20
"""Bytes that one step of decompression gives at most, before others get their turn."""
_SLICE = 64 << 10
_MOST_MEMBERS = 1000
"""gzip files in a row that one body may consist of; each costs time, whatever it holds."""
_DISCARDED = 64 << 20
"""Bytes of a body too large that are still taken in, so that the client reads the answer instead of an error."""


@asynccontextmanager
async def request_body(
    request: Request, service: Service, largest: int | None = None
) -> AsyncIterator[bytes | bytearray]:
    """Yield the body; its bytes count as pending until the block ends.

    Args:
        request: its origin.
        service: whose limits hold.
        largest: bytes that are taken here, if fewer than the server takes elsewhere.

    Raises:
        TooLargeError: it is larger than the server takes.
        SlowClientError: it did not arrive in time.
        InvalidRequestError: its compression is unknown or damaged.
        UnavailableError: too much waits already.
        ClientGoneError: the client has gone.
    """
    limit = min(largest or service.options.max_request_bytes, service.options.max_request_bytes)
    stated = request.headers.get("content-length", "")
    announced = int(stated) if stated.isascii() and stated.isdecimal() else 0
    reserved = 0
    try:
        arriving = ExitStack()
        try:
            async with asyncio.timeout(service.options.client_timeout) as deadline:
                arriving.enter_context(service.arriving(deadline))
                if announced > limit:
                    await _discard(request)
                    raise TooLargeError(f"the request has {announced} bytes; at most {limit} are taken")
                body = bytearray()
                async for chunk in request.stream():
                    body += chunk
                    if len(body) > limit:
                        await _discard(request)
                        raise TooLargeError(f"the request has more than {limit} bytes, which is the limit")
                    service.reserve(len(chunk))
                    reserved += len(chunk)
        except ClientDisconnect:
            raise ClientGoneError("the client has gone") from None
        except TimeoutError:
            if not service.ready and service.started:
                raise UnavailableError("the server stops, and the request has not arrived whole") from None
            raise SlowClientError(
                f"the request did not arrive within {service.options.client_timeout:g} seconds"
            ) from None
        finally:
            arriving.close()
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            yield body
            return
        unpacked = bytearray()
        async for part in _decompressed(body, encoding):
            unpacked += part
            if len(unpacked) > limit:
                raise TooLargeError(f"the request has more than {limit} bytes after decompression, which is the limit")
            service.reserve(len(part))
            reserved += len(part)
        yield unpacked
    finally:
        service.reserve(-reserved)


async def _discard(request: Request) -> None:
    left = _DISCARDED
    try:
        async for chunk in request.stream():
            left -= len(chunk)
            if left < 0:
                return
    except (RuntimeError, ClientDisconnect):  # the stream was being read already, and what is left of it is not ours
        return


async def _decompressed(body: bytearray, encoding: str) -> AsyncIterator[bytes]:
    """Yield a body's content in steps, each computed in a thread; gzip may have several members (RFC 1952, 2.2)."""
    if encoding not in _WINDOW:
        raise InvalidRequestError(f"the Content-Encoding {encoding[:40]!r} is not known; use gzip, deflate or none")
    machine = zlib.decompressobj(_WINDOW[encoding])
    members, waiting = 1, b""
    for start in range(0, len(body), _SLICE):
        waiting = bytes(body[start : start + _SLICE])
        while waiting:
            if machine.eof:
                if not waiting.strip(b"\0") and encoding != "deflate":  # padding, as tapes and pipes add
                    break
                members += 1
                if encoding == "deflate" or members > _MOST_MEMBERS:
                    raise InvalidRequestError(f"bytes follow the end of the request's {encoding} data")
                machine = zlib.decompressobj(_WINDOW[encoding])
            try:
                part = await asyncio.to_thread(machine.decompress, waiting, _STEP)
            except zlib.error:
                raise InvalidRequestError(f"the request is not valid {encoding}") from None
            if part:
                yield part
            waiting = machine.unconsumed_tail or machine.unused_data
    while not machine.eof and (part := machine.decompress(b"", _STEP)):  # what zlib itself still holds
        yield part
    if not machine.eof:
        raise InvalidRequestError(f"the request's {encoding} data ends too early")
