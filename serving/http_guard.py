"""Keeps web pages of other sites away from the server: the names it is called by, and where a page comes from.

A browser sends requests for any page to any address, also to a server on the loopback address. A page of another site
must neither read answers (by letting its own name point here) nor change anything. Other clients send no ``Origin``.
"""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")


def is_loopback(host: str) -> bool:
    """Tell whether an address or name means this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class Guard:
    """An ASGI application in front of another.

    Args:
        app: what answers requests that pass.
        host: the address the server listens on.
        allowed: further names it is called by, as behind a proxy.
    """

    def __init__(self, app: Any, host: str, allowed: Sequence[str] = ()) -> None:
        self._app = app
        self._allowed = frozenset(name.lower() for name in allowed)
        self._names = {*LOOPBACK_NAMES, host, *self._allowed} if is_loopback(host) else None

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
            return "the server is called by a name that is not its own; --allowed-host adds names"
        origin = headers.get(b"origin")
        if origin is not None and not self._is_own(origin.decode("latin-1"), host):
            return "the request comes from a page of another site"
        return None

    def _is_own(self, origin: str, host: str) -> bool:
        """Tell whether a page's origin is this server: the host it is called by now, or another of its names."""
        try:
            return urlsplit(origin).netloc == host or _name(origin) in self._allowed
        except ValueError:
            return False


def _name(address: str) -> str:
    """Return the host's name in an address; empty where there is none."""
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""


async def _refuse(send: Any, sentence: str) -> None:
    body = json.dumps({"error": sentence}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 403, "headers": headers})
    await send({"type": "http.response.body", "body": body})
