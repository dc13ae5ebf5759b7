"""``na-deploy serve`` as a person runs it: what it prints works, signals end it well, its errors are sentences."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from running import need, photo
from served_models import save, scaling_model, slow_model

from na_deploy.cli.main import COMMANDS

RUN = "from na_deploy.cli.main import main; main()"


@contextmanager
def serving(*arguments: object) -> Iterator[tuple[subprocess.Popen[str], list[str]]]:
    """Start the command on free ports; yields the process and the lines it printed when it was ready."""
    command = [sys.executable, "-c", RUN, "serve", *map(str, arguments), "--port", "0", "--grpc-port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    lines: list[str] = []
    try:
        for line in process.stdout:
            lines.append(line.rstrip())
            if "as_numpy" in line:
                break
        assert lines, process.communicate(timeout=30)
        yield process, lines
    finally:
        process.kill()
        process.communicate()


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Return the exit code and what was written to stderr."""
    _, errors = process.communicate(timeout=60)
    return process.returncode, errors


def fail(*arguments: object, prelude: str = "") -> str:
    """Return the one line that the command fails with."""
    command = [sys.executable, "-c", prelude + RUN, "serve", *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode in (1, 2), result
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    return result.stderr


def test_what_is_printed_works_as_it_stands(repository: Path, tmp_path: Path):
    need("curl")
    with serving(repository) as (process, lines):
        text = "\n".join(lines)
        assert text.startswith("Serving numbers (version 1), scaling (version 2), slow")
        assert "Warning" not in text
        (curl,) = [line for line in lines if line.startswith("curl ")]
        (tmp_path / "photo.jpg").write_bytes(photo())
        result = subprocess.run(["bash", "-c", f"{curl} -s"], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert len(json.loads(result.stdout)["classes"]) == 5
        snippet = "\n".join(lines[lines.index("import numpy as np") :])
        result = subprocess.run([sys.executable, "-c", snippet], capture_output=True, text=True, check=True)
        assert result.stdout == "(1, 10)\n"
        process.send_signal(signal.SIGINT)
        code, errors = finish(process)
        assert code == 0
        assert "small/1 is ready after" in errors
        assert errors.splitlines()[-1].endswith("INFO stopped")


def test_the_curl_line_of_a_model_of_few_numbers_holds_them(tmp_path: Path):
    need("curl")
    with serving(save(scaling_model(3.0), tmp_path / "scaling.onnx")) as (_, lines):
        (curl,) = [line for line in lines if line.startswith("curl ")]
        result = subprocess.run(["bash", "-c", f"{curl} -s"], capture_output=True, text=True, check=True)
        assert json.loads(result.stdout)["outputs"][0]["data"] == [3, 3, 3, 3]


def test_sigterm_lets_requests_in_progress_end_and_takes_no_more(tmp_path: Path):
    save(slow_model(), tmp_path / "slow.onnx")
    with serving(tmp_path) as (process, lines):
        address = re.search(r"http://(127\.0\.0\.1:\d+)/v2", "\n".join(lines))
        assert address is not None
        found: list[dict] = []
        turns = {"inputs": [{"name": "turns", "datatype": "INT64", "shape": [1], "data": [150_000]}]}

        def ask() -> None:
            url = f"http://{address[1]}/v2/models/slow/infer"
            with urllib.request.urlopen(url, json.dumps(turns).encode(), timeout=60) as answer:
                found.append(json.load(answer))

        client = threading.Thread(target=ask)
        client.start()
        wait_for_run(address[1])
        process.send_signal(signal.SIGTERM)
        code, errors = finish(process)
        client.join(60)
        assert code == 0
        assert "stopping: requests in progress end first" in errors
        assert found[0]["outputs"][0]["data"] == [1.0]


def wait_for_run(address: str) -> None:
    """Wait until the server has read the request: its bytes are pending."""
    until = time.monotonic() + 30
    while time.monotonic() < until:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            if re.search(rb"na_deploy_pending_bytes [1-9]", answer.read()):
                return
    raise AssertionError("the request did not arrive")


def test_a_second_signal_does_not_wait(tmp_path: Path):
    save(slow_model(), tmp_path / "slow.onnx")
    with serving(tmp_path) as (process, lines):
        address = re.search(r"http://(127\.0\.0\.1:\d+)/v2", "\n".join(lines))
        assert address is not None
        body = json.dumps(
            {"inputs": [{"name": "turns", "datatype": "INT64", "shape": [1], "data": [20_000_000]}]}
        ).encode()
        head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
        host, port = address[1].split(":")
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(head + body)
            wait_for_run(address[1])
            process.send_signal(signal.SIGINT)
            assert process.stderr is not None
            while "stopping" not in process.stderr.readline():
                pass
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            code, errors = finish(process)
            assert time.monotonic() - begun < 10
            assert code == 130
            assert "stopped at once" in errors


def test_a_hangup_makes_it_look_for_new_models(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "one.onnx")
    with serving(tmp_path, "--log-requests") as (process, _):
        save(scaling_model(2.0), tmp_path / "two.onnx")
        process.send_signal(signal.SIGHUP)
        assert process.stderr is not None
        while "two/1 is ready after" not in process.stderr.readline():
            assert process.poll() is None


def test_an_address_for_everyone_comes_with_a_warning(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "scaling.onnx")
    from running import running

    with running(tmp_path, host="0.0.0.0", grpc_port=None) as server:
        assert "Warning: everyone who reaches 0.0.0.0 can use this server" in server.greeting
        assert server.call("/v2", headers={"Host": "any.example"})[0] == 200


def test_a_port_in_use_is_named(tmp_path: Path):
    model = save(scaling_model(1.0), tmp_path / "scaling.onnx")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert fail(model, "--port", port) == (
            f"error: cannot listen on 127.0.0.1:{port}: Address already in use; choose another --port\n"
        )
        assert f"cannot listen on 127.0.0.1:{port} for gRPC" in last_line(model, port)


def last_line(model: Path, port: int) -> str:
    """Return the last line of stderr with the gRPC port taken; the library writes lines of its own before."""
    command = [sys.executable, "-c", RUN, "serve", str(model), "--port", "0", "--grpc-port", str(port)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert result.returncode == 2
    return result.stderr.splitlines()[-1]


def test_missing_models_and_damaged_ones_are_sentences(tmp_path: Path):
    assert "does not exist; give an exported .onnx file" in fail(tmp_path / "nothing.onnx", "--port", 0)
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    result = subprocess.run(
        [sys.executable, "-c", RUN, "serve", str(tmp_path), "--port", "0", "--no-grpc"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert result.returncode == 1
    assert result.stdout == ""
    assert re.match(
        r"error: not every model can be served: bad/1: .*is not an ONNX model", result.stderr.splitlines()[-1]
    )


BLOCKED = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("fastapi", "uvicorn", "starlette", "grpc", "tritonclient", "prometheus_client"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
"""


def test_without_the_extra_it_says_what_to_install(tmp_path: Path):
    model = save(scaling_model(1.0), tmp_path / "scaling.onnx")
    assert fail(model, prelude=BLOCKED).endswith("install it with: pip install 'na-deploy[serve]'\n")


@pytest.mark.parametrize("arguments", [["--help"], ["serve", "--help"]])
def test_help_imports_no_server(arguments: list[str]):
    command = [sys.executable, "-c", BLOCKED + RUN, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert "serve" in COMMANDS
    assert "Open Inference Protocol v2" in result.stdout
