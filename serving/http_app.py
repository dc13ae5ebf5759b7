"""The HTTP side of the protocol as a FastAPI application. Each route reads, asks the service and writes; no more."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import zlib
from collections.abc import Awaitable
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from starlette.exceptions import HTTPException

from na_deploy import __version__
from na_deploy.serving import descriptions
from na_deploy.serving.errors import (
    ClientGoneError,
    InvalidRequestError,
    ModelFailedError,
    NotFoundError,
    RequestError,
    UnavailableError,
    UnsupportedError,
    public_text,
)
from na_deploy.serving.http_body import request_body
from na_deploy.serving.http_guard import Guard
from na_deploy.serving.http_segmentation import add_segmentation
from na_deploy.serving.json_codec import HEADER_LENGTH, decode_request, encode_response, parse_object
from na_deploy.serving.metrics import CONTENT_TYPE
from na_deploy.serving.page import add_page
from na_deploy.serving.requests import InferRequest, InferResponse
from na_deploy.serving.service import Service

log = logging.getLogger("na_deploy.serving")
T = TypeVar("T")

_LONG = 64 << 10
"""Bytes from which on a request is parsed, or an answer written, in a thread, so that others go on meanwhile."""

_WORTH = 1024
"""Bytes from which on an answer is compressed for clients that take it."""
_SMALL = 64 << 10
"""Bytes of requests that carry no tensors."""

UNSUPPORTED = {
    "trace/setting": "tracing is not offered; /metrics and the statistics show where time goes",
    "logging": "log settings cannot be changed over the network",
    "systemsharedmemory": "shared memory is not supported; send tensors in the request",
    "cudasharedmemory": "shared memory is not supported; send tensors in the request",
}
"""Parts of the protocol that are refused, by the beginning of their address under ``/v2/``."""


def make_app(service: Service) -> Any:
    """Return the application, behind its guard."""
    app = FastAPI(title="na-deploy", version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_server(app, service)
    _add_models(app, service)
    _add_inference(app, service)
    add_segmentation(app, service, while_connected)
    _add_repository(app, service)
    add_page(app, service)
    _add_unsupported(app)
    return Guard(app, service.options.host, service.options.allowed_hosts)


def answer(value: Any, status: int = 200) -> Response:
    """Return a JSON answer."""
    return Response(json.dumps(value, separators=(",", ":")), status, media_type="application/json")


def error_answer(status: int, sentence: str) -> Response:
    """Return an error as the protocol writes it."""
    response = answer({"error": sentence}, status)
    if status in (408, 413):
        response.headers["connection"] = "close"
    if status == 503:
        response.headers["retry-after"] = "1"
    return response


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(_: Request, error: RequestError) -> Response:
        return error_answer(error.status, str(error))

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> Response:
        if error.status_code == 404:
            return error_answer(404, f"there is nothing at {request.url.path[:200]}")
        if error.status_code == 405:
            return error_answer(405, f"{request.method[:20]} is not what {request.url.path[:200]} answers")
        return error_answer(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    async def defect(_: Request, error: Exception) -> Response:
        return error_answer(500, f"the server failed: {type(error).__name__}")


def _add_server(app: FastAPI, service: Service) -> None:
    @app.get("/v2/health/live")
    async def live() -> Response:
        return answer({"live": True})

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        return answer({"ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2")
    @app.get("/v2/", include_in_schema=False)
    async def metadata() -> Response:
        return answer(descriptions.server_metadata())

    @app.get("/metrics")
    async def metrics() -> Response:
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)


def _add_models(app: FastAPI, service: Service) -> None:
    repository, options = service.repository, service.options

    @app.get("/v2/models/stats")
    async def all_statistics() -> Response:
        served = [each for name in repository.names for each in repository.versions(name)]
        return answer(descriptions.statistics(served))

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def ready(name: str, version: str = "") -> Response:
        repository.get(name, version)
        return answer({"name": name, "ready": service.ready}, 200 if service.ready else 503)

    @app.get("/v2/models/{name}/config")
    @app.get("/v2/models/{name}/versions/{version}/config")
    async def config(name: str, version: str = "") -> Response:
        served = repository.get(name, version)
        return answer(descriptions.model_config(served, options.batching, options.versions))

    @app.get("/v2/models/{name}/stats")
    async def statistics(name: str) -> Response:
        return answer(descriptions.statistics(repository.versions(name)))

    @app.get("/v2/models/{name}/versions/{version}/stats")
    async def version_statistics(name: str, version: str) -> Response:
        return answer(descriptions.statistics([repository.get(name, version)]))

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def metadata(name: str, version: str = "") -> Response:
        return answer(descriptions.model_metadata(repository.get(name, version), repository.versions(name)))


def _add_inference(app: FastAPI, service: Service) -> None:
    @app.post("/v2/models/{name}/infer")
    @app.post("/v2/models/{name}/versions/{version}/infer")
    async def infer(request: Request, name: str, version: str = "") -> Response:
        with service.measured(name, "http"):
            async with request_body(request, service) as body:
                header = request.headers.get(HEADER_LENGTH)
                decoded = await _decoded(body, header)
                response = await while_connected(request, service, service.infer(name, version, decoded))
            accepted = request.headers.get("accept-encoding", "")
            if all(tensor.datatype != "BYTES" for tensor in response.outputs) and response.nbytes < _LONG:
                return _encoded(response, accepted)
            return await asyncio.to_thread(_encoded, response, accepted)

    @app.post("/v2/models/{name}/classify")
    @app.post("/v2/models/{name}/versions/{version}/classify")
    async def classify(request: Request, name: str, version: str = "") -> Response:
        top = request.query_params.get("top", "5")
        with service.measured(name, "image"):
            if not (top.isascii() and top.isdecimal()) or len(top) > 6:
                raise InvalidRequestError(f"top is {top[:40]!r}; expected how many classes to return")
            async with request_body(request, service) as body:
                found = service.classify_image(name, version, bytes(body), int(top))
                return answer(await while_connected(request, service, found))


def _add_repository(app: FastAPI, service: Service) -> None:
    @app.post("/v2/repository/index")
    async def index(request: Request) -> Response:
        async with request_body(request, service, _SMALL) as body:
            content = parse_object(body) if body else {}
        return answer(descriptions.repository_index(service.repository, content.get("ready") is True))

    @app.post("/v2/repository/models/{name}/load")
    async def load(request: Request, name: str) -> Response:
        service.check_model_control()
        async with request_body(request, service, _SMALL) as body:
            content = parse_object(body) if body else {}
        if content.get("parameters"):
            raise UnsupportedError("models are loaded from the server's own folder; parameters of load are not taken")
        await service.repository.load(name)
        return answer({})

    @app.post("/v2/repository/models/{name}/unload")
    async def unload(name: str) -> Response:
        service.check_model_control()
        await service.repository.unload(name)
        return answer({})


def _add_unsupported(app: FastAPI) -> None:
    @app.api_route("/v2/{rest:path}", methods=["GET", "POST"], include_in_schema=False)
    async def unsupported(request: Request, rest: str) -> Response:
        for beginning, sentence in UNSUPPORTED.items():
            if rest.startswith(beginning) or (rest.startswith("models/") and rest.endswith("/" + beginning)):
                raise UnsupportedError(sentence)
        raise NotFoundError(f"there is nothing at /v2/{rest[:200]} for {request.method}")


async def while_connected(request: Request, service: Service, work: Awaitable[T]) -> T:
    """Wait for ``work``; if the client goes first, or the server ends, cancel it.

    Raises:
        ClientGoneError: the client went.
        UnavailableError: the server ended.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(request))
    ended = asyncio.ensure_future(service.ended.wait())
    try:
        await asyncio.wait((task, gone, ended), return_when=asyncio.FIRST_COMPLETED)
        if not task.done() and ended.done():
            raise UnavailableError("the server stopped before the request was answered")
        if not task.done():
            raise ClientGoneError("the client has gone")
        return _result(task)
    finally:
        gone.cancel()
        ended.cancel()
        task.cancel()


def _result(task: asyncio.Future[T]) -> T:
    try:
        return task.result()
    except (RequestError, asyncio.CancelledError):
        raise
    except Exception as error:
        log.exception("a request failed inside the server")
        raise ModelFailedError(f"the server failed: {type(error).__name__}: {public_text(error)}") from error


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def accepted_encodings(header: str) -> tuple[str, ...]:
    """Return which of gzip and deflate an ``Accept-Encoding`` takes (RFC 9110, 12.5.3), most wanted first."""
    weights: dict[str, float] = {}
    for part in header.lower().split(","):
        name, *parameters = (piece.strip() for piece in part.split(";"))
        weight = 1.0
        for parameter in parameters:
            if parameter.startswith("q="):
                try:
                    weight = float(parameter[2:])
                except ValueError:
                    weight = 0.0
        weights[name.removeprefix("x-")] = weight
    wanted = {name: weights.get(name, weights.get("*", 0.0)) for name in ("gzip", "deflate")}
    return tuple(sorted((name for name, weight in wanted.items() if weight > 0), key=lambda name: -wanted[name]))


async def _decoded(body: bytes | bytearray, header: str | None) -> InferRequest:
    length = int(header) if header is not None and header.isascii() and header.isdecimal() else len(body)
    if min(length, len(body)) < _LONG:
        return decode_request(body, header)
    return await asyncio.to_thread(decode_request, body, header)


def _encoded(response: InferResponse, accepted: str) -> Response:
    parts, header_length = encode_response(response)
    body = b"".join(parts)
    headers = {}
    if header_length is not None:
        headers["Inference-Header-Content-Length"] = str(header_length)
    encodings = accepted_encodings(accepted) if len(body) > _WORTH else ()
    if encodings[:1] == ("gzip",):
        body, headers["Content-Encoding"] = gzip.compress(body, 1), "gzip"
    elif encodings[:1] == ("deflate",):
        body, headers["Content-Encoding"] = zlib.compress(body, 1), "deflate"
    kind = "application/json" if header_length is None else "application/octet-stream"
    return Response(body, headers=headers, media_type=kind)
