"""run, inspect, models and doctor from the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from PIL import Image

import na_deploy
from na_deploy.cli.main import run
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.images.prepare import prepare_files
from na_deploy.runtime.results.classification import softmax

WriteModel = Callable[..., Path]
PREPROCESSING = Preprocessing(size=(32, 32), resize=36)


@pytest.fixture
def model(write_model: WriteModel) -> Path:
    metadata = ModelMetadata("nat_mini", num_classes=10, preprocessing=PREPROCESSING)
    return write_model(batch="batch", properties=metadata.to_props())


@pytest.fixture
def photos(tmp_path: Path) -> list[Path]:
    paths = []
    for seed in range(2):
        pixels = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), dtype=np.uint8)
        paths.append(tmp_path / f"photo{seed}.png")
        Image.fromarray(pixels).save(paths[-1])
    return paths


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = run([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


def refused(capsys: pytest.CaptureFixture[str], code: int, message: str, *arguments: object) -> None:
    found, out, err = call(capsys, *arguments)
    assert found == code, err
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_run_prints_the_classes_that_the_session_finds(model: Path, photos: list[Path], capsys):
    code, out, err = call(capsys, "run", model, *photos, "--top", 3, "--json")
    assert (code, err) == (0, "")
    result = json.loads(out)
    with na_deploy.load(model) as session:
        probabilities = softmax(session.run(prepare_files(photos, PREPROCESSING))["logits"])
    for entry, path, row in zip(result["predictions"], photos, probabilities, strict=True):
        assert entry["input"] == path.name
        assert [top["class"] for top in entry["top"]] == list(np.argsort(-row)[:3])
        assert [top["probability"] for top in entry["top"]] == pytest.approx(sorted(row)[:-4:-1], rel=1e-4)
    assert result["run_ms"] > 0


def test_run_prints_a_table_for_people(model: Path, photos: list[Path], tmp_path: Path, capsys):
    labels = tmp_path / "labels.txt"
    labels.write_text("".join(f"animal [{index}]\n" for index in range(10)))
    code, out, _ = call(capsys, "run", model, *photos, "--labels", labels)
    assert code == 0
    assert out.count("animal [") == 10
    assert "photo0.png" in out
    assert "photo1.png" in out
    assert " ms" in out


def test_run_without_labels_counts_classes(model: Path, photos: list[Path], capsys):
    assert "class " in call(capsys, "run", model, photos[0])[1]


def test_run_takes_labels_from_the_metadata(write_model: WriteModel, photos: list[Path], capsys):
    metadata = ModelMetadata("nat_mini", preprocessing=PREPROCESSING, labels={k: f"bird {k}" for k in range(10)})
    code, out, _ = call(capsys, "run", write_model(properties=metadata.to_props()), *photos)
    assert code == 0
    assert out.count("bird ") == 10


def test_run_prints_the_features_of_a_model_without_a_head_as_features(
    write_model: WriteModel, photos: list[Path], tmp_path: Path, capsys
):
    labels = tmp_path / "labels.txt"
    labels.write_text("cat\n" * 10)
    for task in ("features", "classification"):  # files of earlier versions call such a model a classifier
        metadata = ModelMetadata("nat_mini", task=task, num_classes=0, preprocessing=PREPROCESSING)
        headless = write_model(f"{task}.onnx", properties=metadata.to_props())
        code, out, _ = call(capsys, "run", headless, photos[0])
        assert code == 0
        assert "mean" in out
        assert "probability" not in out
        assert "predictions" not in json.loads(call(capsys, "run", headless, photos[0], "--json")[1])
        refused(capsys, 2, "returns features or maps, not classes", "run", headless, photos[0], "--labels", labels)


def test_run_takes_and_writes_arrays(model: Path, tmp_path: Path, capsys):
    items = np.random.default_rng(0).normal(size=(3, 3, 32, 32)).astype(np.float32)
    np.save(tmp_path / "in.npy", items)
    code, out, _ = call(capsys, "run", model, tmp_path / "in.npy", "-o", tmp_path / "out.npy")
    assert code == 0
    assert "in.npy[2]" in out
    with na_deploy.load(model) as session:
        expected = session.run(items)["logits"]
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected)
    assert call(capsys, "run", model, tmp_path / "in.npy", "-o", tmp_path / "out.npz")[0] == 0
    assert np.array_equal(np.load(tmp_path / "out.npz")["logits"], expected)


def test_run_refuses_bad_requests_in_a_sentence(
    model: Path, write_model: WriteModel, photos: list[Path], tmp_path: Path, capsys
):
    text = tmp_path / "notes.txt"
    text.write_text("no image")
    array = tmp_path / "in.npy"
    np.save(array, np.ones((1, 3, 30, 32), np.float32) * 0.5)
    pickled = tmp_path / "pickled.npy"
    np.save(pickled, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    labels = tmp_path / "few.txt"
    labels.write_text("cat\ndog\n")
    refused(capsys, 2, "does not exist", "run", tmp_path / "absent.onnx", photos[0])
    refused(capsys, 1, "is not an ONNX model", "run", photos[0], photos[0])
    refused(capsys, 1, "not an image", "run", model, text)
    refused(capsys, 2, "absent.jpg does not exist; give an image", "run", model, tmp_path / "absent.jpg")
    refused(
        capsys,
        2,
        "absent.npy does not exist; give a .npy file or an .npz archive",
        "run",
        model,
        tmp_path / "absent.npy",
    )
    refused(capsys, 2, "axis 2 is 30, not 32", "run", model, array)
    refused(capsys, 1, "not a .npy array or .npz archive of numbers", "run", model, pickled)
    refused(capsys, 2, "not both", "run", model, array, photos[0])
    refused(capsys, 2, "the model has 10", "run", model, photos[0], "--labels", labels)
    refused(capsys, 2, "end the name in .npy", "run", model, photos[0], "-o", tmp_path / "out.txt")
    refused(capsys, 2, "does not exist", "run", model, photos[0], "-o", tmp_path / "nowhere" / "out.npy")
    refused(capsys, 2, "does not say how images are prepared", "run", write_model("bare.onnx"), photos[0])
    assert not list(tmp_path.glob("out.*"))


def test_inspect_prints_the_layers(model: Path, capsys):
    code, out, _ = call(capsys, "inspect", model)
    assert code == 0
    assert "levels.0 block 0" in out
    assert "nat_mini" in out
    assert "NeighborhoodAttentionQKV" in out


def test_inspect_json_has_every_layer(model: Path, capsys):
    code, out, _ = call(capsys, "inspect", model, "--input", "2x3x32x32", "--json")
    summary = json.loads(out)
    assert code == 0
    assert [layer["batch"] for layer in summary["layers"]] == [2, 2]
    assert [layer["dilation"] for layer in summary["layers"]] == [[1, 1], [2, 2]]
    assert summary["metadata"]["na_deploy.architecture"] == "nat_mini"


def test_inspect_draws(model: Path, tmp_path: Path, capsys):
    code, out, _ = call(capsys, "inspect", model, "--plot", tmp_path / "picture.png")
    assert code == 0
    assert "Drawn into" in out
    assert Image.open(tmp_path / "picture.png").width > 800


def test_inspect_refuses_bad_requests_in_a_sentence(model: Path, tmp_path: Path, capsys):
    refused(capsys, 2, "absent.onnx does not exist", "inspect", tmp_path / "absent.onnx")
    refused(capsys, 2, "which 224 does not fit", "inspect", model, "--input", "224")
    refused(capsys, 2, "such as 1x3x224x224", "inspect", model, "--input", "1x-3x2x2")


def test_models_lists_names_and_figures(capsys):
    code, out, _ = call(capsys, "models")
    assert code == 0
    row = next(line for line in out.splitlines() if "dinat_tiny" in line)
    assert "27.9 M" in row
    assert "82.7" in row
    assert "1,8,1 / (1,4)×2 / (1,2)×9 / 1" in row


def test_models_filters(capsys):
    code, out, _ = call(capsys, "models", "isotropic", "--json")
    names = [entry["name"] for entry in json.loads(out)]
    assert code == 0
    assert names
    assert all("isotropic" in name for name in names)
    refused(capsys, 2, "no architecture has 'resnet' in its name", "models", "resnet")


def test_doctor_really_runs_an_attention(capsys):
    code, out, _ = call(capsys, "doctor", "--json")
    report = json.loads(out)
    findings = {finding["name"]: finding for finding in report["findings"]}
    assert code == 0
    assert report["works"]
    assert "difference to float64" in findings["embedded function body"]["detail"]
    assert findings["onnxruntime"]["status"] == "works"
    assert all(finding["remedy"] for finding in report["findings"] if finding["status"] != "works")


def test_doctor_fails_where_the_core_is_wrong(capsys, monkeypatch):
    from na_deploy.cli import self_check

    monkeypatch.setattr(self_check, "attention_difference", lambda **options: 0.5)
    code, out, err = call(capsys, "doctor")
    assert code == 1
    assert err == ""
    assert "do not run here" in out


def test_doctor_names_what_is_missing(capsys, monkeypatch):
    import importlib.util

    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "onnxruntime" else found(name, *rest)
    )
    code, out, _ = call(capsys, "doctor")
    assert code == 1
    assert "pip install onnxruntime" in out


def test_models_lists_the_dilation_presets(capsys: pytest.CaptureFixture[str]):
    code, out, _ = call(capsys, "models", "--dilations", "--json")
    assert code == 0
    presets = {preset["name"]: preset for preset in json.loads(out)}
    assert presets["coco"]["nat"][0] == [1, 28, 1]
    assert {"imagenet-224", "imagenet-384", "ade20k-512", "mask2former", "oneformer-coco"} <= set(presets)
    code, out, _ = call(capsys, "models", "--dilations", "coco")
    assert code == 0
    assert "1,28,1" in out
    assert "imagenet" not in out
    refused(capsys, 2, "no dilation preset", "models", "--dilations", "cifar")


@pytest.fixture
def scaled_sum(tmp_path: Path) -> Path:
    """A model of two inputs: image (batch, 4) and sigma (batch,) to their product."""
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 4])
    sigma = helper.make_tensor_value_info("sigma", TensorProto.FLOAT, ["batch", 1])
    product = helper.make_tensor_value_info("product", TensorProto.FLOAT, ["batch", 4])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["image", "sigma"], ["product"])], "g", [image, sigma], [product]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), tmp_path / "two.onnx"
    )
    return tmp_path / "two.onnx"


def test_run_takes_an_array_for_every_input(scaled_sum: Path, tmp_path: Path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    image, sigma = np.arange(8, dtype=np.float32).reshape(2, 4), np.array([[2], [3]], np.float32)
    np.save("image.npy", image)
    np.save("sigma.npy", sigma)
    np.savez("both.npz", sigma=sigma, image=image)
    for number, inputs in enumerate((["sigma=sigma.npy", "image=image.npy"], ["image.npy", "sigma.npy"], ["both.npz"])):
        code, _, err = call(capsys, "run", scaled_sum, *inputs, "-o", f"out{number}.npy")
        assert (code, err) == (0, "")
        np.testing.assert_array_equal(np.load(f"out{number}.npy"), image * sigma)
    code, out, _ = call(capsys, "run", scaled_sum, "both.npz", "--json")
    assert json.loads(out)["outputs"] == {"product": {"shape": [2, 4], "dtype": "float32"}}
    refused(capsys, 2, "give image=image.npy sigma=sigma.npy", "run", scaled_sum, "image.npy")
    refused(capsys, 2, "give image=image.npy sigma=sigma.npy", "run", scaled_sum, "image=image.npy", "image=sigma.npy")
    refused(capsys, 2, "photo.jpg is no .npy file", "run", scaled_sum, "photo.jpg", "sigma.npy")
    refused(capsys, 2, "none.npy does not exist", "run", scaled_sum, "image=image.npy", "sigma=none.npy")
    refused(capsys, 2, "it is the input", "run", scaled_sum, "image=image.npy", "sigma=sigma.npy", "-o", "image.npy")
    np.savez("bad.npz", sigma=np.array([{"a": 1}], dtype=object), image=image)
    refused(capsys, 1, "bad.npz is damaged, or holds other things than numbers", "run", scaled_sum, "bad.npz")
    np.savez("short.npz", image=image)
    refused(capsys, 2, "input sigma: float32 batch×1 is missing", "run", scaled_sum, "short.npz")
    Path("cut.npz").write_bytes(Path("both.npz").read_bytes()[:60])
    refused(capsys, 1, "cut.npz is not", "run", scaled_sum, "cut.npz")


def test_scores_that_are_no_numbers_are_an_error_and_no_json(model: Path, tmp_path: Path, capsys):
    np.save(tmp_path / "nan.npy", np.full((1, 3, 32, 32), np.nan, np.float32))
    refused(capsys, 1, "the model answers with NaN or infinity", "run", model, tmp_path / "nan.npy", "--json")
