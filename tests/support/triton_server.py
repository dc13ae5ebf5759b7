"""Starts NVIDIA Triton's real server, as scripts/triton_server.sh installs it, for tests and benchmarks."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
STAND_IN = Path(__file__).with_name("onnxruntime_stand_in.py")


def environment() -> Path:
    """The environment that scripts/triton_server.sh makes."""
    return Path(os.environ.get("NA_DEPLOY_TRITON_ENVIRONMENT", ROOT / ".venv-triton"))


def is_installed() -> bool:
    return (environment() / "libpython_folder").is_file()


@dataclass(frozen=True)
class Server:
    """A running server: addresses, log, process."""

    http: str
    grpc: str
    metrics: str
    log: Path
    process: subprocess.Popen[bytes]


@contextmanager
def triton_server(
    repositories: Sequence[Path], folder: Path, arguments: Sequence[str] = (), timeout_s: float = 90.0
) -> Iterator[Server]:
    """Serve repositories on free loopback ports until the block ends.

    The wheel has no onnxruntime backend. A stand-in under its name, which runs ONNX Runtime from Python, takes its
    place, so that repositories for it are served as they are written.

    Args:
        repositories: folders to serve.
        folder: for the backends and the log.
        arguments: further ones of ``tritonserver``.
        timeout_s: give up if it is not ready by then.
    """
    if not is_installed():
        raise RuntimeError(f"Triton's server is not installed in {environment()}: bash scripts/triton_server.sh")
    packages = next((environment() / "lib").glob("python3.*")) / "site-packages"
    bundled = packages / "pytriton" / "tritonserver"
    backends = folder / "backends"
    shutil.copytree(bundled / "backends" / "python", backends / "python")
    (backends / "onnxruntime").mkdir()
    shutil.copy(STAND_IN, backends / "onnxruntime" / "model.py")
    http, grpc, metrics = _free_ports(3)
    libraries = [str(packages / "nvidia_pytriton.libs"), (environment() / "libpython_folder").read_text().strip()]
    variables = {
        **os.environ,
        "PATH": f"{environment() / 'bin'}:{os.environ['PATH']}",
        "LD_LIBRARY_PATH": ":".join(libraries),
        "PYTHONPATH": str(packages),
    }
    command = [
        str(bundled / "bin" / "tritonserver"),
        *(f"--model-repository={repository}" for repository in repositories),
        f"--backend-directory={backends}",
        f"--cache-directory={bundled / 'caches'}",
        *(f"--{kind}-address=127.0.0.1" for kind in ("http", "grpc", "metrics")),
        f"--http-port={http}",
        f"--grpc-port={grpc}",
        f"--metrics-port={metrics}",
        "--exit-timeout-secs=5",
        # Servers on one machine that share this name break each other's Python backends.
        f"--backend-config=python,shm-region-prefix-name=na_deploy_{os.getpid()}_{http}",
        *arguments,
    ]
    log = folder / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=variables, stdout=output, stderr=subprocess.STDOUT)
    try:
        _wait_until_ready(f"http://127.0.0.1:{http}/v2/health/ready", process, log, timeout_s)
        yield Server(f"127.0.0.1:{http}", f"127.0.0.1:{grpc}", f"127.0.0.1:{metrics}", log, process)
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _wait_until_ready(url: str, process: subprocess.Popen[bytes], log: Path, timeout_s: float) -> None:
    give_up = time.monotonic() + timeout_s
    while time.monotonic() < give_up and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.05)
    state = "is not ready" if process.poll() is None else f"ended with {process.returncode}"
    lines = [line for line in log.read_text(errors="replace").splitlines() if line[:1] not in "|+"]
    raise RuntimeError("\n".join([f"Triton {state}; the end of its log:", *lines[-40:]]))


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
