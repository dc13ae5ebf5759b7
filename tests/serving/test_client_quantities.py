"""Work that a request causes is bounded, whatever small thing causes it, and others are answered meanwhile."""

from __future__ import annotations

import gc
import gzip
import http.client
import io
import json
import struct
import threading
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running import Running, running
from served_models import save, scaling_model

from na_deploy.errors import NaDeployError
from na_deploy.runtime.images.prepare import decode_image
from na_deploy.serving.batcher import Batcher, Batching
from na_deploy.serving.http_app import accepted_encodings

GOOD = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
DATA = Path(__file__).parents[1] / "data"


def packed(*parts: bytes) -> bytes:
    return b"".join(gzip.compress(part) for part in parts)


def test_gzip_of_several_members_is_one_body(server: Running):
    body = json.dumps(GOOD).encode()
    for parts in ([body], [body[:10], body[10:]], [body, b""], [bytes([byte]) for byte in body]):
        status, answer = server.infer("scaling", packed(*parts), {"Content-Encoding": "gzip"})
        assert (status, answer["outputs"][0]["data"]) == (200, [3, 6, 9, 12])
    padded = packed(body) + bytes(512)
    assert server.infer("scaling", padded, {"Content-Encoding": "x-gzip"})[0] == 200


def test_what_follows_compressed_data_is_refused(server: Running):
    body = json.dumps(GOOD).encode()
    for data, encoding in [(packed(body) + b"more", "gzip"), (zlib.compress(body) + b"more", "deflate")]:
        status, answer = server.infer("scaling", data, {"Content-Encoding": encoding})
        assert status == 400
        assert encoding in answer["error"]
    status, answer = server.infer("scaling", packed(*[b""] * 5000) + packed(body), {"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (400, "bytes follow the end of the request's gzip data")
    status, answer = server.infer("scaling", packed(body) + packed(body)[:-5], {"Content-Encoding": "gzip"})
    assert (status, answer["error"]) == (400, "the request's gzip data ends too early")


def test_the_server_answers_while_it_decompresses(server: Running):
    bomb = gzip.compress(bytes(60 << 20), 9)
    longest, done = 0.0, threading.Event()
    threads = [
        threading.Thread(target=server.infer, args=("scaling", bomb, {"Content-Encoding": "gzip"})) for _ in range(4)
    ]
    for thread in threads:
        thread.start()

    def watch() -> None:
        nonlocal longest
        while not done.is_set():
            begun = time.monotonic()
            assert server.call("/v2/health/live")[0] == 200
            longest = max(longest, time.monotonic() - begun)

    watching = threading.Thread(target=watch)
    watching.start()
    for thread in threads:
        thread.join(60)
    done.set()
    watching.join(60)
    assert 0 < longest < 2


@pytest.mark.parametrize(
    ("header", "taken"),
    [
        ("", ()),
        ("gzip", ("gzip",)),
        ("gzip;q=0", ()),
        ("gzip; q=0.000, deflate", ("deflate",)),
        ("gzip;q=0.5, deflate;q=0.8", ("deflate", "gzip")),
        ("*", ("gzip", "deflate")),
        ("*;q=0", ()),
        ("gzip;q=0, *", ("deflate",)),
        ("identity", ()),
        ("GZIP;Q=1", ("gzip",)),
        ("x-gzip", ("gzip",)),
        ("gzip;q=oops", ()),
        ("br, zstd", ()),
    ],
)
def test_answers_are_compressed_as_the_client_takes_them(header: str, taken: tuple[str, ...]):
    assert accepted_encodings(header) == taken


def test_an_encoding_of_weight_zero_is_not_used(server: Running):
    entry = {"name": "x", "datatype": "FP32", "shape": [8, 4], "data": [0.123456789] * 32}
    body = json.dumps({"inputs": [{**entry}]}).encode()
    for header, used in (("gzip;q=0", None), ("gzip;q=0, deflate;q=0.1", "deflate")):
        request = urllib.request.Request(
            f"http://{server.address}/v2/models/types/config", headers={"Accept-Encoding": header}
        )
        with urllib.request.urlopen(request) as answer:
            assert answer.headers["Content-Encoding"] is None
        connection = http.client.HTTPConnection(server.address)
        connection.request("POST", "/v2/models/scaling/infer", body, {"Accept-Encoding": header})
        answer = connection.getresponse()
        content = answer.read()
        assert answer.headers["Content-Encoding"] in (used, None)
        assert json.loads(zlib.decompress(content) if answer.headers["Content-Encoding"] else content)["outputs"]
        connection.close()


def test_a_body_of_lists_is_refused_before_it_is_built(server: Running):
    body = b'{"inputs": [' + b"[]," * 1_000_001 + b"[]]}"
    status, answer = server.infer("scaling", body)
    assert status == 400
    assert "more than 1000000 lists and objects" in answer["error"]


def test_a_tensor_of_empty_texts_is_refused_before_it_is_built(server: Running):
    entry = {"name": "x", "datatype": "BYTES", "shape": [5_000_000], "parameters": {"binary_data_size": 20_000_000}}
    header = json.dumps({"inputs": [entry]}).encode()
    status, answer = server.infer(
        "scaling", header + bytes(20_000_000), {"Inference-Header-Content-Length": str(len(header))}
    )
    assert (status, answer["error"]) == (400, "tensor 'x' has 5000000 texts; at most 100000 are read")
    entry["shape"] = [2]
    header = json.dumps({"inputs": [entry]}).encode()
    status, answer = server.infer(
        "scaling", header + bytes(20_000_000), {"Inference-Header-Content-Length": str(len(header))}
    )
    assert (status, answer["error"]) == (400, "tensor 'x' holds more than 2 elements; its shape needs 2")


def test_requests_without_tensors_are_small(server: Running):
    status, answer = server.call("/v2/repository/index", b'{"ready": true, "x": "' + b"y" * 100_000 + b'"}')
    assert status == 413
    assert "at most 65536 are taken" in answer["error"]


def test_more_classes_than_an_answer_can_list_are_refused(tmp_path: Path):
    path = save(scaling_model(2.0), tmp_path / "scaling.onnx")
    with running(path, max_request_bytes=8 << 20) as server:
        from na_deploy.serving import classification

        entry = {"name": "x", "datatype": "FP32", "shape": [8, 4], "data": [1.0] * 32}
        outputs = [{"name": "y", "parameters": {"classification": 4}}]
        assert server.infer("scaling", {"inputs": [entry], "outputs": outputs})[0] == 200
        kept, classification.MOST_LISTED = classification.MOST_LISTED, 31
        try:
            status, answer = server.infer("scaling", {"inputs": [entry], "outputs": outputs})
        finally:
            classification.MOST_LISTED = kept
        assert status == 400
        assert "at most 31 are listed" in answer["error"]


def test_a_long_timeout_keeps_no_request_that_was_answered():
    import asyncio
    import weakref
    from concurrent.futures import ThreadPoolExecutor

    class Observer:
        def ran(self, *_: object) -> None: ...
        def waiting(self, *_: object) -> None: ...

    class Input(np.ndarray):
        """Arrays that can be watched."""

    async def ask() -> bool:
        with ThreadPoolExecutor(1) as threads:
            batcher = Batcher(lambda inputs, _: {"y": np.ones((1, 1))}, Batching(largest=1), threads, Observer())
            array = np.zeros((1, 4)).view(Input)
            kept = weakref.ref(array)
            await batcher.submit({"x": array}, ["y"], 1, None, timeout_us=1 << 62)
            del array
            await asyncio.sleep(0.01)
            gc.collect()
            return kept() is None

    assert asyncio.run(ask())


def png(mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> bytes:
    buffer = io.BytesIO()
    Image.new(mode, size, "red" if mode == "RGB" else 30_000).save(buffer, "PNG")
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes, crc: int | None = None) -> bytes:
    total = zlib.crc32(kind + content) if crc is None else crc
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", total)


@pytest.mark.parametrize("place", ["before", "after"])
@pytest.mark.parametrize(
    "damaged",
    [
        chunk(b"eXIf", b"garbage"),
        chunk(b"eXIf", b"MM\0*\0\0\0\x08", 5),
        chunk(b"eXIf", b""),
        chunk(b"tEXt", b"a\0b", 3),
        chunk(b"gAMA", b"a"),
        chunk(b"pHYs", b"a"),
        chunk(b"iCCP", b"a\0\0zz"),
        chunk(b"zTXt", b"a\0\x07zz"),
        chunk(b"cHRM", b"a"),
        chunk(b"sRGB", b""),
        chunk(b"acTL", b"1"),
    ],
)
def test_a_png_with_a_damaged_note_is_a_sound_png(tmp_path: Path, damaged: bytes, place: str):
    sound = png()
    data = sound[:33] + damaged + sound[33:] if place == "before" else sound[:-12] + damaged + sound[-12:]
    assert np.array_equal(decode_image(data, formats=("JPEG", "PNG")), decode_image(sound))
    from na_deploy.runtime.images.prepare import read_image

    (tmp_path / "x.png").write_bytes(data)
    assert np.array_equal(read_image(tmp_path / "x.png"), decode_image(sound))


def test_a_png_with_damaged_pixels_is_damaged():
    sound = png()
    for data in (sound[:-40], sound.replace(b"IDAT", b"IDAU"), sound[:33] + chunk(b"tEXt", b"a\0b", 3) + sound[33:60]):
        with pytest.raises(NaDeployError, match="image"):
            decode_image(data)


def test_sixteen_bits_are_scaled_in_pieces_to_the_same_values():
    values = np.random.default_rng(0).integers(0, 1 << 16, (200, 50), dtype=np.uint16)
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, "PNG")
    expected = np.clip(values / 257, 0, 255).round().astype(np.uint8)
    assert np.array_equal(np.asarray(decode_image(buffer.getvalue()))[..., 0], expected)


def test_a_jpeg_of_endless_scans_is_refused(server: Running):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG", progressive=True)
    assert server.call("/v2/models/small/classify", buffer.getvalue())[0] == 200
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x05\x10\x00"
    endless = buffer.getvalue()[:-2] + scan * 101 + b"\xff\xd9"
    status, answer = server.call("/v2/models/small/classify", endless)
    assert status == 400
    assert "more than 100 scans" in answer["error"]


def test_a_photograph_with_oddly_typed_tags_is_classified(server: Running):
    assert server.call("/v2/models/small/classify", (DATA / "exif_resolution_as_text.jpg").read_bytes())[0] == 200
