"""Inputs that are not RGB, and heads under other names: exported with what the file says, or told what to do."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from PIL import Image
from torch import Tensor

from na_deploy import export
from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models import LoadedModel, ModelConfig, ModelMetadata, load_model, random_checkpoint
from na_deploy.models.preprocessing import Preprocessing, official_classification
from na_deploy.runtime.images.prepare import prepare
from na_deploy.runtime.results.classification import score_function_of, top_classes

CONFIG = ModelConfig("nat", 16, (1, 1), (1, 2), 3, ((1,), (1,)), 2.0, num_classes=5)
WEIGHTS = random_checkpoint(CONFIG, seed=4)
BODY = {name: tensor for name, tensor in WEIGHTS.items() if not name.startswith("head.")}


def load(content: Any, folder: Path) -> LoadedModel:
    torch.save(content, folder / "weights.pth")
    return load_model(folder / "weights.pth", arch="nat")


def hugging_face(folder: Path, weights: dict[str, Tensor], processor: dict[str, Any] | None, **config: Any) -> Path:
    """Write a folder in Hugging Face's layout with these weights of one block per level."""
    renamed = {}
    for name, tensor in weights.items():
        if ".attn.qkv." in name:
            root = name.replace("levels.", "encoder.levels.").replace("blocks.", "layers.")
            for part, value in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                renamed["nat." + root.replace(".attn.qkv.", f".attention.self.{part}.")] = value
            continue
        for ours, theirs in (
            ("patch_embed.proj.", "embeddings.patch_embeddings.projection."),
            ("patch_embed.norm.", "embeddings.norm."),
            ("levels.", "encoder.levels."),
            ("blocks.", "layers."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".attn.rpb", ".attention.self.rpb"),
            (".attn.proj.", ".attention.output.dense."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
        ):
            name = name.replace(ours, theirs)
        name = f"layernorm.{name.removeprefix('norm.')}" if name.startswith("norm.") else name
        renamed[name.replace("head.", "classifier.") if name.startswith("head.") else f"nat.{name}"] = tensor
    torch.save(renamed, folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "nat", **config}))
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


@pytest.mark.parametrize(
    ("family", "channels"), [("nat", 1), ("nat", 4), ("dinat_s", 2), ("dinat_s", 4), ("isotropic", 1)]
)
def test_other_channels_are_exported_and_images_are_refused_by_name(channels: int, family: str, tmp_path: Path) -> None:
    depths: Any = {"depths": (1,), "heads": (1,), "dilations": ((1,),)} if family == "isotropic" else {}
    config = replace(CONFIG, family=family, in_channels=channels, patch_size=4, **depths)
    torch.save(random_checkpoint(config), tmp_path / "weights.pth")
    arch = {"nat": "nat", "dinat_s": "dinat_s", "isotropic": "nat_isotropic"}[family]
    report = export(
        tmp_path / "weights.pth",
        tmp_path / "model.onnx",
        arch=arch,
        input=f"1x{channels}x32x32",
        dilations="1" if depths else "1/1",
        dynamic="batch",
    )
    session = ort.InferenceSession(str(report.path))
    assert session.run(None, {"image": np.zeros((2, channels, 32, 32), np.float32)})[0].shape == (2, 5)
    metadata = ModelMetadata.from_props(session.get_modelmeta().custom_metadata_map)
    assert metadata is not None
    assert (metadata.input_size, metadata.preprocessing.prepares_images) == ((1, channels, 32, 32), False)
    with pytest.raises(UsageError, match=f"takes {channels} channels and does not say .* give a .npy array"):
        prepare(Image.new("RGB", (40, 40)), metadata.preprocessing)


def test_an_input_of_other_channels_than_the_weights_is_refused(tmp_path: Path) -> None:
    torch.save(random_checkpoint(replace(CONFIG, in_channels=4)), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match=r"has 3 channels, nat takes 4; give 1x4x32x32"):
        export(tmp_path / "weights.pth", arch="nat", input="1x3x32x32")


def test_hugging_face_s_greyscale_is_prepared_as_its_processor_says(tmp_path: Path) -> None:
    weights = random_checkpoint(replace(CONFIG, in_channels=1))
    processor = {"size": {"height": 32, "width": 48}, "image_mean": [0.5], "image_std": [0.25], "resample": 2}
    loaded = load_model(hugging_face(tmp_path, weights, processor, num_channels=1))
    assert (loaded.config.in_channels, loaded.metadata.preprocessing.mean) == (1, (0.5,))
    pixels = prepare(Image.new("RGB", (100, 80), (255, 255, 255)), loaded.metadata.preprocessing)
    assert pixels.shape == (1, 1, 32, 48)
    np.testing.assert_allclose(pixels, 2.0)
    # A processor for RGB, left over from the pretrained model, does not fit.
    wrong = load_model(hugging_face(tmp_path, weights, {"size": 32}, num_channels=1))
    assert not wrong.metadata.preprocessing.prepares_images


HEADS: dict[str, Callable[[Tensor, Tensor], dict[str, Tensor]]] = {
    "head.1": lambda w, b: {"head.1.weight": w, "head.1.bias": b},
    "head.fc": lambda w, b: {"head.fc.weight": w, "head.fc.bias": b},
    "fc": lambda w, b: {"fc.weight": w, "fc.bias": b},
    "classifier.2": lambda w, b: {"classifier.2.weight": w, "classifier.2.bias": b},
    "head": lambda w, b: {"head.weight": w[..., None, None], "head.bias": b},
}


@pytest.mark.parametrize("name", HEADS)
def test_one_linear_layer_is_the_head_whatever_its_name(name: str, tmp_path: Path) -> None:
    loaded = load({**BODY, **HEADS[name](WEIGHTS["head.weight"], WEIGHTS["head.bias"])}, tmp_path)
    assert loaded.metadata.num_classes == 5
    assert torch.equal(loaded.module.state_dict()["head.weight"], WEIGHTS["head.weight"])
    assert torch.equal(loaded.module.state_dict()["head.bias"], WEIGHTS["head.bias"])
    told = [f"taken to be the linear layer '{name}' alone" in warning for warning in loaded.warnings]
    assert told == ([True] if "." in name else [])


def test_a_head_without_bias_has_one_of_zeros(tmp_path: Path) -> None:
    loaded = load({**BODY, "head.weight": WEIGHTS["head.weight"]}, tmp_path)
    assert torch.equal(loaded.module.state_dict()["head.bias"], torch.zeros(5))


def test_the_head_beside_a_backbone_of_mmpretrain_is_kept(tmp_path: Path) -> None:
    content = {f"backbone.{name}": tensor for name, tensor in BODY.items()}
    content |= {"head.fc.weight": WEIGHTS["head.weight"], "head.fc.bias": WEIGHTS["head.bias"]}
    loaded = load({"meta": {}, "state_dict": content}, tmp_path)
    assert loaded.metadata.task == "classification"
    assert not any("left aside" in warning for warning in loaded.warnings)


@pytest.mark.parametrize(
    "head",
    [
        {"head.0.weight": torch.randn(8, 32), "head.2.weight": torch.randn(5, 8)},
        {"head.norm.weight": torch.ones(32), "head.fc.weight": torch.randn(5, 32)},
        {"head.weight_g": torch.randn(5, 1), "head.weight_v": torch.randn(5, 32)},
    ],
    ids=["two layers", "a norm", "weight norm"],
)
def test_heads_of_several_layers_say_what_to_do(head: dict[str, Tensor], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has a head of other layers .*export the module itself with package"):
        load({**BODY, **head}, tmp_path)
    outside = {f"backbone.{name}": tensor for name, tensor in BODY.items()} | head
    loaded = load(outside, tmp_path)
    assert loaded.metadata.task == "features"
    assert any("the model gives pooled features" in warning for warning in loaded.warnings)


def test_one_logit_and_several_labels_get_the_sigmoid(tmp_path: Path) -> None:
    one = load(random_checkpoint(replace(CONFIG, num_classes=1)), tmp_path)
    assert one.metadata.scores == "sigmoid"
    logits = np.array([[-1.5]], np.float32)
    assert score_function_of(None, logits) == score_function_of(one.metadata, logits) == "sigmoid"
    ((best,),) = top_classes(logits, scores="sigmoid")
    assert best.probability == pytest.approx(1 / (1 + np.exp(1.5)))
    folder = tmp_path / "several"
    folder.mkdir()
    several = load_model(hugging_face(folder, WEIGHTS, None, problem_type="multi_label_classification"))
    assert several.metadata.scores == "sigmoid"
    assert ModelMetadata.from_props(several.metadata.to_props()) == several.metadata
    logits = np.array([[3.0, -800.0, 800.0]], np.float32)
    assert [p.probability for p in top_classes(logits, scores="sigmoid")[0]] == pytest.approx(
        [1.0, 1 / (1 + np.exp(-3)), 0.0]
    )
    usual = load_model(hugging_face(folder, WEIGHTS, None, problem_type="single_label_classification"))
    assert (usual.metadata.scores, usual.metadata.task) == ("softmax", "classification")
    numbers = load_model(hugging_face(folder, WEIGHTS, None, problem_type="regression"))
    assert numbers.metadata.task == "regression"


def test_files_from_before_scores_were_recorded_follow_the_same_rule() -> None:
    props = ModelMetadata("nat", num_classes=1, scores="sigmoid").to_props()
    del props["na_deploy.scores"]
    assert ModelMetadata.from_props(props) == ModelMetadata("nat", num_classes=1, scores="sigmoid")


SIZES = [(512, 800), (224, 224), (384, 256), (300, 301)]
IMAGES = [(640, 480), (480, 640), (300, 2000), (2000, 300), (801, 513)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("image", IMAGES)
def test_images_cover_the_input_whatever_its_proportions(size: tuple[int, int], image: tuple[int, int]) -> None:
    preprocessing = replace(official_classification().with_size(size), mean=(0.0,) * 3, std=(1.0,) * 3)
    assert (prepare(Image.new("RGB", image, "white"), preprocessing) == 1.0).all()


def test_the_size_of_the_export_is_in_the_metadata(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    path = export(tmp_path / "weights.pth", tmp_path / "model.onnx", arch="nat", input="1x3x64x96").path
    metadata = ModelMetadata.from_props({entry.key: entry.value for entry in onnx.load(path).metadata_props})
    assert metadata is not None
    assert (metadata.preprocessing.size, metadata.preprocessing.resize) == ((64, 96), 73)
    assert metadata.preprocessing.cover == (73, 109)
    assert metadata.input_size == (1, 3, 64, 96)


def test_covering_is_that_of_timm_s_evaluation_transform() -> None:
    # timm: scale_size = floor(size / crop_pct); ResizeKeepRatio with the smaller ratio, rounded; then CenterCrop.
    preprocessing = Preprocessing(size=(512, 800), resize=585)
    assert preprocessing.cover == (int(512 / 0.875), int(800 / 0.875))
    gradient = Image.fromarray(np.linspace(0, 255, 1000 * 700).reshape(700, 1000).astype(np.uint8)).convert("RGB")
    ratio = min(700 / 585, 1000 / 914)
    scaled = gradient.resize((round(1000 / ratio), round(700 / ratio)), Image.Resampling.BICUBIC)
    left, top = round((scaled.width - 800) / 2), round((scaled.height - 512) / 2)
    expected = np.asarray(scaled.crop((left, top, left + 800, top + 512)), np.float32)
    found = prepare(gradient, replace(preprocessing, mean=(0.0,) * 3, std=(1.0,) * 3, scale=1.0))
    np.testing.assert_array_equal(found[0].transpose(1, 2, 0), expected)


@pytest.mark.parametrize(
    ("pipeline", "expected"),
    [
        (
            "[dict(type='ResizeEdge', scale=40, edge='short', interpolation='bicubic'), "
            "dict(type='CenterCrop', crop_size=32)]",
            Preprocessing((32, 32), "resize-then-crop", 40, (9.0,) * 3, (8.0,) * 3, 1.0, "bicubic", "BGR"),
        ),
        (
            "[dict(type='Resize', scale=(48, 32))]",
            Preprocessing((32, 48), "square", None, (9.0,) * 3, (8.0,) * 3, 1.0, "bilinear", "BGR"),
        ),
        ("[dict(type='RandomErasing')]", official_classification(224)),
    ],
)
def test_mmpretrain_s_pipeline_and_class_names_are_taken(pipeline: str, expected: Preprocessing, tmp_path: Path):
    channels = "data_preprocessor = dict(mean=[9.0, 9.0, 9.0], std=[8.0, 8.0, 8.0], to_rgb=False)"
    text = f"{channels}\ntest_pipeline = {pipeline}\n"
    meta = {"cfg": text, "dataset_meta": {"classes": list("abcde")}}
    metadata = load({"meta": meta, "state_dict": WEIGHTS}, tmp_path).metadata
    assert metadata.preprocessing == expected
    assert metadata.labels == dict(enumerate("abcde"))
