"""Hugging Face checkpoints: our network, loaded from their files, computes what transformers 4.53.3 did.

Their model code runs here unchanged; only the two NATTEN functions it calls, which no current NATTEN has, are ours
(tests/support/natten_014.py).
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import transformers.utils.import_utils
from natten_014 import natten2dav, natten2dqkrpb
from torch import Tensor

from na_deploy.errors import CheckpointError
from na_deploy.models import load_model

transformers.utils.import_utils._natten_available = False  # or it imports functions that NATTEN has no more
from transformers.models.deprecated.nat import configuration_nat, modeling_nat  # noqa: E402
from transformers.models.dinat import configuration_dinat, modeling_dinat  # noqa: E402

SIZES: dict[str, Any] = {
    "embed_dim": 16,
    "depths": [2, 1, 2, 1],
    "num_heads": [1, 2, 4, 8],
    "kernel_size": 3,
    "num_labels": 7,
}
DILATIONS = [[1, 4], [3], [1, 2], [1]]


@dataclass
class Kind:
    """One of Nat and Dinat, with its classes in transformers."""

    name: str
    configuration: Callable[..., Any]
    modules: Any
    options: dict[str, Any]

    def build(self, suffix: str, **changes: Any) -> Any:
        """A model of random weights, biases and norms included."""
        configuration = self.configuration(**{**SIZES, **self.options, **changes})
        model = getattr(self.modules, f"{self.name.capitalize()}{suffix}")(configuration).eval()
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                fan_in = parameter[0].numel() if parameter.dim() > 1 and "rpb" not in name else 1
                parameter.copy_(noise * fan_in**-0.5 if parameter.dim() > 1 else 0.2 * noise + name.endswith("weight"))
        return model


@pytest.fixture(params=["nat", "dinat"])
def kind(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Kind:
    modules = modeling_nat if request.param == "nat" else modeling_dinat
    configuration = configuration_nat.NatConfig if request.param == "nat" else configuration_dinat.DinatConfig
    monkeypatch.setattr(modules, "natten2dqkrpb", natten2dqkrpb)
    monkeypatch.setattr(modules, "natten2dav", natten2dav)
    monkeypatch.setattr(modules, "requires_backends", lambda *_: None)
    return Kind(request.param, configuration, modules, {"dilations": DILATIONS} if request.param == "dinat" else {})


def image(height: int = 96, width: int = 70) -> Tensor:
    return torch.randn(2, 3, height, width, generator=torch.Generator().manual_seed(2))


def test_the_library_is_the_last_good_one() -> None:
    assert transformers.__version__ == "4.53.3"


@pytest.mark.parametrize("layer_scale", [0.0, 0.1])
def test_a_classifier_folder_computes_the_same(kind: Kind, layer_scale: float, tmp_path: Path) -> None:
    theirs = kind.build("ForImageClassification", layer_scale_init_value=layer_scale)
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.layer_scale == (layer_scale > 0)
    assert ours.config.dilations == (
        tuple(map(tuple, DILATIONS)) if kind.name == "dinat" else ((1, 1), (1,), (1, 1), (1,))
    )
    with torch.inference_mode():
        torch.testing.assert_close(ours.module(image()), theirs(image()).logits, rtol=1e-4, atol=1e-5)


def test_maps_smaller_than_the_window_are_padded_alike(kind: Kind, tmp_path: Path) -> None:
    theirs = kind.build("ForImageClassification")
    theirs.save_pretrained(tmp_path)
    small = image(37, 33)
    with torch.inference_mode():
        torch.testing.assert_close(load_model(tmp_path).module(small), theirs(small).logits, rtol=1e-4, atol=1e-5)


def test_a_model_without_a_head_returns_pooled_features(kind: Kind, tmp_path: Path) -> None:
    theirs = kind.build("Model")
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert (ours.config.num_classes, ours.metadata.task) == (0, "features")
    with torch.inference_mode():
        torch.testing.assert_close(ours.module(image()), theirs(image()).pooler_output, rtol=1e-4, atol=1e-5)


def test_a_backbone_returns_the_same_maps(kind: Kind, tmp_path: Path) -> None:
    theirs = kind.build("Backbone", out_features=["stage1", "stage3", "stage4"])
    theirs.save_pretrained(tmp_path)
    ours = load_model(tmp_path)
    assert ours.config.out_indices == (0, 2, 3)
    with torch.inference_mode():
        maps, expected = ours.module(image()), theirs(image()).feature_maps
    assert len(maps) == len(expected) == 3
    for mine, wanted in zip(maps, expected, strict=True):
        torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


def test_shards_and_pytorch_files_are_read_like_one_safetensors_file(kind: Kind, tmp_path: Path) -> None:
    theirs = kind.build("ForImageClassification")
    folders = [tmp_path / name for name in ("whole", "shards", "pickled")]
    theirs.save_pretrained(folders[0])
    theirs.save_pretrained(folders[1], max_shard_size="50KB")
    theirs.save_pretrained(folders[2], safe_serialization=False)
    assert len(list(folders[1].glob("*.safetensors"))) > 2
    assert (folders[2] / "pytorch_model.bin").is_file()
    whole, *others = (load_model(folder).module.state_dict() for folder in folders)
    for other in others:
        assert whole.keys() == other.keys()
        assert all(torch.equal(whole[name], other[name]) for name in whole)
    shard = next(folders[1].glob("*-00002-of-*"))
    shard.unlink()
    with pytest.raises(CheckpointError, match=f"lists {shard.name}, which is missing"):
        load_model(folders[1])


def test_the_weights_file_alone_finds_its_configuration(tmp_path: Path, kind: Kind) -> None:
    theirs = kind.build("ForImageClassification")
    theirs.save_pretrained(tmp_path)
    assert load_model(tmp_path / "model.safetensors").config.is_dilated == (kind.name == "dinat")


def test_labels_and_preprocessing_come_from_the_folder(kind: Kind, tmp_path: Path) -> None:
    names = {index: f"bird {index}" for index in range(7)}
    kind.build("ForImageClassification", id2label=names).save_pretrained(tmp_path)
    loaded = load_model(tmp_path)
    assert loaded.metadata.labels == names
    assert (loaded.metadata.preprocessing.mode, loaded.input_size) == ("square", (224, 224))
    content: dict[str, Any] = {"size": {"shortest_edge": 292}, "do_center_crop": True, "crop_size": 256}
    content |= {"resample": 2, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(content))
    preprocessing = load_model(tmp_path).metadata.preprocessing
    assert (preprocessing.size, preprocessing.resize) == ((256, 256), 292)
    assert (preprocessing.interpolation, preprocessing.mean, preprocessing.std) == (
        "bilinear",
        (0.5,) * 3,
        (0.25,) * 3,
    )


def test_other_models_are_refused(tmp_path: Path, kind: Kind) -> None:
    kind.build("Model").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for changes, message in (
        ({"model_type": "swin"}, "describes the model type 'swin', expected 'nat' or 'dinat'"),
        ({"hidden_act": "relu"}, "activation 'relu', expected 'gelu'"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path)
    (tmp_path / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"holds no config\.json"):
        load_model(tmp_path)
