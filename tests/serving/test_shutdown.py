"""A server that stops answers what was sent to it, and one that cannot go on says why."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.grpc
from onnx import helper, numpy_helper
from running import photo, running
from served_models import save, scaling_model, slow_model

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.serving.options import ServeOptions
from na_deploy.serving.server import serve


def head(length: int, path: str = "/v2/models/scaling/infer") -> bytes:
    return f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n".encode()


def test_readiness_says_no_while_everything_is_still_taken(tmp_path: Path):
    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    with running(path, drain_delay=1.5) as server:
        server.begin_stop()
        give_up = time.monotonic() + 10
        while server.call("/v2/health/ready")[0] == 200:
            assert time.monotonic() < give_up
        entry = {"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}
        assert server.call("/v2/health/live")[0] == 200
        assert server.infer("scaling", {"inputs": [entry]})[0] == 200
        assert server.call("/v2/models/scaling/ready")[0] == 503
        with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
            assert not client.is_server_ready()
            given = tritonclient.grpc.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
            assert client.infer("scaling", [given]).as_numpy("y").tolist() == [[3, 3, 3, 3]]


def test_no_call_that_was_sent_before_the_end_is_lost(tmp_path: Path):
    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    told = threading.Event()
    with running(path, drain_delay=1.0) as server:

        def ask(_: int) -> int:
            with tritonclient.grpc.InferenceServerClient(server.grpc_address) as client:
                given = tritonclient.grpc.InferInput("x", [1, 4], "FP32")
                given.set_data_from_numpy(np.ones((1, 4), np.float32))
                count = 0
                while not told.is_set():
                    client.infer("scaling", [given])
                    count += 1
                return count

        with ThreadPoolExecutor(8) as pool:
            asked = [pool.submit(ask, index) for index in range(8)]
            time.sleep(0.5)
            server.begin_stop()
            time.sleep(0.2)
            told.set()
            assert sum(each.result() for each in asked) > 8


def test_half_a_request_does_not_hold_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    with running(path, drain=30.0, client_timeout=30.0) as server:
        connections = [server.connect() for _ in range(3)]
        connections[0].sendall(head(100) + b"{")
        connections[1].sendall(b"POST /v2/mod")
        grpc_half = socket.create_connection(("127.0.0.1", server.grpc_port))
        grpc_half.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(3) + b"\4" + bytes(5))
        time.sleep(0.3)
        begun = time.monotonic()
        server.begin_stop()
        answer = connections[0].makefile("rb").read()
        server.wait()
        assert time.monotonic() - begun < 8
        assert b" 503 " in answer
        assert b"has not arrived whole" in answer
        for connection in (*connections, grpc_half):
            connection.close()
    assert "Traceback" not in caplog.text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_run_that_outlasts_the_drain_ends_without_a_traceback(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    path = save(slow_model(), tmp_path / "slow.onnx")
    with running(path, drain=1.0) as server:
        entry = {"name": "turns", "datatype": "INT64", "shape": [1], "data": [2_000_000]}
        body = json.dumps({"inputs": [entry]}).encode()
        connection = server.connect()
        connection.sendall(head(len(body), "/v2/models/slow/infer") + body)
        time.sleep(0.5)
        server.begin_stop()
        assert b" 503 " in connection.makefile("rb").readline()
        server.wait()
        connection.close()
    assert "Traceback" not in caplog.text


def test_two_servers_cannot_have_one_port(tmp_path: Path):
    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    with running(path) as server:
        for option, port in (("port", server.port), ("grpc_port", server.grpc_port)):
            sentence = f"cannot listen on .*:{port}.*; choose another --{option.replace('_', '-')}"
            with pytest.raises(UsageError, match=sentence), running(path, **{option: port}):
                pass


def test_ports_are_taken_before_models_are_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import asyncio

    from na_deploy.serving import repository

    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    opened = repository.open_model

    def slowly(*given: object) -> object:
        time.sleep(1)
        return opened(*given)

    monkeypatch.setattr(repository, "open_model", slowly)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]

    async def both() -> list[object]:
        stop = asyncio.Event()
        options = ServeOptions(port=port, grpc_port=None, drain_delay=0)
        asyncio.get_running_loop().call_later(3, stop.set)
        servers = [serve([path], options, lambda _: None, stop=stop) for _ in range(2)]
        return await asyncio.gather(*servers, return_exceptions=True)

    outcomes = asyncio.run(both())
    assert sorted(type(each).__name__ for each in outcomes) == ["NoneType", "UsageError"]


@pytest.mark.parametrize("part", ["watch", "web"])
def test_a_part_that_dies_ends_the_server_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str):
    from na_deploy.serving import server as module

    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")

    async def broken(*_: object, **__: object) -> None:
        raise RuntimeError("the disk is on fire")

    monkeypatch.setattr(*((module, "_watch", broken) if part == "watch" else (module._Web, "serve", broken)))
    with (
        pytest.raises(NaDeployError, match=r"cannot go on: .*RuntimeError: the disk is on fire"),
        running(path) as server,
    ):
        server.wait()


def nan_classifier(maker) -> onnx.ModelProto:
    """Return the small classifier with logits that are not numbers."""
    model = onnx.ModelProto()
    model.CopyFrom(maker)
    name = model.graph.output[0].name
    for node in model.graph.node:
        node.output[:] = ["before" if each == name else each for each in node.output]
        node.input[:] = ["before" if each == name else each for each in node.input]
    model.graph.initializer.append(numpy_helper.from_array(np.array(np.nan, np.float32), "nan"))
    model.graph.node.append(helper.make_node("Mul", ["before", "nan"], [name]))
    return model


def test_logits_that_are_no_numbers_are_an_error_and_no_json(
    classifier: onnx.ModelProto, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    from na_deploy.cli.main import run

    path = save(nan_classifier(classifier), tmp_path / "nan.onnx")
    (tmp_path / "photo.jpg").write_bytes(photo())
    with running(path) as server:
        status, answer = server.call("/v2/models/nan/classify", photo())
    assert status == 500
    assert "answers with NaN or infinity (10 of 10 numbers)" in answer["error"]
    assert run(["run", str(path), str(tmp_path / "photo.jpg"), "--json"]) == 1
    assert "answers with NaN" in capsys.readouterr().err


def test_changed_class_names_are_noticed(classifier: onnx.ModelProto, tmp_path: Path):
    save(classifier, tmp_path / "models" / "small" / "1" / "model.onnx")
    labels = tmp_path / "models" / "small" / "labels.txt"
    labels.write_text("\n".join(f"first {index}" for index in range(10)))
    with running(tmp_path / "models", poll=0.1) as server:

        def names() -> set[str]:
            status, answer = server.call("/v2/models/small/classify", photo())
            assert status == 200
            return {entry["label"].split()[0] for entry in answer["classes"]}

        assert names() == {"first"}
        labels.write_text("\n".join(f"second {index}" for index in range(10)))
        awaited(lambda: names() == {"second"})
        labels.write_text("too\nfew")
        time.sleep(0.5)
        assert names() == {"second"}
        labels.write_text("\n".join(f"third {index}" for index in range(10)))
        awaited(lambda: names() == {"third"})


def awaited(condition) -> None:
    give_up = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_asynchronous_runs_work_in_a_forked_process(tmp_path: Path):
    path = save(scaling_model(3.0), tmp_path / "scaling.onnx")
    with na_deploy.load(path, threads=1) as session:
        x = np.ones((1, 4), np.float32)
        session.run_async({"x": x}).result(30)
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with na_deploy.load(path, threads=1) as own:
                    code = 0 if own.run_async({"x": x}).result(20)["y"].tolist() == [[3, 3, 3, 3]] else 2
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
