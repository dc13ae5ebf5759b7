"""Reading a request's body: bounded in size, time and after decompression. Knows no routes."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import Request
from starlette.requests import ClientDisconnect

from na_deploy.serving.errors import ClientGoneError, InvalidRequestError, SlowClientError, TooLargeError
from na_deploy.serving.service import Service

_WINDOW = {"gzip": 31, "deflate": 47}  # zlib's window bits: gzip only; zlib or gzip by their header
_DISCARDED = 64 << 20
"""Bytes of a body too large that are still taken in, so that the client reads the answer instead of an error."""


@asynccontextmanager
async def request_body(request: Request, service: Service) -> AsyncIterator[bytes | bytearray]:
    """Yield the body; its bytes count as pending until the block ends.

    Raises:
        TooLargeError: it is larger than the server takes.
        SlowClientError: it did not arrive in time.
        InvalidRequestError: its compression is unknown or damaged.
        UnavailableError: too much waits already.
        ClientGoneError: the client has gone.
    """
    limit = service.options.max_request_bytes
    stated = request.headers.get("content-length", "")
    announced = int(stated) if stated.isascii() and stated.isdecimal() else 0
    reserved = 0
    try:
        try:
            async with asyncio.timeout(service.options.client_timeout):
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
            raise SlowClientError(
                f"the request did not arrive within {service.options.client_timeout:g} seconds"
            ) from None
        encoding = request.headers.get("content-encoding", "identity").strip().lower()
        if encoding == "identity":
            yield body
            return
        unpacked = _decompress(body, encoding, limit)
        service.reserve(len(unpacked))
        reserved += len(unpacked)
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


def _decompress(body: bytes | bytearray, encoding: str, limit: int) -> bytes:
    if encoding not in _WINDOW:
        raise InvalidRequestError(f"the Content-Encoding {encoding[:40]!r} is not known; use gzip, deflate or none")
    machine = zlib.decompressobj(_WINDOW[encoding])
    try:
        unpacked = machine.decompress(body, limit + 1)
    except zlib.error:
        raise InvalidRequestError(f"the request is not valid {encoding}") from None
    if len(unpacked) > limit:
        raise TooLargeError(f"the request has more than {limit} bytes after decompression, which is the limit")
    if not machine.eof:
        raise InvalidRequestError(f"the request's {encoding} data ends too early")
    return unpacked
