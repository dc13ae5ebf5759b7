"""Keeps web pages of other sites away from the server: the names it is called by, and where a page comes from.

A browser sends requests for any page to any address, also to a server on the loopback address. A page of another site
must neither read answers (by letting its own name point here) nor change anything. Other clients send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
import json
from typing import Any
from urllib.parse import urlsplit

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Whether an address or name means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application in front of another.

    Args:
        app: what answers requests that pass.
        host: the address the server listens on.
    """

    def __init__(self, app: Any, host: str) -> None:
        self._app = app
        self._names = {*LOOPBACK_NAMES, host} if is_loopback(host) else None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            refusal = self._refusal(headers)
            if refusal is not None:
                await _refuse(send, refusal)
                return
        await self._app(scope, receive, send)

    def _refusal(self, headers: dict[bytes, bytes]) -> str | None:
        host = headers.get(b"host", b"").decode("latin-1")
        if self._names is not None and host and _name(f"//{host}") not in self._names:
            return "this server answers to the names of the loopback address only; another host is in the request"
        origin = headers.get(b"origin")
        if origin is not None and urlsplit_netloc(origin.decode("latin-1")) != host:
            return "the request comes from a page of another site"
        return None


def urlsplit_netloc(origin: str) -> str:
    """Return host and port of an origin; empty for one that names none."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return ""


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Any, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
