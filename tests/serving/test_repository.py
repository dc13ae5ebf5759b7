"""Models come, change and go while the server answers; what does not load changes nothing."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import tritonclient.http as client
from running import Running, running
from served_models import mixing_model, save, scaling_model, slow_model, types_model
from tritonclient.utils import InferenceServerException

from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.building.build import BuildOptions, build
from na_deploy.serving.sources import find_sources

X = [1.0, 2.0, 3.0, 4.0]
POLL = 0.05


def scaled(server: Running, version: str = "", name: str = "scaling") -> tuple[int, float | str]:
    """Return the status and the factor that the model multiplies by, or the error."""
    request = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 4], "data": X}]}
    place = f"{name}/versions/{version}" if version else name
    status, answer = server.infer(place, request)
    return status, answer["outputs"][0]["data"][0] if status == 200 else answer["error"]


def wait_for(condition: Callable[[], bool], patience: float = 30.0) -> None:
    until = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.01)


def test_sources_are_files_bundles_and_numbered_folders(tmp_path: Path):
    save(scaling_model(1), tmp_path / "one.onnx")
    save(scaling_model(1), tmp_path / "two" / "1" / "model.onnx")
    save(scaling_model(1), tmp_path / "two" / "10" / "any_name.onnx")
    save(scaling_model(1), tmp_path / "two" / "notes" / "model.onnx")
    (tmp_path / "two" / "labels.txt").write_text("a\nb\nc\nd\n")
    (tmp_path / ".hidden").mkdir()
    (tmp_path / "empty").mkdir()
    build(save(scaling_model(1), tmp_path / "three.onnx"), tmp_path / "four.zip", BuildOptions(batch=(1, 2, 8)))
    build(tmp_path / "three.onnx", tmp_path / "five", BuildOptions(batch=(1, 2, 8)))
    found = find_sources([tmp_path])
    assert {name: sorted(versions) for name, versions in found.items()} == {
        "one": [1], "two": [1, 10], "three": [1], "four": [1], "five": [1]
    }  # fmt: skip
    assert found["two"][10].path.name == "any_name.onnx"
    assert found["two"][1].labels == tmp_path / "two" / "labels.txt"
    assert list(find_sources([tmp_path / "two"])) == ["two"]
    with pytest.raises(UsageError, match="two of the models given are named one"):
        find_sources([tmp_path, tmp_path / "one.onnx"])
    with pytest.raises(UsageError, match="holds no model"):
        find_sources([tmp_path / "empty"])
    with pytest.raises(UsageError, match="does not exist"):
        find_sources([tmp_path / "nowhere"])


def test_a_bundle_is_served_with_its_picture(tmp_path: Path, classifier: onnx.ModelProto):
    build(save(classifier, tmp_path / "model.onnx"), tmp_path / "small.zip", BuildOptions(batch=(1, 2, 8)))
    with running(tmp_path / "small.zip", grpc_port=None) as server:
        assert server.call("/v2/models/small")[1]["inputs"][0]["name"] == "image"
        assert server.call("/v2/models/small/windows.png")[0] == 200
        assert "gRPC" not in server.greeting


def test_a_new_version_takes_over_under_load_and_no_request_fails(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "scaling" / "1" / "model.onnx")
    with running(tmp_path, poll=POLL) as server:
        seen: list[float] = []
        failures: list[str] = []
        done = threading.Event()

        def ask() -> None:
            triton = client.InferenceServerClient(server.address)
            tensor = client.InferInput("x", [1, 4], "FP32").set_data_from_numpy(np.array([X], np.float32))
            while not done.is_set():
                try:
                    seen.append(float(triton.infer("scaling", [tensor]).as_numpy("y")[0, 0]))
                except InferenceServerException as error:
                    failures.append(str(error))
            triton.close()

        clients = [threading.Thread(target=ask) for _ in range(4)]
        for thread in clients:
            thread.start()
        try:
            for version in (2, 3):
                begun = len(seen)
                wait_for(lambda begun=begun: len(seen) > begun + 20)
                save(scaling_model(float(version)), tmp_path / "new" / "model.onnx")
                (tmp_path / "scaling" / str(version)).mkdir()
                (tmp_path / "new" / "model.onnx").replace(tmp_path / "scaling" / str(version) / "model.onnx")
                (tmp_path / "new").rmdir()
                wait_for(lambda version=version: bool(seen) and seen[-1] == version)
        finally:
            done.set()
            for thread in clients:
                thread.join(30)
        assert not failures
        assert set(seen) == {1.0, 2.0, 3.0}
        assert scaled(server, "1")[0] == 404


def test_a_corrupted_new_version_leaves_the_old_one_serving(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "scaling" / "1" / "model.onnx")
    with running(tmp_path, poll=POLL) as server:
        broken = tmp_path / "scaling" / "2"
        broken.mkdir()
        (broken / "model.onnx").write_bytes(scaling_model(2.0).SerializeToString()[:-20])
        wait_for(lambda: "2" in index(server))
        wait_for(lambda: index(server)["2"]["state"] == "UNAVAILABLE")
        assert "is not an ONNX model, or is damaged" in index(server)["2"]["reason"]
        assert str(tmp_path) not in index(server)["2"]["reason"]
        assert scaled(server) == (200, 1.0)
        assert server.call("/v2/health/ready")[0] == 200
        save(scaling_model(2.0), broken / "model.onnx")
        wait_for(lambda: scaled(server) == (200, 2.0))
        # The same version damaged: what was loaded before stays.
        (broken / "model.onnx").write_bytes(b"nonsense")
        wait_for(lambda: b'na_deploy_loads_total{outcome="refused"} 2.0' in server.call("/metrics")[1])
        assert scaled(server) == (200, 2.0)
        # And gone: the older one comes back.
        shutil.rmtree(broken)
        wait_for(lambda: scaled(server) == (200, 1.0))


def index(server: Running) -> dict[str, dict]:
    return {entry["version"]: entry for entry in server.call("/v2/repository/index", b"{}")[1]}


def test_clients_load_and_unload_where_they_may(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "scaling.onnx")
    save(types_model(), tmp_path / "types.onnx")
    with running(tmp_path, allow_model_control=True) as server:
        triton = client.InferenceServerClient(server.address)
        triton.unload_model("scaling")
        assert not triton.is_model_ready("scaling")
        assert scaled(server) == (503, "the model scaling is not loaded now")
        assert triton.is_model_ready("types")
        states = {entry["name"]: entry["state"] for entry in triton.get_model_repository_index()}
        assert states == {"scaling": "UNAVAILABLE", "types": "READY"}
        save(scaling_model(5.0), tmp_path / "scaling.onnx")
        triton.load_model("scaling")
        assert scaled(server) == (200, 5.0)
        save(scaling_model(6.0), tmp_path / "added.onnx")
        triton.load_model("added")
        assert scaled(server, name="added") == (200, 6.0)
        (tmp_path / "added.onnx").write_bytes(b"nonsense")
        with pytest.raises(InferenceServerException, match="the model added did not load"):
            triton.load_model("added")
        assert scaled(server, name="added") == (200, 6.0)
        with pytest.raises(InferenceServerException, match="no model 'nowhere' in the repository"):
            triton.load_model("nowhere")
        with pytest.raises(InferenceServerException, match="parameters of load are not taken"):
            triton.load_model("scaling", config='{"max_batch_size": 1}')
        with pytest.raises(InferenceServerException, match="no model"):
            triton.unload_model("nowhere")
        triton.close()


def test_a_model_whose_items_depend_on_each_other_is_not_batched(tmp_path: Path):
    save(mixing_model(), tmp_path / "mixing.onnx")
    with running(tmp_path / "mixing.onnx") as server:
        assert server.call("/v2/models/mixing/config")[1]["max_batch_size"] == 0
        entry = {"name": "x", "datatype": "FP32", "shape": [2, 4], "data": [1, 1, 1, 1, 3, 3, 3, 3]}
        status, answer = server.infer("mixing", {"inputs": [entry]})
        assert (status, answer["outputs"][0]["data"]) == (200, [-1, -1, -1, -1, 1, 1, 1, 1])


def test_a_model_that_does_not_load_keeps_the_server_from_starting(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "good.onnx")
    (tmp_path / "bad.onnx").write_bytes(b"nonsense")
    sentence = r"not every model can be served: bad/1: .*is not an ONNX model"
    with pytest.raises(NaDeployError, match=sentence), running(tmp_path):
        pass


def test_class_names_beside_a_model_must_fit_it(tmp_path: Path, classifier: onnx.ModelProto):
    save(classifier, tmp_path / "small" / "1" / "model.onnx")
    names = tmp_path / "small" / "labels.txt"
    names.write_text("only\ntwo\n")
    with pytest.raises(NaDeployError, match="name 2 classes, the model has 10"), running(tmp_path):
        pass


def test_stopping_answers_what_was_asked(tmp_path: Path):
    save(scaling_model(1.0), tmp_path / "scaling.onnx")
    save(slow_model(), tmp_path / "slow.onnx")
    found: list[int] = []
    with running(tmp_path, poll=POLL) as server:
        request = {"inputs": [{"name": "turns", "datatype": "INT64", "shape": [1], "data": [40_000]}]}
        clients = [threading.Thread(target=lambda: found.append(server.infer("slow", request)[0])) for _ in range(3)]
        for thread in clients:
            thread.start()
        assert server.service is not None
        batcher = server.service.repository.get("slow")._batcher
        wait_for(lambda: batcher.waiting == 2)
        server.begin_stop()
        server.wait()
        for thread in clients:
            thread.join(30)
    assert found == [200, 200, 200]
