"""Runs a server in a thread of the test's own process, on free ports of the loopback address."""

from __future__ import annotations

import asyncio
import io
import json
import os
import shutil
import socket
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from na_deploy.serving.options import ServeOptions
from na_deploy.serving.server import serve
from na_deploy.serving.service import Service

PATIENCE = 60


@dataclass
class Running:
    """A server that answers."""

    port: int = 0
    grpc_port: int | None = None
    greeting: str = ""
    service: Service | None = None
    failure: BaseException | None = None
    loop: asyncio.AbstractEventLoop | None = None
    stop: asyncio.Event | None = None
    ready: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def grpc_address(self) -> str:
        return f"127.0.0.1:{self.grpc_port}"

    def call(
        self, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str | None = None
    ) -> tuple[int, Any]:
        """Return the status, and the body as JSON if it is plain JSON, else as bytes."""
        request = urllib.request.Request(f"http://{self.address}{path}", body, headers or {}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
                status, content, about = answer.status, answer.read(), answer.headers
        except urllib.error.HTTPError as error:
            status, content, about = error.code, error.read(), error.headers
        plain = about["content-type"] == "application/json" and about["content-encoding"] is None
        return status, json.loads(content) if plain and content else content

    def infer(self, model: str, request: dict[str, Any] | bytes, headers: dict[str, str] | None = None) -> Any:
        body = request if isinstance(request, bytes) else json.dumps(request).encode()
        return self.call(f"/v2/models/{model}/infer", body, headers)

    def begin_stop(self) -> None:
        assert self.loop is not None
        assert self.stop is not None
        if not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.stop.set)

    def wait(self) -> None:
        assert self.thread is not None
        self.thread.join(PATIENCE)
        assert not self.thread.is_alive(), "the server did not stop"

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), PATIENCE)


@contextmanager
def running(*paths: Path, **options: Any) -> Iterator[Running]:
    """Run a server over models until the block ends.

    Raises:
        BaseException: the error that kept the server from starting, or made it fail.
    """
    server = Running()
    given = ServeOptions(**{"port": 0, "grpc_port": 0, "drain": 10.0, "drain_delay": 0.0, "threads": 1, **options})

    async def main() -> None:
        server.loop, server.stop = asyncio.get_running_loop(), asyncio.Event()

        def started(service: Service, port: int, grpc_port: int | None) -> None:
            server.service, server.port, server.grpc_port = service, port, grpc_port
            server.ready.set()

        await serve(list(paths), given, lambda text: setattr(server, "greeting", text), started, server.stop)

    def work() -> None:
        try:
            asyncio.run(main())
        except BaseException as error:
            server.failure = error
        finally:
            server.ready.set()

    server.thread = threading.Thread(target=work, daemon=True)
    server.thread.start()
    assert server.ready.wait(PATIENCE), "the server did not start"
    if server.failure is not None:
        raise server.failure
    try:
        yield server
    finally:
        server.begin_stop()
        server.wait()
    if server.failure is not None:
        raise server.failure


def need(*programs: str) -> list[str]:
    """Return where programs are. Without one the test is skipped, or fails where ``NA_DEPLOY_BROWSER`` is ``ON``."""
    missing = [program for program in programs if shutil.which(program) is None]
    if missing:
        sentence = f"not tested for want of {', '.join(missing)} (Debian: apt install chromium chromium-driver curl)"
        if os.environ.get("NA_DEPLOY_BROWSER") == "ON":
            pytest.fail(sentence)
        pytest.skip(sentence)
    return [str(shutil.which(program)) for program in programs]


def photo(width: int = 100, height: int = 80, kind: str = "JPEG", seed: int = 0) -> bytes:
    """Return an image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()
