"""One connection's bytes are the requests that its client sent, and no other."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
from running import Running

CASES = Path(__file__).parents[1] / "data"
BODY = json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}).encode()
SMUGGLED = b"GET /v2/models/stats HTTP/1.1\r\nHost: localhost\r\n\r\n"


def exchanged(server: Running, *parts: bytes) -> list[tuple[int, bytes]]:
    """Send parts one after the other, close the sending side, and return the status and body of every answer."""
    with server.connect() as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            connection.sendall(part)
        file, answers = connection.makefile("rb"), []
        connection.settimeout(2)
        while line := _line(file):
            headers = {}
            while (header := file.readline()).strip():
                name, _, value = header.partition(b":")
                headers[name.lower()] = value.strip()
            answers.append((int(line.split()[1]), file.read(int(headers[b"content-length"]))))
            connection.settimeout(0.3)
        return answers


def _line(file) -> bytes:
    try:
        return file.readline()
    except (TimeoutError, ConnectionResetError):
        return b""


def post(*headers: str, body: bytes = BODY, path: str = "/v2/models/scaling/infer") -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: localhost", *headers, f"Content-Length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode() + body


OFFERS = [
    ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAAP__"),
    ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
    ("connection: UPGRADE", "uPGRADE:h2c"),
    ("Connection: upgrade", "Upgrade : h2c"),
    ("Connection: upgrade", "Upgrade: TLS/1.0", "Upgrade: foo/2"),
]


@pytest.mark.parametrize("offer", OFFERS)
def test_an_upgrade_that_is_offered_is_ignored_and_the_body_belongs_to_its_request(
    server: Running, offer: tuple[str, ...]
):
    answers = exchanged(server, post(*offer) + post())
    assert len(answers) in (1, 2)
    if " :" not in offer[1]:  # a space before the colon is no header by RFC 9112
        assert [status for status, _ in answers] == [200, 200]
        assert all(json.loads(body)["outputs"][0]["data"] == [3, 6, 9, 12] for _, body in answers)


def test_a_body_that_looks_like_a_request_is_a_body(server: Running):
    for offer in [(), *OFFERS[:3]]:
        answers = exchanged(server, post(*offer, body=SMUGGLED))
        assert [status for status, _ in answers] == [400]
        assert b"not JSON" in answers[0][1]


def test_the_request_that_java_sends_is_answered_once(server: Running):
    answers = exchanged(server, (CASES / "upgrade_h2c.http").read_bytes())
    assert [status for status, _ in answers] == [400]


def test_a_request_arrives_in_pieces_as_in_one(server: Running):
    whole = post(*OFFERS[0]) + b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n" + post(*OFFERS[1])
    for size in (1, 7, 100):
        pieces = [whole[start : start + size] for start in range(0, len(whole), size)]
        assert [status for status, _ in exchanged(server, *pieces)] == [200, 200, 200]


def chunked(*headers: str, body: bytes = BODY, trailers: bytes = b"") -> bytes:
    lines = [
        "POST /v2/models/scaling/infer HTTP/1.1",
        "Host: localhost",
        *headers,
        "Transfer-Encoding: chunked",
        "",
        "",
    ]
    return "\r\n".join(lines).encode() + b"%x\r\n%s\r\n0\r\n%s\r\n" % (len(body), body, trailers)


def test_chunked_requests_are_read_whole_with_an_upgrade_too(server: Running):
    answers = exchanged(server, chunked(*OFFERS[0]))
    assert [status for status, _ in answers] == [200]
    answers = exchanged(server, chunked(*OFFERS[0], body=SMUGGLED))
    assert [status for status, _ in answers] == [400]
    # After chunks the next request may begin in the same packet: either it is answered, or the connection ends.
    answers = exchanged(server, chunked() + post(*OFFERS[0], body=SMUGGLED))
    assert all(b"model_stats" not in body for _, body in answers)
    assert [status for status, _ in exchanged(server, chunked() + post())] == [200, 200]


def test_trailers_change_no_header_and_are_bounded(server: Running):
    answers = exchanged(server, chunked(trailers=b"Content-Encoding: gzip\r\nInference-Header-Content-Length: 0\r\n"))
    assert [status for status, _ in answers] == [200]
    endless = b"".join(b"X-%d: %s\r\n" % (index, b"y" * 1000) for index in range(200))
    assert exchanged(server, chunked(trailers=endless))[1:] == []
    assert server.call("/v2/health/live")[0] == 200


@pytest.mark.parametrize(
    "request_",
    [
        post("Transfer-Encoding: chunked"),
        post("Content-Length: 5"),
        post("Transfer-Encoding: chunked, identity"),
        b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5, 5\r\n\r\n12345",
        b"POST /v2/models/scaling/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: +5\r\n\r\n12345",
        b"CONNECT localhost:1 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    ],
)
def test_a_request_of_two_lengths_ends_its_connection(server: Running, request_: bytes):
    answers = exchanged(server, request_ + SMUGGLED)
    assert all(b"model_stats" not in body for _, body in answers)
    assert all(status in (400, 404, 405) for status, _ in answers)
    assert server.call("/v2/health/live")[0] == 200


def test_nothing_after_a_request_that_closes_is_carried_out(server: Running):
    for closing in ("Connection: close", "Connection: close, upgrade"):
        answers = exchanged(server, post(closing) + SMUGGLED)
        assert [status for status, _ in answers] == [200]


def test_null_is_absent(server: Running):
    request = json.loads(BODY)
    request |= {"id": None, "outputs": None, "parameters": None}
    request["inputs"][0]["parameters"] = None
    status, answer = server.infer("scaling", request)
    assert (status, answer["outputs"][0]["data"]) == (200, [3, 6, 9, 12])
    assert "id" not in answer
    nothing = {"binary_data_output": None, "timeout": None, "sequence_id": None}
    outputs = [{"name": "y", "parameters": {"binary_data": None, "classification": None, "shared_memory_region": None}}]
    status, answer = server.infer("scaling", request | {"parameters": nothing, "outputs": outputs})
    assert (status, answer["outputs"][0]["data"]) == (200, [3, 6, 9, 12])
    request["inputs"][0]["parameters"] = {"binary_data_size": None, "shared_memory_region": None}
    assert server.infer("scaling", request)[0] == 200
    assert server.infer("scaling", {"inputs": None})[1]["error"] == "the request has no inputs"
    assert server.call("/v2/repository/index", b'{"ready": null}')[0] == 200
