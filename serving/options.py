"""Options of a server: addresses, batching, limits. Values and their defaults only."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from na_deploy.serving.batcher import Batching


@dataclass(frozen=True)
class ServeOptions:
    """Options of a server.

    Attributes:
        host: address to listen on.
        allowed_hosts: further names that requests may call the server by, as behind a proxy.
        port: HTTP port; 0 takes a free one.
        grpc_port: gRPC port; 0 takes a free one, ``None`` serves no gRPC.
        batching: the rules by which requests share runs.
        versions: the number of versions of a model that are served, the newest that load.
        backend: the runtime; ``None`` takes each model's own.
        precision: arithmetic of OpenVINO, "f32" or "bf16".
        device: number of the GPU.
        cuda_graphs: combinations of shapes whose CUDA graph is kept; ``None`` leaves the choice to the backend.
        threads: threads inside one operator; ``None`` leaves the choice to the runtime.
        custom_operators: use our operator library where it is installed.
        labels: class names for models that bring none.
        poll: seconds between looks for new, changed and removed models; 0 never looks.
        allow_model_control: clients may load and unload models.
        max_request_bytes: bytes of one request, also after decompression.
        max_pending_bytes: bytes of all requests that are read or wait.
        max_connections: HTTP connections at a time.
        max_image_pixels: pixels of one image.
        client_timeout: seconds a client may take to send a request, or to take a waiting answer.
        drain: seconds that requests in progress have to end when the server stops.
        drain_delay: part of ``drain`` in which requests are still taken, while readiness says no.
        log_requests: write a line for every request.
    """

    host: str = "127.0.0.1"
    allowed_hosts: tuple[str, ...] = ()
    port: int = 8000
    grpc_port: int | None = 8001
    batching: Batching = field(default_factory=Batching)
    versions: int = 1
    backend: str | None = None
    precision: str | None = None
    device: int | None = None
    cuda_graphs: int | None = None
    threads: int | None = None
    custom_operators: bool = True
    labels: Path | None = None
    poll: float = 0.0
    allow_model_control: bool = False
    max_request_bytes: int = 64 << 20
    max_pending_bytes: int = 1 << 30
    max_connections: int = 1000
    max_image_pixels: int = 50_000_000
    client_timeout: float = 30.0
    drain: float = 30.0
    drain_delay: float = 2.0
    log_requests: bool = False
