"""Whatever a client sends or does not send, the server answers in a sentence or closes, and goes on serving."""

from __future__ import annotations

import io
import json
import socket
import struct
import threading
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Running, photo, running
from served_models import save, scaling_model, slow_model

GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}


def serves(server: Running) -> bool:
    status, answer = server.infer("scaling", GOOD)
    return status == 200 and answer["outputs"][0]["data"] == [3, 6, 9, 12]


def tensor(**changes: object) -> dict[str, object]:
    entry = {**GOOD["inputs"][0], **changes}
    return {"inputs": [{key: value for key, value in entry.items() if value is not ...}]}


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (b"", "the request is not JSON"),
        (b"{", "the request is not JSON"),
        (b"[1]", "not an object: list"),
        (b"[" * 100_000, "nested too deeply"),
        (
            b'{"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [NaN]}]}',
            "holds NaN, which is not JSON",
        ),
        (b'{"inputs": ' + b"1" * 10_000 + b"}", "the request is not JSON"),
        ({}, "the request has no inputs"),
        ({"inputs": 3}, "inputs are not a list of objects"),
        ({"inputs": [3]}, "inputs are not a list of objects"),
        ({"inputs": [{}]}, "an entry of inputs has no name"),
        ({**GOOD, "outputs": "y"}, "outputs are not a list of objects"),
        ({**GOOD, "outputs": [{"name": "z"}]}, "has no output 'z'; it has y"),
        ({**GOOD, "outputs": [{"name": "y"}, {"name": "y"}]}, "names 'y' twice among its outputs"),
        ({**GOOD, "parameters": []}, "parameters of the request is not an object"),
        ({**GOOD, "parameters": {"timeout": -1}}, "timeout is not a whole number"),
        ({**GOOD, "parameters": {"binary_data_output": 1}}, "binary_data_output is neither true nor false"),
        ({**GOOD, "id": 5}, "the request's id is not text"),
        (tensor(datatype=...), "input 'x' has no datatype"),
        (tensor(datatype="FP31"), "has the datatype 'FP31'; expected one of BOOL"),
        (tensor(shape=...), "has no shape that is a list"),
        (tensor(shape=[1, -4]), "has the size -4"),
        (tensor(shape=[1, 4.0]), "has the size 4.0"),
        (tensor(shape=[2, 4]), "has 4 numbers; its shape is [2, 4]"),
        (tensor(shape=[1] * 40), "a list of up to 32 sizes"),
        (tensor(shape=[2**40, 2**40]), "has 4 numbers; its shape is"),
        (tensor(data=...), "has neither data nor binary_data_size"),
        (tensor(data="1234"), "data of input 'x' is not a list"),
        (tensor(data=["1", 2, 3, 4]), "takes numbers only"),
        (tensor(data=[None, 2, 3, 4]), "takes numbers only"),
        (tensor(data=[True, 2, 3, 4]), "takes numbers only"),
        (tensor(data=[[1, 2], [3]]), "rows that differ in length"),
        (tensor(data=[[1, 2], 3, 4]), "rows that differ in length"),
        (tensor(data=[[1], [2], [3], [4]]), "has lists of shape [4, 1]; its shape is [1, 4]"),
        (tensor(data=[1e39, 2, 3, 4]), "outside the range of FP32"),
        (tensor(datatype="INT8", data=[300, 2, 3, 4]), "outside the range of INT8"),
        (tensor(datatype="INT8", data=[1.5, 2, 3, 4]), "takes whole numbers only"),
        (tensor(datatype="BOOL", data=[2, 1, 1, 1]), "takes true and false only"),
        (tensor(datatype="BYTES", data=[1, 2, 3, 4]), "takes text only"),
        (tensor(datatype="FP64"), "input x has datatype FP64; scaling takes FP32"),
        (tensor(name="z"), "the model has no input named z; it expects x"),
        (tensor(shape=[4]), "has 1 axes"),
        (tensor(shape=[0, 4], data=[]), "has a batch of 0; scaling takes 1 to 8"),
        (tensor(shape=[9, 4], data=[1.0] * 36), "has a batch of 9; scaling takes 1 to 8"),
        (tensor(parameters={"binary_data_size": 16}), "both data and binary_data_size"),
        (tensor(data=..., parameters={"binary_data_size": 16}), "states binary_data_size 16; 0 bytes are left"),
        ({"inputs": GOOD["inputs"] * 2}, "names 'x' twice among its inputs"),
        ({"inputs": [*GOOD["inputs"], {**GOOD["inputs"][0], "name": "w"}]}, "no input named w"),
    ],
)
def test_a_malformed_request_is_refused_in_a_sentence(server: Running, request_: object, sentence: str):
    body = request_ if isinstance(request_, bytes) else json.dumps(request_).encode()
    status, answer = server.infer("scaling", body)
    assert status == 400, answer
    assert sentence in answer["error"]
    assert "\n" not in answer["error"]
    assert serves(server)


@pytest.mark.parametrize(
    ("length", "sentence"),
    [
        ("-1", "expected a number from 0"),
        ("9999", "expected a number from 0"),
        ("x", "expected a number"),
        ("5", "JSON"),
    ],
)
def test_a_wrong_header_length_is_refused(server: Running, length: str, sentence: str):
    body = json.dumps(GOOD).encode()
    status, answer = server.infer("scaling", body, {"Inference-Header-Content-Length": length})
    assert status == 400
    assert sentence in answer["error"]


def binary_request(shape: list[int], raw: bytes, stated: int, datatype: str = "FP32", name: str = "x") -> tuple:
    entry = {"name": name, "datatype": datatype, "shape": shape, "parameters": {"binary_data_size": stated}}
    header = json.dumps({"inputs": [entry]}).encode()
    return header + raw, {"Inference-Header-Content-Length": str(len(header))}


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (binary_request([1, 4], bytes(12), 12), "has 12 bytes; FP32 of shape [1, 4] needs 16"),
        (binary_request([1, 4], bytes(20), 16), "4 bytes follow those"),
        (binary_request([1, 4], bytes(12), 16), "states binary_data_size 16; 12 bytes are left"),
        (binary_request([2**40, 2**40], bytes(16), 16), "needs"),
        (binary_request([1, 4], struct.pack("<I", 99) + b"ab", 6, "BYTES"), "ends inside element 0"),
        (binary_request([1, 4], b"abc", 3, "BYTES"), "ends inside the length of element 0"),
        (binary_request([1, 4], struct.pack("<I", 1) + b"a", 5, "BYTES"), "holds 1 elements; its shape needs 4"),
        (binary_request([1, 4], b"\2\1\0\1", 4, "BOOL"), "holds a byte that is neither 0 nor 1"),
    ],
)
def test_malformed_binary_tensors_are_refused(server: Running, given: tuple, sentence: str):
    body, headers = given
    status, answer = server.infer("scaling", body, headers)
    assert status == 400
    assert sentence in answer["error"]


def test_a_model_that_fails_says_so_and_goes_on(server: Running):
    def look_up(index: int) -> tuple[int, dict]:
        entry = {"name": "index", "datatype": "INT64", "shape": [1], "data": [index]}
        return server.infer("table", {"inputs": [entry]})

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(look_up, [index % 5 for index in range(40)]))
    for index, (status, answer) in enumerate(found):
        if index % 5 == 4:
            assert status == 500
            assert "indices element out of data bounds" in answer["error"]
            assert "/" not in answer["error"].replace("inputs/outputs", "")
        else:
            assert status == 200
            assert answer["outputs"][0]["data"] == [2 * (index % 5), 2 * (index % 5) + 1]


def test_unknown_addresses_and_methods(server: Running):
    assert server.call("/v2/nothing") == (404, {"error": "there is nothing at /v2/nothing for GET"})
    assert server.call("/nothing")[0] == 404
    assert server.call("/v2/models/scaling/infer", method="DELETE")[0] == 405
    status, answer = server.infer("..%2f..%2fetc", GOOD)
    assert status == 404
    assert answer["error"]
    assert server.infer("unknown", GOOD)[0] == 404


# Sizes and times


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory, classifier):
    """Return a server with tight limits."""
    folder = tmp_path_factory.mktemp("strict")
    save(classifier, folder / "small.onnx")
    save(scaling_model(3.0), folder / "scaling.onnx")
    save(slow_model(), folder / "slow.onnx")
    from na_deploy.serving.batcher import Batching

    options = {
        "max_request_bytes": 1 << 20,
        "client_timeout": 1.0,
        "max_image_pixels": 1_000_000,
        "batching": Batching(queue_limit=4),
    }
    with running(folder, **options) as started:
        yield started


def test_a_huge_payload_is_refused_before_it_is_kept(strict: Running):
    status, answer = strict.infer("scaling", bytes(3 << 20))
    assert status == 413
    assert answer["error"] == "the request has 3145728 bytes; at most 1048576 are taken"
    assert serves(strict)


def test_a_huge_payload_of_unknown_length_is_cut_off(strict: Running):
    with strict.connect() as connection:
        connection.sendall(
            b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        for _ in range(40):
            connection.sendall(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
        connection.sendall(b"0\r\n\r\n")
        assert b" 413 " in connection.makefile("rb").readline()
    assert serves(strict)


def test_a_decompression_bomb_is_not_unpacked(strict: Running):
    bomb = zlib.compress(bytes(200 << 20), 9)
    assert len(bomb) < 1 << 20
    status, answer = strict.infer("scaling", bomb, {"Content-Encoding": "deflate"})
    assert status == 413
    assert "after decompression" in answer["error"]
    status, answer = strict.infer(
        "scaling", zlib.compress(json.dumps(GOOD).encode())[:-9], {"Content-Encoding": "deflate"}
    )
    assert (status, answer["error"]) == (400, "the request's deflate data ends too early")
    assert strict.infer("scaling", b"123", {"Content-Encoding": "gzip"})[0] == 400
    assert strict.infer("scaling", b"123", {"Content-Encoding": "br"})[0] == 400
    assert serves(strict)


def test_grpc_refuses_a_huge_message(strict: Running):
    import tritonclient.grpc as client
    from tritonclient.utils import InferenceServerException

    with client.InferenceServerClient(strict.grpc_address) as triton:
        big = client.InferInput("x", [1 << 17, 4], "FP32")
        big.set_data_from_numpy(np.ones((1 << 17, 4), np.float32))
        with pytest.raises(InferenceServerException, match=r"larger than max"):
            triton.infer("scaling", [big])


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"POST /v2/models/scaling/infer HT",
        b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nX: y",
    ],
)
def test_a_client_that_does_not_finish_its_headers_is_let_go(strict: Running, sent: bytes):
    with strict.connect() as connection:
        connection.sendall(sent)
        begun = time.monotonic()
        assert received(connection) == b""
        assert time.monotonic() - begun < 20


def test_a_client_that_does_not_finish_its_body_is_told_so(strict: Running):
    with strict.connect() as connection:
        connection.sendall(b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\n{")
        answer = received(connection)
    assert b" 408 " in answer
    assert b"did not arrive within 1 seconds" in answer


def test_endless_headers_are_cut_off(strict: Running):
    with strict.connect() as connection:
        connection.sendall(b"GET /v2 HTTP/1.1\r\n")
        with pytest.raises(OSError):  # noqa: PT012
            for index in range(4000):
                connection.sendall(b"X-%d: " % index + b"y" * 1000 + b"\r\n")
    assert serves(strict)


def test_a_client_that_does_not_take_its_answers_is_let_go(strict: Running):
    _, picture = strict.call("/v2/models/small/windows.png")
    asked = 400
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
        connection.settimeout(60)
        connection.connect(("127.0.0.1", strict.port))
        connection.sendall(b"GET /v2/models/small/windows.png HTTP/1.1\r\nHost: localhost\r\n\r\n" * asked)
        time.sleep(2.5)  # the server's patience is one second
        taken = len(received(connection))
    assert 0 < taken < asked * len(picture)
    assert serves(strict)


def received(connection) -> bytes:
    parts = []
    try:
        while part := connection.recv(1 << 16):
            parts.append(part)
    except ConnectionResetError:
        pass
    return b"".join(parts)


def turns(count: int) -> dict:
    return {"inputs": [{"name": "turns", "datatype": "INT64", "shape": [1], "data": [count]}]}


def test_above_the_queue_limit_requests_are_refused_at_once_and_none_hangs(strict: Running):
    times = []

    def ask(_: int) -> int:
        begun = time.monotonic()
        status, answer = strict.infer("slow", turns(20_000))
        if status == 503:
            times.append(time.monotonic() - begun)
            assert "4 requests wait already, the limit" in answer["error"]
        return status

    with ThreadPoolExecutor(24) as pool:
        statuses = list(pool.map(ask, range(24)))
    assert set(statuses) == {200, 503}
    assert statuses.count(200) >= 5
    assert max(times) < 5
    assert strict.infer("slow", turns(1))[0] == 200


def test_a_client_that_goes_takes_its_request_out_of_the_queue(strict: Running):
    body = json.dumps(turns(60_000)).encode()
    head = b"POST /v2/models/slow/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n" % len(body)
    before = executions(strict)
    first = threading.Thread(target=strict.infer, args=("slow", turns(60_000)))
    first.start()
    wait_for(lambda: requests_in(strict, "compute") is not None)
    connections = [strict.connect() for _ in range(3)]
    for connection in connections:
        connection.sendall(head + body)
    wait_for(lambda: queue_length(strict) == 3)
    for connection in connections:
        connection.close()
    wait_for(lambda: queue_length(strict) == 0)
    first.join(30)
    assert executions(strict) == before + 1


def queue_length(server: Running) -> float:
    assert server.service is not None
    return server.service.repository.get("slow")._batcher.waiting


def requests_in(server: Running, what: str) -> bool | None:
    assert server.service is not None
    return True if server.service.repository.get("slow")._batcher._running else None


def executions(server: Running) -> int:
    assert server.service is not None
    return server.service.repository.get("slow").statistics.executions


def wait_for(condition, patience: float = 20.0) -> None:
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.005)


# Images


def classify(server: Running, body: bytes, query: str = "") -> tuple[int, dict]:
    return server.call(f"/v2/models/small/classify{query}", body, {"Content-Type": "image/jpeg"})


def test_an_image_is_classified_as_the_session_does(server: Running, repository: Path, tmp_path: Path):
    import na_deploy
    from na_deploy.runtime.images.prepare import prepare_files
    from na_deploy.runtime.results.classification import softmax

    for kind in ("PNG", "JPEG"):
        file = tmp_path / "photo"
        file.write_bytes(photo(kind=kind))
        with na_deploy.load(repository / "small.onnx", threads=1) as session:
            assert session.metadata is not None
            pixels = prepare_files([file], session.metadata.preprocessing)
            expected = softmax(session.run(pixels)["logits"])[0]
        status, answer = classify(server, file.read_bytes(), "?top=3")
        assert status == 200
        best = np.argsort(-expected)[:3]
        assert [found["class"] for found in answer["classes"]] == best.tolist()
        assert [found["probability"] for found in answer["classes"]] == pytest.approx(expected[best], abs=1e-5)
        assert answer["classes"][0]["label"] == f"kind <{best[0]}>"
        assert answer["prepare_ms"] > 0


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of stated size with almost no data."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")
    )


def gif() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8)).save(buffer, "GIF")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("body", "status", "sentence"),
    [
        (b"", 400, "the request has no image"),
        (b"hello", 400, "is not an image that can be read; give a JPEG or PNG file"),
        (gif(), 400, "is not an image that can be read; give a JPEG or PNG file"),
        (photo()[:1500], 400, "damaged or truncated"),
        (photo(kind="PNG")[:1500], 400, "damaged or truncated"),
        (photo(1100, 1000), 413, "the image has 1100×1000 pixels, at most 1000000 are taken"),
        (bomb(30_000, 30_000), 413, "pixels"),
        (bomb(60_000, 60_000), 413, "pixels"),
        (bomb(900, 900), 400, "damaged or truncated"),
    ],
)
def test_images_that_are_none_or_too_large_are_refused(strict: Running, body: bytes, status: int, sentence: str):
    given, answer = classify(strict, body)
    assert given == status
    assert sentence in answer["error"]
    assert classify(strict, photo())[0] == 200


@pytest.mark.parametrize("top", ["0", "-1", "x", "9999999"])
def test_a_wrong_number_of_classes_is_refused(server: Running, top: str):
    status, answer = classify(server, photo(), f"?top={top}")
    assert status == 400
    assert "top is" in answer["error"]


def test_models_that_take_no_images_say_so(server: Running):
    status, answer = server.call("/v2/models/scaling/classify", photo())
    assert status == 400
    assert answer["error"] == "scaling does not say how images become its input; send it tensors"


def test_the_picture_of_the_windows_is_drawn(server: Running):
    status, picture = server.call("/v2/models/small/windows.png")
    assert status == 200
    assert Image.open(io.BytesIO(picture)).width > 800
    assert server.call("/v2/models/small/windows.png") == (200, picture)
    status, answer = server.call("/v2/models/scaling/windows.png")
    assert status == 501
    assert answer["error"].startswith("model.onnx has no neighborhood attention")


# Other web pages


def test_pages_of_other_sites_are_refused(server: Running):
    body = json.dumps(GOOD).encode()
    status, answer = server.infer("scaling", body, {"Origin": "http://evil.example"})
    assert (status, answer["error"]) == (403, "the request comes from a page of another site")
    assert server.infer("scaling", body, {"Origin": "null"})[0] == 403
    assert server.infer("scaling", body, {"Origin": f"http://{server.address}"})[0] == 200
    status, answer = server.infer("scaling", body, {"Host": "evil.example"})
    assert status == 403
    assert "called by a name that is not its own" in answer["error"]
    assert server.infer("scaling", body, {"Host": f"localhost:{server.port}"})[0] == 200


def test_behind_a_proxy_its_names_are_the_server_s(tmp_path: Path):
    save(scaling_model(3.0), tmp_path / "scaling.onnx")
    body = json.dumps(GOOD).encode()
    with running(tmp_path, grpc_port=None, allowed_hosts=("models.example",)) as server:
        for headers in (
            {"Host": "models.example", "Origin": "https://models.example"},
            {"Origin": "https://models.example"},
            {"Host": "models.example:8443"},
        ):
            assert server.infer("scaling", body, headers)[0] == 200
        assert server.infer("scaling", body, {"Origin": "https://other.example"})[0] == 403
        assert server.infer("scaling", body, {"Host": "other.example"})[0] == 403
