"""build and bench from the command line, and bundles where the other commands take a model."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from rtx_engines import require_rtx

from na_deploy.cli.bench import choose_targets
from na_deploy.cli.build import condense, parse_range, parse_sizes
from na_deploy.cli.main import run
from na_deploy.errors import UsageError
from na_deploy.runtime.bench import compare as bench
from na_deploy.runtime.bench.compare import percentile

WriteModel = Callable[..., Path]


@pytest.fixture
def model(write_model: WriteModel) -> Path:
    return write_model(batch="batch")


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object) -> None:
    found, out, err = call(capsys, *arguments)
    assert (found, out) == (code, ""), err
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_build_writes_a_bundle_that_run_and_inspect_take(model: Path, tmp_path: Path, capsys):
    bundle = tmp_path / "small.bundle"
    code, out, err = call(capsys, "build", model, "-o", bundle, "--batch", "1:2:8")
    assert (code, err) == (0, "")
    assert "2 neighborhood attention nodes run on" in out
    assert "image: from 1×3×32×32 to 8×3×32×32, usually 2×3×32×32" in out
    array = tmp_path / "image.npy"
    np.save(array, np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    results = [json.loads(call(capsys, "run", source, array, "--json")[1]) for source in (model, bundle)]
    assert results[0]["predictions"] == results[1]["predictions"]
    code, out, _ = call(capsys, "inspect", bundle)
    assert code == 0
    assert "model.onnx" in out
    assert "needs platform linux" in out
    content = json.loads(call(capsys, "inspect", bundle, "--json")[1])
    assert content["bundle"]["backend"] == "onnxruntime"
    assert len(content["layers"]) == 2


def test_build_json_says_what_was_built(model: Path, tmp_path: Path, capsys):
    code, out, _ = call(capsys, "build", model, "-o", tmp_path / "small.zip", "--batch", 4, "--json")
    assert code == 0
    content = json.loads(out)
    assert content["profiles"]["image"]["optimum"] == [4, 3, 32, 32]
    assert content["members"]["model.onnx"]["bytes"] == model.stat().st_size
    assert content["bytes"] == model.stat().st_size


def test_build_refuses_wrong_use_in_one_sentence(model: Path, tmp_path: Path, capsys):
    target = tmp_path / "small.bundle"
    refused(capsys, 2, "cannot read --batch '1:b'", "build", model, "-o", target, "--batch", "1:b")
    refused(capsys, 2, "give --batch smallest:usual:largest", "build", model, "-o", target)
    refused(capsys, 2, "it is the input", "build", model, "-o", model, "--batch", 1)
    refused(capsys, 2, "does not exist", "build", model, "-o", tmp_path / "no" / "b.zip", "--batch", 1)
    refused(capsys, 2, "none.onnx does not exist", "build", tmp_path / "none.onnx", "-o", target)
    assert not target.exists()


def test_build_names_the_nodes_that_nothing_runs(model: Path, tmp_path: Path, capsys, monkeypatch):
    import onnx

    monkeypatch.setenv("NA_DEPLOY_ORT_LIBRARY", "")
    content = onnx.load(model)
    del content.functions[:]
    content.graph.node[-1].domain = "acme"
    stray = tmp_path / "stray.onnx"
    onnx.save(content, stray)
    code, _, err = call(capsys, "build", stray, "-o", tmp_path / "b.zip", "--batch", 1)
    assert code == 1
    assert "no function body for it and no plugin is registered" in err
    assert "node 'head' (acme.Gemm): onnxruntime has no operators of domain 'acme'" in err


def test_a_bundle_for_tensorrt_rtx_holds_an_engine(model: Path, tmp_path: Path, capsys):
    require_rtx()
    bundle = tmp_path / "small.bundle"
    code, out, err = call(
        capsys, "build", model, "-o", bundle, "--backend", "tensorrt-rtx", "--batch", "1:2:8", "--json"
    )
    assert code == 0, err
    content = json.loads(out)
    assert content["members"]["model.engine"]["bytes"] == content["build"]["engine_bytes"]
    assert content["requires"]["tensorrt_rtx"].startswith("1.")
    assert content["build"]["layers"] > 10
    array = tmp_path / "image.npy"
    np.save(array, np.zeros((1, 3, 32, 32), np.float32))
    code, _, err = call(capsys, "run", bundle, array)
    assert code == 1  # there is no GPU here
    assert "engines run on an NVIDIA GPU" in err


@pytest.mark.parametrize(("text", "expected"), [("4", (4, 4, 4)), ("1:8", (1, 1, 8)), ("1:2:8", (1, 2, 8))])
def test_ranges_are_read(text: str, expected: tuple[int, int, int]):
    assert parse_range(text, "--batch") == expected


def test_sizes_are_read():
    assert parse_sizes("224") == ((224, 224),) * 3
    assert parse_sizes("224x320:256:384x512") == ((224, 320), (256, 256), (384, 512))
    for text in ("", "a", "1:2:3:4", "2x3x4", "0"):
        with pytest.raises(UsageError, match="cannot read --size"):
            parse_sizes(text)


def test_bench_measures_models_and_bundles_side_by_side(model: Path, tmp_path: Path, capsys):
    bundle = tmp_path / "small.zip"
    assert call(capsys, "build", model, "-o", bundle, "--batch", "1:1:4")[0] == 0
    plot = tmp_path / "bench.png"
    arguments = ("bench", model, bundle, "--compare-to", "bodies", "--batch", "1,4", "--duration", 0.1, "--threads", 1)
    code, out, err = call(capsys, *arguments, "--json", "--plot", plot)
    assert code == 0, err
    content = json.loads(out)
    rows = {(row["label"], row["batch"]): row for row in content["measurements"]}
    assert len(rows) == 2 * 4
    for row in rows.values():
        assert row["difference"] < 1e-5
        assert row["calls"] > 10
        assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"]
        assert row["items_per_s"] > 0
    assert "function bodies" in rows["small.onnx, function bodies", 1]["runs_on"]
    assert all(start["load_s"] > 0 and start["peak_mb"] > 0 for start in content["startups"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_bench_says_the_size_and_takes_another(write_model: WriteModel, tmp_path: Path, capsys):
    free = write_model("free.onnx", batch="batch")
    code, out, err = call(capsys, "bench", free, "--duration", 0.1, "--json")
    assert code == 0, err
    content = json.loads(out)
    assert content["measurements"][0]["shapes"] == {"image": [1, 3, 32, 32]}
    assert "threads" in content["machine"]
    code, out, err = call(capsys, "bench", free, "--input", "image=3x3x32x32", "--duration", 0.1)
    assert code == 0, err
    assert "3×3×32×32" in out
    refused(capsys, 1, "which 1×3×64×64 does not fit", "bench", free, "--input", "1x3x64x64", "--duration", 0.1)


def test_bench_names_the_target_that_fails(write_model: WriteModel, tmp_path: Path, capsys):
    fixed = write_model("fixed.onnx")
    refused(capsys, 1, "fixed.onnx: its batch is fixed to 1, not 2", "bench", fixed, "--batch", 2, "--duration", 0.1)
    refused(capsys, 2, "is given twice", "bench", fixed, fixed)
    refused(capsys, 2, "needs the model's checkpoint", "bench", fixed, "--compare-to", "torch")
    refused(capsys, 2, "cannot read --batch 'x'", "bench", fixed, "--batch", "x")
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(fixed.read_bytes()[:500])
    refused(capsys, 1, "damaged.onnx: ", "bench", damaged, "--duration", 0.1)


def test_a_process_that_dies_is_told(write_model: WriteModel, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(bench, "WORKER", "na_deploy.no_such_module")
    target = bench.Target("m", "session", write_model(), {})
    with pytest.raises(Exception, match="m: its process ended with code 1"):
        bench.measure([target], [None], duration_s=0.1)


def test_percentiles_are_of_the_numbers_themselves():
    numbers = [float(n) for n in range(1, 101)]
    assert percentile(numbers, 0.9) == 90
    assert percentile(numbers, 0.99) == 99
    assert percentile([7.0], 0.99) == 7
    assert percentile(numbers, 0.5) == 50


def test_throughput_is_items_over_the_time_of_all_calls():
    row = bench._measurement("m", {"batch": 4, "shapes": {"x": [4, 3]}}, [10.0, 20.0, 70.0], "CPU")
    assert (row.calls, row.p50_ms, row.p99_ms) == (3, 20.0, 70.0)
    assert row.items_per_s == pytest.approx(120.0)


def test_a_log_tells_the_same_thing_once():
    log = [f"warning: A node named v{number} already exists" for number in range(300)] + ["error: 3 layers", "other"]
    assert condense(log) == ["warning: A node named v0 already exists (300 like this)", "error: 3 layers", "other"]
    assert condense([f"{chr(97 + number)}!" for number in range(12)])[-1] == "and 2 more"


def test_bfloat16_shows_its_difference_where_it_is_asked_for(model: Path, tmp_path: Path, capsys):
    openvino = pytest.importorskip("openvino")
    array = tmp_path / "image.npy"
    np.save(array, np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32))
    code, out, err = call(capsys, "run", model, array, "--backend", "openvino", "--threads", 1, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["device"] == "CPU (f32)"
    refused(capsys, 2, "precision is for the openvino backend", "run", model, array, "--precision", "bf16")
    if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        refused(capsys, 2, "no bfloat16 products", "run", model, array, "--backend", "openvino", "--precision", "bf16")
        return
    code, out, err = call(capsys, "run", model, array, "--backend", "openvino", "--precision", "bf16", "--json")
    assert code == 0
    assert json.loads(out)["device"] == "CPU (bf16)"
    found = re.fullmatch(
        r"note: small\.onnx computes in bf16: outputs differ from f32 by up to (\S+) \(relative, random inputs\)\n", err
    )
    assert found is not None, err
    assert 1e-4 < float(found[1]) < 5e-2


def test_bench_takes_every_backend_and_precision(model: Path):
    targets, left_out = choose_targets((model,), ("bodies",), None, None, backends="onnxruntime,openvino:f32")
    assert [target.label for target in targets] == [
        "small.onnx, onnxruntime",
        "small.onnx, openvino f32",
        "small.onnx, function bodies",
    ]
    assert [target.options for target in targets] == [
        {"backend": "onnxruntime"},
        {"backend": "openvino", "precision": "f32"},
        {"backend": "onnxruntime", "custom_operators": False},
    ]
    assert {target.reference for target in targets} == {model}
    (target,), _ = choose_targets((model,), (), None, None, backends="openvino", precision="bf16", device=1)
    assert target.options == {"backend": "openvino", "precision": "bf16", "device": 1}
    both, _ = choose_targets((model,), (), None, None, backends="onnxruntime,openvino:f32", cuda_graphs=3)
    assert [target.label for target in both] == [
        "small.onnx, onnxruntime",
        "small.onnx, onnxruntime, CUDA graphs",
        "small.onnx, openvino f32",
    ]
    assert both[1].options == {"backend": "onnxruntime", "cuda_graphs": 3}
    everything, left_out = choose_targets((model,), (), None, None, backends="all")
    assert len(everything) + len(left_out) == 3
    for backends in (None, "all", "openvino:f32"):
        with pytest.raises(UsageError, match="--precision goes with --backend openvino"):
            choose_targets((model,), (), None, None, backends=backends, precision="bf16")
