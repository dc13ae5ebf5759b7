"""Cost of the server over a session, requests it answers, gain of batching, time to be ready.

    python benchmarks/serving.py                    # all tables, a few seconds per row
    python benchmarks/serving.py --seconds 30       # the rows as docs/serving.md states them
    python benchmarks/serving.py --soak 10          # memory of a server under mixed load for ten minutes

Servers and their clients run in processes of their own, on the loopback address. Overhead is measured on a model that
computes next to nothing on a 224×224 image, in turn with the same session called directly; the rest uses NAT-Mini.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import onnx
from machine import describe_machine, time_interleaved
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from rich.console import Console
from rich.table import Table

import na_deploy
import na_deploy.runtime

CONSOLE = Console(width=120)
SHAPE = (1, 3, 224, 224)


def light_model(path: Path) -> Path:
    """Write a classifier of 10 classes that takes the mean of an image and little more."""
    from na_deploy.models.metadata import ModelMetadata

    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "head"], ["logits"]),
    ]
    weights = [
        numpy_helper.from_array(np.array([2, 3], np.int64), "axes"),
        numpy_helper.from_array(np.random.default_rng(0).normal(size=(3, 10)).astype(np.float32), "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "light",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, 224, 224])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    helper.set_model_props(model, ModelMetadata("light", num_classes=10).to_props())
    onnx.save(model, path)
    return path


def nat_mini(folder: Path) -> Path:
    """Export NAT-Mini with seeded random weights and a free batch."""
    from na_deploy.exporter import export
    from na_deploy.models import load_model, random_checkpoint

    random_checkpoint("nat_mini", seed=0, path=folder / "nat_mini.pth")
    export(load_model(folder / "nat_mini.pth", arch="nat_mini"), folder / "nat_mini.onnx", dynamic="batch")
    (folder / "nat_mini.pth").unlink()
    return folder / "nat_mini.onnx"


@contextmanager
def server(model: Path, *options: str) -> Iterator[tuple[int, int, int, float]]:
    """Run ``na-deploy serve``; yields HTTP port, gRPC port, process id and seconds from its start to ready."""
    port, grpc_port = free_port(), free_port()
    command = [sys.executable, "-c", "from na_deploy.cli.main import main; main()", "serve", str(model)]
    command += ["--port", str(port), "--grpc-port", str(grpc_port), *options]
    started = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while not is_ready(port):
            if process.poll() is not None or time.perf_counter() - started > 120:
                raise RuntimeError("the server did not start")
            time.sleep(0.01)
        yield port, grpc_port, process.pid, time.perf_counter() - started
    finally:
        process.terminate()
        process.wait(60)


def is_ready(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v2/health/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return int(found.getsockname()[1])


def photo() -> bytes:
    """Return a JPEG file of 640×480: colours that change slowly, with some noise."""
    random = np.random.default_rng(0)
    coarse = Image.fromarray(random.integers(0, 255, (12, 16, 3), dtype=np.uint8)).resize((640, 480))
    pixels = np.asarray(coarse, np.int16) + random.integers(-8, 8, (480, 640, 3))
    buffer = io.BytesIO()
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def overhead(model: Path, rounds: int) -> None:
    """Print what one request takes by every way in, and what of it a direct call does not."""
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

    from na_deploy.models.preprocessing import Preprocessing
    from na_deploy.serving.images import image_input

    image = np.random.default_rng(1).normal(size=SHAPE).astype(np.float32)
    data, raw = photo(), image.tobytes()
    with na_deploy.load(model, threads=1) as session, server(model, "--threads", "1") as (port, grpc_port, _, _):
        http = http_client.InferenceServerClient(f"127.0.0.1:{port}")
        rpc = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        http_input = http_client.InferInput("image", list(SHAPE), "FP32").set_data_from_numpy(image)
        grpc_input = grpc_client.InferInput("image", list(SHAPE), "FP32").set_data_from_numpy(image)
        connection = HTTPConnection("127.0.0.1", port)

        def post(path: str, body: bytes, headers: dict[str, str]) -> bytes:
            connection.request("POST", f"/v2/models/{model.stem}/{path}", body, headers)
            return connection.getresponse().read()

        times = time_interleaved(
            {
                "Session.run": lambda: session.run(image),
                "HTTP, bytes alone": lambda: post("infer", raw, {"Inference-Header-Content-Length": "0"}),
                "HTTP, tritonclient": lambda: http.infer(model.stem, [http_input]),
                "gRPC, tritonclient": lambda: rpc.infer(model.stem, [grpc_input]),
                "decode, prepare, Session.run": lambda: session.run(image_input(data, Preprocessing(), 10**8)),
                "HTTP, JPEG": lambda: post("classify", data, {}),
            },
            rounds=rounds,
            warmup=20,
        )
        tiny = time_interleaved({"GET /v2/health/live": lambda: get(connection, "/v2/health/live")}, rounds, 20)
    table = Table("224×224 fp32, one request after the other", "ms", "added to a direct call, ms")
    direct = {"HTTP, JPEG": "decode, prepare, Session.run"}
    for name, value in times.items():
        base = times[direct.get(name, "Session.run")]
        table.add_row(name, f"{value:.2f}", f"{value - base:.2f}" if "HTTP" in name or "gRPC" in name else "")
    for name, value in tiny.items():
        table.add_row(name, f"{value:.2f}", "")
    CONSOLE.print(table)


def get(connection: HTTPConnection, path: str) -> bytes:
    connection.request("GET", path)
    return connection.getresponse().read()


async def load_http(port: int, model: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Send requests for ``seconds``, ``concurrency`` at a time; returns rate, latencies in ms and errors."""
    body = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32).tobytes()
    head = (
        f"POST /v2/models/{model}/infer HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Length: {len(body)}\r\n"
        "Inference-Header-Content-Length: 0\r\n\r\n"
    ).encode()
    times: list[float] = []
    errors = 0
    begun = time.perf_counter()
    until = begun + seconds

    async def client() -> None:
        nonlocal errors
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            started = time.perf_counter()
            writer.write(head + body)
            answer = await reader.readuntil(b"\r\n\r\n")
            lines = answer.decode().lower().split("\r\n")
            length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length"))
            await reader.readexactly(length)
            if " 200 " in lines[0]:
                times.append(1e3 * (time.perf_counter() - started))
            else:
                errors += 1
        writer.close()

    await asyncio.gather(*(client() for _ in range(concurrency)))
    elapsed = time.perf_counter() - begun  # the last answers come after ``until``
    times.sort()
    return {
        "rate": len(times) / elapsed,
        "p50": times[len(times) // 2],
        "p99": times[min(int(len(times) * 0.99), len(times) - 1)],
        "errors": errors,
    }


def load_from_elsewhere(port: int, model: str, concurrency: int, seconds: float) -> dict[str, float]:
    """Run :func:`load_http` in a process of its own."""
    command = [sys.executable, __file__, "--client", str(port), model, str(concurrency), str(seconds)]
    return dict(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))


def session_rate(session: na_deploy.runtime.Session, seconds: float) -> float:
    """Return images a second of a session in a loop."""
    image = np.random.default_rng(2).normal(size=SHAPE).astype(np.float32)
    begun, count = time.perf_counter(), 0
    while time.perf_counter() < begun + seconds:
        session.run(image)
        count += 1
    return count / (time.perf_counter() - begun)


SERVERS = {
    "one by one": ("--max-batch", "1"),
    "batches up to 8": ("--max-batch", "8"),
    "two instances": ("--max-batch", "1", "--instances", "2"),
}


def throughput(model: Path, threads: int, seconds: float, concurrencies: tuple[int, ...]) -> None:
    """Print rates and latencies of servers and of a session in a loop, all of them in turn, a quarter at a time."""
    columns = ("requests at a time", "", "requests/s", "of Session.run", "p50 ms", "p99 ms", "errors")
    table = Table(*columns, title=f"{model.stem}, HTTP, {threads} threads per operator")
    with ExitStack() as stack:
        session = stack.enter_context(na_deploy.load(model, threads=threads))
        session.warm_up({"image": SHAPE})
        ports = {
            name: stack.enter_context(server(model, "--threads", str(threads), *options))[0]
            for name, options in SERVERS.items()
        }
        for concurrency in concurrencies:
            base: list[float] = []
            found: dict[str, list[dict[str, float]]] = {name: [] for name in SERVERS}
            for _ in range(4):
                base.append(session_rate(session, seconds / 4))
                for name, port in ports.items():
                    found[name].append(load_from_elsewhere(port, model.stem, concurrency, seconds / 4))
            loop = statistics.mean(base)
            table.add_row("1", "Session.run in a loop", f"{loop:.1f}", "", f"{1e3 / loop:.1f}", "", "")
            for name, parts in found.items():
                rate = statistics.mean(part["rate"] for part in parts)
                table.add_row(
                    str(concurrency),
                    name,
                    f"{rate:.1f}",
                    f"{rate / loop:.2f}×",
                    f"{statistics.median(part['p50'] for part in parts):.1f}",
                    f"{max(part['p99'] for part in parts):.1f}",
                    f"{sum(part['errors'] for part in parts):.0f}",
                )
    CONSOLE.print(table)


def batch_gain(models: dict[str, Path], rounds: int) -> None:
    """Print what one item costs in batches of several sizes, all of them in turn: what sharing runs can win."""
    sizes = (1, 2, 4, 8)
    table = Table("ms per item in a batch of", *map(str, sizes), "gain of 8 over 1")
    for name, model in models.items():
        for threads in (1, 2):
            with na_deploy.load(model, threads=threads) as session:
                batches = {n: np.random.default_rng(n).normal(size=(n, *SHAPE[1:])).astype(np.float32) for n in sizes}
                runs = {str(n): (lambda batch=batch: session.run(batch)) for n, batch in batches.items()}
                times = {int(n): value / int(n) for n, value in time_interleaved(runs, rounds).items()}
            cells = (f"{times[n]:.3g}" for n in sizes)
            table.add_row(f"{name}, {threads} threads", *cells, f"{times[1] / times[8]:.2f}×")
    CONSOLE.print(table)


def boot(models: dict[str, Path], runs: int) -> None:
    """Print the time from starting the process to ready, and the memory it then has."""
    table = Table("from starting the process to ready", "seconds", "memory, MB")
    for name, model in models.items():
        times, memories = [], []
        for _ in range(runs):
            with server(model) as (_, _, process, seconds):
                times.append(seconds)
                memories.append(resident(process))
        table.add_row(name, f"{statistics.median(times):.2f}", f"{statistics.median(memories):.0f}")
    CONSOLE.print(table)


def resident(process: int) -> float:
    """Return a process's resident memory in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def soak(model: Path, minutes: float, rate: float) -> None:
    """Print a server's memory over time, under tensors, images, gRPC, bad requests and clients that leave."""
    import tritonclient.grpc as grpc_client
    import tritonclient.http as http_client

    image = np.random.default_rng(3).normal(size=SHAPE).astype(np.float32)
    data = photo()
    counts = dict.fromkeys(("tensors", "gRPC", "images", "refused", "gone"), 0)
    table = Table(
        "minute", "requests", "memory, MB", "threads", "open files", title=f"{model.stem}, {rate:g} requests/s"
    )
    with server(model, "--threads", "1") as (port, grpc_port, process, _):
        http = http_client.InferenceServerClient(f"127.0.0.1:{port}")
        rpc = grpc_client.InferenceServerClient(f"127.0.0.1:{grpc_port}")
        http_input = http_client.InferInput("image", list(SHAPE), "FP32").set_data_from_numpy(image)
        grpc_input = grpc_client.InferInput("image", list(SHAPE), "FP32").set_data_from_numpy(image)
        address = f"http://127.0.0.1:{port}/v2/models/{model.stem}"

        def refused(path: str, body: bytes) -> None:
            try:
                urllib.request.urlopen(f"{address}/{path}", body, timeout=30)
            except urllib.error.HTTPError as error:
                error.read()
                return
            raise RuntimeError("a bad request was answered")

        def gone() -> None:
            with socket.create_connection(("127.0.0.1", port)) as connection:
                body = image.tobytes()
                connection.sendall(
                    f"POST /v2/models/{model.stem}/infer HTTP/1.1\r\nHost: localhost\r\n"
                    "Inference-Header-Content-Length: 0"
                    f"\r\nContent-Length: {len(body)}\r\n\r\n".encode()
                    + body
                )

        actions = [
            ("tensors", lambda: http.infer(model.stem, [http_input])),
            ("gRPC", lambda: rpc.infer(model.stem, [grpc_input])),
            ("images", lambda: urllib.request.urlopen(f"{address}/classify", data, timeout=30).read()),
            ("tensors", lambda: http.infer(model.stem, [http_input])),
            ("refused", lambda: refused("infer", b'{"inputs": [' + b"1," * 50_000)),
            ("refused", lambda: refused("classify", data[: len(data) // 2])),
            ("gone", gone),
        ]
        started, turn, reported = time.perf_counter(), 0, -1
        while (elapsed := time.perf_counter() - started) < 60 * minutes:
            if int(elapsed / 60) > reported:
                reported = int(elapsed / 60)
                report(table, reported, sum(counts.values()), process)
            name, act = actions[turn % len(actions)]
            act()
            counts[name] += 1
            turn += 1
            time.sleep(max(0.0, turn / rate - (time.perf_counter() - started)))
        report(table, round(minutes), sum(counts.values()), process)
    CONSOLE.print(table)
    CONSOLE.print(", ".join(f"{count} {name}" for name, count in counts.items()))


def report(table: Table, minute: int, requests: int, process: int) -> None:
    threads, files = (len(list(Path(f"/proc/{process}/{kind}").iterdir())) for kind in ("task", "fd"))
    table.add_row(str(minute), str(requests), f"{resident(process):.1f}", str(threads), str(files))
    print(f"minute {minute}: {requests} requests, {resident(process):.1f} MB", file=sys.stderr, flush=True)


def main() -> None:
    if sys.argv[1:2] == ["--client"]:
        port, model, concurrency, seconds = sys.argv[2:6]
        print(json.dumps(asyncio.run(load_http(int(port), model, int(concurrency), float(seconds)))))
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="per row of the throughput table")
    parser.add_argument("--rounds", type=int, default=200, help="requests per row of the overhead table")
    parser.add_argument("--threads", type=int, default=1, help="threads inside one operator")
    parser.add_argument("--soak", type=float, metavar="MINUTES", help="only watch a server's memory under load")
    parser.add_argument("--rate", type=float, default=8.0, help="requests a second of --soak")
    arguments = parser.parse_args()
    CONSOLE.print(describe_machine(arguments.threads))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        light = light_model(folder / "light.onnx")
        if arguments.soak is not None:
            soak(nat_mini(folder), arguments.soak, arguments.rate)
            return
        overhead(light, arguments.rounds)
        model = nat_mini(folder)
        batch_gain({"a model of three nodes": light, "NAT-Mini": model}, 15)
        boot({"a model of three nodes": light, "NAT-Mini": model}, 5)
        throughput(model, arguments.threads, arguments.seconds, (1, 8, 64))
        throughput(light, arguments.threads, arguments.seconds, (1, 8, 64))


if __name__ == "__main__":
    main()
