"""The address that answers images with segments."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import FastAPI, Request, Response

from na_deploy.serving.http_body import request_body
from na_deploy.serving.segmentation import SegmentRequest, segment_image
from na_deploy.serving.service import Service


def add_segmentation(
    app: FastAPI, service: Service, while_connected: Callable[[Request, Service, Awaitable[Any]], Awaitable[Any]]
) -> None:
    """Add ``/v2/models/{name}/segment``."""

    @app.post("/v2/models/{name}/segment")
    @app.post("/v2/models/{name}/versions/{version}/segment")
    async def segment(request: Request, name: str, version: str = "") -> Response:
        with service.measured(name, "image"):
            wanted = SegmentRequest.of(request.query_params)
            async with request_body(request, service) as body:
                content: bytes = await while_connected(
                    request, service, segment_image(service, name, version, bytes(body), wanted)
                )
                return Response(content, media_type="application/json" if wanted.form == "json" else "image/png")
