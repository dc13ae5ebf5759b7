"""The checks of a repository that a parser accepts: one change, one finding that says what and where."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from small_models import small_model

from na_deploy.deployment import PackageOptions, check_repository, package
from na_deploy.deployment.protobuf import CONFIG, Config, messages, parse, read, to_text
from na_deploy.errors import UsageError
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing

METADATA = ModelMetadata(
    "nat_mini",
    num_classes=10,
    preprocessing=Preprocessing(size=(32, 32), resize=36),
    labels={index: f"thing {index}" for index in range(10)},
)
Change = Callable[[Config], None]


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(batch="batch", properties=METADATA.to_props()), path)
    package([path], tmp_path / "repository", PackageOptions(preprocess=True, operators="none"))
    assert check_repository(tmp_path / "repository") == []
    return tmp_path / "repository"


def change(repository: Path, name: str, edit: Change) -> list[str]:
    config = read(repository / name / CONFIG)
    edit(config)
    (repository / name / CONFIG).write_text(to_text(config))
    parse((repository / name / CONFIG).read_text())  # every one of these parses
    return [str(finding) for finding in check_repository(repository)]


def setting(text: str) -> Change:
    return lambda config: config.MergeFrom(parse(text))


def first_dims(*sizes: int) -> Change:
    def edit(config: Config) -> None:
        del config.input[0].dims[:]
        config.input[0].dims.extend(sizes)

    return edit


def replaced(field: str, value: object) -> Change:
    return lambda config: setattr(config, field, value)


def cleared(field: str, then: str = "") -> Change:
    def edit(config: Config) -> None:
        config.ClearField(field)
        config.MergeFrom(parse(then))

    return edit


CASES: dict[str, tuple[Change, str]] = {
    "preferred too large": (setting("dynamic_batching { preferred_batch_size: 9 }"), "preferred batch of 9 is above"),
    "preferred zero": (setting("dynamic_batching { preferred_batch_size: 0 }"), "preferred batch of 0 is impossible"),
    "delay in wrong unit": (setting("dynamic_batching { max_queue_delay_microseconds: 5000000 }"), "5 seconds"),
    "timeout before delay": (
        setting(
            "dynamic_batching { max_queue_delay_microseconds: 900 "
            "default_queue_policy { default_timeout_microseconds: 800 } }"
        ),
        "time out after 800",
    ),
    "priority out of range": (setting("dynamic_batching { priority_levels: 2 }"), "expected 1 to 2"),
    "negative batch": (replaced("max_batch_size", -2), "max_batch_size is -2"),
    "no backend": (cleared("backend", 'platform: "x"'), "there is no backend"),
    "unknown backend": (replaced("backend", "onnx"), "none that Triton ships"),
    "wrong platform": (replaced("platform", "tensorrt_plan"), "does not belong to backend onnxruntime"),
    "zero dimension": (first_dims(3, 0, 32), "dimension of 0"),
    "dimension below -1": (first_dims(3, -2, 32), "dimension of -2"),
    "no dimensions": (first_dims(), "no dims"),
    "wrong dimension": (first_dims(3, 32, 33), "the model has [3, 32, 32]"),
    "free dimension of a fixed one": (first_dims(3, -1, -1), "the model has [3, 32, 32]"),
    "batch in dimensions": (first_dims(-1, 3, 32, 32), "beside the batch"),
    "no inputs": (cleared("input"), "there is no input"),
    "wrong type": (
        cleared("output", 'output { name: "logits" data_type: TYPE_FP16 dims: 10 }'),
        "TYPE_FP16, the model",
    ),
    "no type": (cleared("output", 'output { name: "logits" dims: 10 }'), "no data_type"),
    "unknown output": (
        cleared("output", 'output { name: "scores" data_type: TYPE_FP32 dims: 10 }'),
        "not in the model",
    ),
    "output twice": (
        setting('output { name: "logits" data_type: TYPE_FP32 dims: 10 }'),
        "output 'logits' is there 2 times",
    ),
    "impossible reshape": (
        cleared("output", 'output { name: "logits" data_type: TYPE_FP32 dims: 10 reshape { shape: [3, 4] } }'),
        "different numbers of elements",
    ),
    "other name": (replaced("name", "another"), "they must agree"),
    "missing version": (cleared("version_policy", "version_policy { specific { versions: 3 } }"), "version 3"),
    "no versions": (cleared("version_policy", "version_policy { latest { } }"), "latest 0 versions"),
    "CPU with GPUs": (cleared("instance_group", "instance_group { kind: KIND_CPU gpus: 1 }"), "names GPUs [1]"),
    "profile without TensorRT": (setting('instance_group { profile: "0" }'), "profiles are for the tensorrt"),
    "graphs without TensorRT": (setting("optimization { cuda { graphs: true } }"), "CUDA graphs are for"),
    "warm-up of nothing": (setting('model_warmup { name: "w" batch_size: 1 }'), "lacks the input 'image'"),
    "warm-up too large": (setting('model_warmup { name: "w" batch_size: 9 }'), "batch_size of 9, above 8"),
    "warm-up of wrong type": (
        setting(
            'model_warmup { name: "w" batch_size: 1 inputs { key: "image" '
            "value { data_type: TYPE_INT8 dims: [3, 32, 32] zero_data: true } } }"
        ),
        "as TYPE_INT8, the input is TYPE_FP32",
    ),
    "warm-up without data": (
        setting(
            'model_warmup { name: "w" batch_size: 1 inputs { key: "image" '
            "value { data_type: TYPE_FP32 dims: [3, 32, 32] } } }"
        ),
        "does not say what 'image' holds",
    ),
    "library by relative path": (setting('model_operations { op_library_filename: "lib.so" }'), "full path"),
    "library that is not there": (setting('model_operations { op_library_filename: "/no/lib.so" }'), "neither there"),
    "cache of decoupled answers": (
        setting("response_cache { enable: true } model_transaction_policy { decoupled: true }"),
        "decoupled",
    ),
    "other file": (replaced("default_model_filename", "other.onnx"), "other.onnx, which the onnxruntime backend opens"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_wrong_configuration_is_found(repository: Path, case: str) -> None:
    edit, phrase = CASES[case]
    findings = change(repository, "model", edit)
    assert any(phrase in finding for finding in findings), findings
    assert all(finding.startswith(("model: ", "model_from_image: ")) for finding in findings)


def step(config: Config, number: int) -> Config:
    return config.ensemble_scheduling.step[number]


def mapped(number: int, which: str, key: str, tensor: str) -> Change:
    return lambda config: getattr(step(config, number), which).__setitem__(key, tensor)


def turned_around(config: Config) -> None:
    first, second = messages().ModelConfig(), messages().ModelConfig()
    first.ensemble_scheduling.step.add().CopyFrom(step(config, 1))
    second.ensemble_scheduling.step.add().CopyFrom(step(config, 0))
    config.ClearField("ensemble_scheduling")
    config.MergeFrom(first)
    config.MergeFrom(second)


ENSEMBLES: dict[str, tuple[Change, str]] = {
    "unknown model": (
        lambda c: setattr(step(c, 1), "model_name", "nobody"),
        "step 2 runs nobody, which the repository",
    ),
    "itself": (lambda c: setattr(step(c, 1), "model_name", c.name), "step 2 is the ensemble itself"),
    "unknown tensor": (mapped(1, "input_map", "image", "nothing"), "from 'nothing', but nothing makes it"),
    "unknown input": (mapped(1, "input_map", "picture", "image"), "the input 'picture', which model does not have"),
    "unknown output": (mapped(0, "output_map", "sound", "sound"), "which model_preprocessing does not have"),
    "unmapped input": (lambda c: step(c, 1).input_map.clear(), "does not map the input 'image' of model"),
    "made twice": (mapped(1, "output_map", "logits", "image"), "makes 'image' a second time"),
    "in wrong order": (turned_around, "only a later step makes it"),
    "wrong type": (lambda c: setattr(c.input[0], "data_type", 11), "is TYPE_STRING, the ensemble gives TYPE_FP32"),
    "wrong size": (lambda c: c.output[0].dims.__setitem__(0, 11), "output 'logits' is [-1, 11] with its batch"),
    "unused input": (setting('input { name: "more" data_type: TYPE_FP32 dims: 1 }'), "no step uses the input 'more'"),
    "unmade output": (
        setting('output { name: "more" data_type: TYPE_FP32 dims: 1 }'),
        "no step makes the output 'more'",
    ),
    "too large a batch": (replaced("max_batch_size", 99), "only up to 8"),
    "backend of an ensemble": (replaced("backend", "python"), "an ensemble has no backend"),
    "version zero": (lambda c: setattr(step(c, 0), "model_version", 0), "asks for version 0"),
    "no steps": (cleared("ensemble_scheduling"), "at least one step"),
}


@pytest.mark.parametrize("case", ENSEMBLES)
def test_an_ensemble_that_does_not_connect_is_found(repository: Path, case: str) -> None:
    edit, phrase = ENSEMBLES[case]
    findings = change(repository, "model_from_image", edit)
    assert any(phrase in finding and finding.startswith("model_from_image: ") for finding in findings), findings


def test_missing_and_damaged_files_are_found(repository: Path) -> None:
    model = repository / "model"
    content = (model / "1" / "model.onnx").read_bytes()
    (model / "labels.txt").write_text("one\ntwo\n")
    (model / "1" / "model.onnx").write_bytes(content[:200])
    (repository / "model_preprocessing" / "1" / "model.py").write_text("")
    found = [str(finding) for finding in check_repository(repository)]
    assert any("labels.txt names 2 classes, output 'logits' has 10" in finding for finding in found)
    assert any("version 1" in finding and "damaged" in finding for finding in found)
    assert any(finding == "model_preprocessing: version 1: model.py is empty" for finding in found)
    (model / "1" / "model.onnx").unlink()
    (model / "labels.txt").unlink()
    found = [str(finding) for finding in check_repository(repository)]
    assert any("model.onnx, which the onnxruntime backend opens, is not there" in finding for finding in found)
    assert any("labels.txt, which is not there" in finding for finding in found)
    (model / "1").rename(model / "01")
    assert any("there is no version" in finding.text for finding in check_repository(repository))


@pytest.mark.parametrize("text", ["name: 5", "nonsense {", 'name: "x" unknown_field: 3', "\x00\x01"])
def test_what_does_not_parse_is_a_finding_too(repository: Path, text: str) -> None:
    (repository / "model" / CONFIG).write_text(text)
    findings = [finding.text for finding in check_repository(repository) if finding.model == "model"]
    assert len(findings) == 1
    assert "cannot be parsed as ModelConfig" in findings[0]


def test_folders_that_are_no_repository_are_refused(repository: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for place in (tmp_path / "empty", tmp_path / "missing", tmp_path / "model.onnx", repository / "model"):
        with pytest.raises(UsageError):
            check_repository(place)
    (repository / "stray").mkdir()
    assert [str(finding) for finding in check_repository(repository)] == [
        "stray: there is no config.pbtxt; write the repository with `na-deploy package`"
    ]


def test_no_field_of_a_configuration_breaks_the_checks(repository: Path) -> None:
    good = read(repository / "model" / CONFIG)
    for field in good.DESCRIPTOR.fields:
        if field.message_type is None:
            continue
        config = messages().ModelConfig()
        config.CopyFrom(good)
        value = getattr(config, field.name)
        if field.message_type.GetOptions().map_entry:
            value.get_or_create("anything") if hasattr(value, "get_or_create") else value.__setitem__("anything", "x")
        elif hasattr(value, "add"):
            value.add()
        else:
            config.ClearField(field.name)
            getattr(config, field.name).SetInParent()
        (repository / "model" / CONFIG).write_text(to_text(config))
        check_repository(repository)
        (repository / "model_from_image" / CONFIG).write_text(to_text(config))
        assert check_repository(repository), field.name  # its name is another's
