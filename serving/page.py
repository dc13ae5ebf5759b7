"""The page for people: one static file, and what it asks for beyond the protocol."""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files

from fastapi import FastAPI, Response

from na_deploy.serving.service import Service

_POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src 'self' blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"  # noqa: E501
HEADERS = {
    "Content-Security-Policy": _POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}


def add_page(app: FastAPI, service: Service) -> None:
    """Add the page at ``/``, the list of models it shows and the pictures of their windows."""

    @app.get("/", include_in_schema=False)
    async def page() -> Response:
        return Response(_page(), media_type="text/html; charset=utf-8", headers=HEADERS)

    @app.get("/page/models", include_in_schema=False)
    async def models() -> Response:
        return Response(json.dumps(service.catalogue()), media_type="application/json")

    @app.get("/v2/models/{name}/windows.png")
    @app.get("/v2/models/{name}/versions/{version}/windows.png")
    async def windows(name: str, version: str = "") -> Response:
        return Response(await service.windows_picture(name, version), media_type="image/png")


@cache
def _page() -> bytes:
    return files("na_deploy.serving").joinpath("page.html").read_bytes()
