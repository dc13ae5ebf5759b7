"""Starts the servers, waits for a signal, and stops them without dropping a request."""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import uvicorn

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.serving.http_app import make_app
from na_deploy.serving.http_guard import is_loopback
from na_deploy.serving.http_protocol import limited_protocol
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.service import Service
from na_deploy.serving.startup_message import startup_message

log = logging.getLogger("na_deploy.serving")
T = TypeVar("T")

_KILLED = 130
_BACKLOG = 1024
_HURRY = 2.0
"""Seconds that requests have to arrive whole once the server stops."""
_FLUSH = 0.2
"""Seconds that gRPC's last answers have to be written."""
_IDLE = 75
"""Seconds a connection stays open between requests."""


async def serve(
    paths: list[Path],
    options: ServeOptions,
    announce: Callable[[str], None] = print,
    started: Callable[[Service, int, int | None], None] | None = None,
    stop: asyncio.Event | None = None,
) -> None:
    """Serve models until a signal comes or ``stop`` is set.

    SIGINT and SIGTERM let requests in progress end; a second one does not wait for them. SIGHUP looks for new models.

    Args:
        paths: files, bundles and folders of models.
        options: the server's.
        announce: called with what people should read when the server is ready.
        started: told the ports when the server is ready.
        stop: ends the server when set, instead of signals.

    Raises:
        UsageError: a path holds no model, or an address cannot be listened on.
        NaDeployError: a model does not load.
    """
    if not is_loopback(options.host):
        log.warning("listening on %s: everyone who reaches it can use the models", options.host)
    service = Service(paths, options)
    sock = _listen(options.host, options.port)
    port = sock.getsockname()[1]
    web = _Web(uvicorn.Config(make_app(service), **_settings(options)))
    stopping, look = stop or asyncio.Event(), asyncio.Event()
    with sock, _signals(stopping, look) if stop is None else contextlib.nullcontext():
        parts = {"HTTP": asyncio.create_task(web.serve(sockets=[sock]))}
        rpc, grpc_port = None, None
        try:
            if options.grpc_port is not None:
                rpc, grpc_port = await _start_grpc(service, options)
                parts["gRPC"] = asyncio.create_task(rpc.wait_for_termination())
            if not await _load(service, stopping, parts):
                return
            served = [service.repository.get(name) for name in service.repository.names]
            announce(startup_message(served, options.host, port, grpc_port))
            if started is not None:
                started(service, port, grpc_port)
            parts["looking for models"] = asyncio.create_task(_watch(service, look, options.poll))
            await _first_of(parts, stopping.wait())
            log.info("stopping: requests in progress end first")
        finally:
            service.ready = False
            await _stop(service, web, rpc, parts, told=stopping.is_set() and service.started)
    log.info("stopped")


async def _first_of(parts: Mapping[str, asyncio.Task[Any]], work: Coroutine[Any, Any, T]) -> T:
    """Return what ``work`` gives, unless a part of the server ends before it.

    Raises:
        NaDeployError: a part ended, with its reason.
    """
    task = asyncio.ensure_future(work)
    try:
        await asyncio.wait((task, *parts.values()), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            name, ended = next((name, part) for name, part in parts.items() if part.done())
            error = None if ended.cancelled() else ended.exception()
            reason = "it ended by itself" if error is None else f"{type(error).__name__}: {error}"
            raise NaDeployError(f"the server cannot go on: its part for {name} failed ({reason})") from error
        return task.result()
    finally:
        task.cancel()


async def _stop(service: Service, web: _Web, rpc: Any, parts: Mapping[str, asyncio.Task[Any]], *, told: bool) -> None:
    """End every part: after a delay in which everything is still answered, when it was told to."""
    options, begun = service.options, time.monotonic()
    delay = min(options.drain_delay, options.drain)
    if told and delay:
        with contextlib.suppress(NaDeployError, TimeoutError):
            async with asyncio.timeout(delay):
                await _first_of(parts, asyncio.Event().wait())
    service.hurry(_HURRY)
    left = max(options.drain - (time.monotonic() - begun), 0.0)
    ending: list[Coroutine[Any, Any, Any]] = []
    if rpc is not None:
        ending += [rpc.stop(left), _end_idle(service, rpc, left)]
    if "looking for models" in parts:
        parts["looking for models"].cancel()
    asyncio.get_running_loop().call_later(left, service.ended.set)
    web.config.timeout_graceful_shutdown = round(left) + 2  # for what the end above does not reach
    web.should_exit = True
    await asyncio.gather(*parts.values(), *ending, return_exceptions=True)
    await service.close(left)


async def _end_idle(service: Service, rpc: Any, patience: float) -> None:
    """End gRPC when nothing is computed any more: calls whose request never arrives whole must not hold it."""
    end = time.monotonic() + patience
    await asyncio.sleep(min(_HURRY, patience))
    while service.in_progress and time.monotonic() < end:
        await asyncio.sleep(0.05)
    await asyncio.sleep(min(_FLUSH, max(end - time.monotonic(), 0.0)))
    await rpc.stop(None)


class _Web(uvicorn.Server):
    """uvicorn without its own handling of signals: the caller decides when it ends."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def _settings(options: ServeOptions) -> dict[str, Any]:
    return {
        "http": limited_protocol(options.client_timeout),
        "ws": "none",
        "lifespan": "off",
        "loop": "none",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "limit_concurrency": options.max_connections,
        "timeout_keep_alive": _IDLE,
        "timeout_graceful_shutdown": max(int(options.drain), 1),
        "backlog": _BACKLOG,
    }


async def _load(service: Service, stopping: asyncio.Event, parts: Mapping[str, asyncio.Task[Any]]) -> bool:
    """Load all models; return whether the server is to go on. A model of which no version loads is an error here."""
    loading = asyncio.create_task(service.repository.refresh())
    waiting = asyncio.create_task(stopping.wait())
    await _first_of(parts, asyncio.wait((loading, waiting), return_when=asyncio.FIRST_COMPLETED))
    waiting.cancel()
    if not loading.done():
        log.info("stopping before the models were loaded")
        loading.cancel()
        return False
    loading.result()
    served = service.repository.names
    failed = [entry for entry in service.repository.index() if entry.name not in served]
    if failed:
        reasons = "; ".join(f"{entry.name}/{entry.version}: {entry.reason}" for entry in failed)
        raise NaDeployError(f"not every model can be served: {reasons}")
    service.ready = service.started = True
    return True


async def _start_grpc(service: Service, options: ServeOptions) -> tuple[Any, int]:
    from na_deploy.serving.grpc_server import make_server

    server = make_server(service)
    host = f"[{options.host}]" if ":" in options.host else options.host
    try:
        port = server.add_insecure_port(f"{host}:{options.grpc_port}")
    except RuntimeError:
        port = 0
    if not port:
        raise UsageError(
            f"cannot listen on {host}:{options.grpc_port} for gRPC; choose another --grpc-port, or --no-grpc"
        )
    await server.start()
    return server, port


async def _watch(service: Service, look: asyncio.Event, poll: float) -> None:
    """Look for new models when told, and every ``poll`` seconds unless that is 0."""
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(poll or None):
                await look.wait()
        told = look.is_set()
        look.clear()
        try:
            await service.repository.refresh(retry=told)
        except NaDeployError as error:
            log.error("the models stay as they are: %s", error)
        except OSError as error:
            log.error("the models stay as they are: %s", error.strerror or error)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UsageError(f"cannot listen on {host}: {error.strerror or error}") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(address)
        sock.listen(_BACKLOG)  # here: two sockets may be bound to one port, but only one listens
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise UsageError(f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    return sock


@contextlib.contextmanager
def _signals(stopping: asyncio.Event, look: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            log.warning("stopped at once; requests in progress were not answered")
            atexit._run_exitfuncs()  # removes temporary files; leaving regularly would wait for running models
            os._exit(_KILLED)
        stopping.set()

    handlers = {signal.SIGINT: stop, signal.SIGTERM: stop, signal.SIGHUP: look.set}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)
