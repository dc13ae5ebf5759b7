"""package from the command line: what it prints, refuses and leaves behind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from na_deploy.cli.main import run
from na_deploy.deployment.protobuf import CONFIG, read, to_text

WriteModel = Callable[..., Path]


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def test_package_writes_a_repository_and_says_how_to_serve_it(write_model: WriteModel, tmp_path: Path, capsys) -> None:
    model = write_model("attention.onnx", batch="batch")
    repository = tmp_path / "repository"
    code, out, err = call(capsys, "package", model, "-o", repository, "--target", "triton", "--backend", "python")
    assert (code, err) == (0, "")
    assert "attention" in out
    assert f"-v {repository}:/models:ro na-deploy-triton tritonserver --model-repository=/models" in out
    assert call(capsys, "package", "--check", repository) == (0, "1 model, nothing found\n", "")


def test_options_reach_the_configuration(write_model: WriteModel, tmp_path: Path, capsys) -> None:
    model, repository = write_model(batch="batch"), tmp_path / "repository"
    options = "--name m --max-batch 4 --preferred 2,4 --batch-delay-ms 0.3 --queue 9 --serve-versions all --no-warm-up"
    code, out, err = call(capsys, "package", model, "-o", repository, *options.split(), "--json")
    assert (code, err) == (0, "")
    (written,) = json.loads(out)["models"]
    assert (written["name"], written["version"], written["max_batch"]) == ("m", 1, 4)
    config = read(repository / "m" / CONFIG)
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert config.dynamic_batching.max_queue_delay_microseconds == 300
    assert config.dynamic_batching.default_queue_policy.max_queue_size == 9
    assert config.version_policy.HasField("all")
    assert not config.model_warmup


def test_cluster_files_are_written_on_request(write_model: WriteModel, tmp_path: Path, capsys) -> None:
    cluster = tmp_path / "cluster"
    arguments = ("package", write_model(), "-o", tmp_path / "repository", "--backend", "python", "--cluster", cluster)
    code, out, _ = call(capsys, *arguments)
    assert code == 0
    assert sorted(path.name for path in cluster.iterdir()) == [
        "Dockerfile",
        "kserve.yaml",
        "kubernetes.yaml",
        "prometheus-adapter.yaml",
    ]
    assert "kubernetes.yaml" in out


def test_check_prints_findings_and_fails(write_model: WriteModel, tmp_path: Path, capsys) -> None:
    repository = tmp_path / "repository"
    call(capsys, "package", write_model(batch="batch"), "-o", repository, "--operators", "none")
    config = read(repository / "small" / CONFIG)
    config.dynamic_batching.preferred_batch_size.append(9)
    (repository / "small" / CONFIG).write_text(to_text(config))
    code, out, err = call(capsys, "package", "--check", repository)
    assert code == 1
    assert "a preferred batch of 9 is above max_batch_size 8" in out
    assert err == "error: 1 findings in 1 of 1 models\n"
    code, out, _ = call(capsys, "package", "--check", repository, "--json")
    assert code == 1
    assert json.loads(out)["findings"][0]["model"] == "small"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "give one or more models and -o repository"),
        (("MODEL",), "give one or more models and -o repository"),
        (("MODEL", "-o", "OUT", "--check", "OUT"), "--check takes a repository alone"),
        (("MODEL", "-o", "OUT", "--preferred", "two"), "cannot read --preferred 'two'"),
        (("MODEL", "-o", "OUT", "--gpus", "0", "--device", "cpu"), "GPUs are chosen"),
        (("MODEL", "-o", "OUT", "--max-batch", "0"), "at least 1"),
        (("missing.onnx", "-o", "OUT"), "missing.onnx"),
        (("--check", "OUT"), "is not a folder"),
        (("MODEL", "-o", "OUT", "--backend", "tensorrt"), "holds no TensorRT engine"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    write_model: WriteModel, tmp_path: Path, capsys, arguments: tuple[str, ...], sentence: str
) -> None:
    places = {"MODEL": str(write_model()), "OUT": str(tmp_path / "repository")}
    code, out, err = call(capsys, "package", *(places.get(argument, argument) for argument in arguments))
    assert (code, out) == (2, "")
    assert err.startswith("error: ")
    assert sentence in err
    assert err.count("\n") == 1
    assert not (tmp_path / "repository").exists()
