"""``na-deploy serve``: exported models over the Open Inference Protocol, and a page to try them."""

from __future__ import annotations

import asyncio
import logging
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import RUNNING, cuda_graphs_option, grouped, running_options
from na_deploy.cli.output import print_json
from na_deploy.optional_dependencies import serve_libraries

if TYPE_CHECKING:
    from na_deploy.serving.service import Service

_MIB = 1 << 20
_GROUPS = {
    "Addresses": ("host", "port", "grpc_port", "no_grpc", "allowed_hosts"),
    "Models": ("versions", "poll", "allow_model_control", "labels"),
    "Running": ("max_batch", "batch_delay_ms", "instances", *RUNNING, "cuda_graphs", "no_custom_operators"),
    "Limits": (
        "queue_limit",
        "max_request_bytes",
        "max_pending_bytes",
        "max_connections",
        "max_image_pixels",
        "client_timeout",
    ),
    "Stopping": ("drain", "drain_delay"),
    "Output": ("log_requests", "as_json"),
}


@click.command(cls=grouped(_GROUPS))
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option(
    "--allowed-host",
    "allowed_hosts",
    multiple=True,
    help="Another name it is called by, as behind a proxy; repeatable.",
)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", default=8000, show_default=True, type=click.IntRange(0, 65535), help="HTTP port; 0: a free one."
)
@click.option("--grpc-port", default=8001, show_default=True, type=click.IntRange(0, 65535), help="gRPC port.")
@click.option("--no-grpc", is_flag=True, help="Serve HTTP only.")
@click.option("--max-batch", default=8, show_default=True, type=click.IntRange(1, 4096), help="Items in one run.")
@click.option(
    "--batch-delay-ms",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0, 10_000),
    help="Wait so long for company before a run that could take more.",
)
@click.option("--instances", default=1, show_default=True, type=click.IntRange(1, 256), help="Runs at the same time.")
@click.option("--queue-limit", default=100, show_default=True, type=click.IntRange(1), help="Requests that may wait.")
@running_options(with_torch=False)
@cuda_graphs_option("Keep CUDA graphs of so many shapes; by default 4 of engines, none of ONNX Runtime.")
@click.option("--versions", default=1, show_default=True, type=click.IntRange(1), help="Newest versions to serve.")
@click.option(
    "--poll",
    default=0.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds between looks for new and changed models; 0: only on SIGHUP.",
)
@click.option("--allow-model-control", is_flag=True, help="Let clients load and unload models.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names of models that bring none.")
@click.option(
    "--max-request-bytes",
    default=64 * _MIB,
    show_default=True,
    type=click.IntRange(1024, 2**31 - 2 * _MIB),
    help="Bytes of one request, also after decompression.",
)
@click.option(
    "--max-pending-bytes",
    default=1024 * _MIB,
    show_default=True,
    type=click.IntRange(1024),
    help="Bytes of all requests in progress.",
)
@click.option(
    "--max-connections",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    help="HTTP connections, and gRPC calls, at the same time.",
)
@click.option(
    "--max-image-pixels", default=50_000_000, show_default=True, type=click.IntRange(1), help="Pixels of one image."
)
@click.option(
    "--client-timeout",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0.1),
    help="Seconds a client may take to send a request or to take its answer.",
)
@click.option(
    "--drain",
    default=30.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds that requests in progress have when the server stops.",
)
@click.option(
    "--drain-delay",
    default=2.0,
    show_default=True,
    type=click.FloatRange(0),
    help="Seconds of --drain in which new requests are still taken, while readiness says no.",
)
@click.option("--no-custom-operators", is_flag=True, help="Run on the function bodies, without the operator library.")
@click.option("--log-requests", is_flag=True, help="Write a line for every request.")
@click.option("--json", "as_json", is_flag=True, help="Print addresses and models as JSON once they are ready.")
def command(models: tuple[Path, ...], no_grpc: bool, no_custom_operators: bool, as_json: bool, **given: Any) -> None:
    """Serve MODELS: files, bundles, or folders of them with numbered versions.

    Speaks the Open Inference Protocol v2 over HTTP and gRPC, as NVIDIA Triton and KServe do, and shows a page to drop
    images on. Ctrl-C or SIGTERM ends it once requests in progress are answered.
    """
    with serve_libraries("serving"):
        from na_deploy.serving.batcher import Batching
        from na_deploy.serving.options import ServeOptions
        from na_deploy.serving.server import serve

    given["batching"] = Batching(
        largest=given.pop("max_batch"),
        delay=given.pop("batch_delay_ms") / 1e3,
        instances=given.pop("instances"),
        queue_limit=given.pop("queue_limit"),
    )
    if no_grpc:
        given["grpc_port"] = None
    options = ServeOptions(custom_operators=not no_custom_operators, **given)
    assert {field.name for field in fields(ServeOptions)} == {*given, "custom_operators"}
    _log_to_stderr()
    announce = (lambda _: None) if as_json else click.echo
    asyncio.run(serve(list(models), options, announce, _print_addresses if as_json else None))


def _print_addresses(service: Service, port: int, grpc_port: int | None) -> None:
    from na_deploy.serving.startup_message import connectable

    host = connectable(service.options.host)
    print_json(
        {
            "http": f"http://{host}:{port}",
            "grpc": None if grpc_port is None else f"{host}:{grpc_port}",
            "models": service.catalogue(),
        }
    )
    sys.stdout.flush()  # a program that waits for this line reads it through a pipe


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S")
    logging.getLogger("na_deploy.serving").setLevel(logging.INFO)
