"""Whole segmenters from Hugging Face folders compute what transformers 4.53.3 computes, and bad ones are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from hugging_face_segmenters import CLASSES, DILATIONS, KINDS, backbone_config, image, outputs, segmenter
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models import LoadedModel, load_model
from na_deploy.models.heads.mask2former import AttentionMask

TASKS = ("semantic", "instance", "panoptic")


@pytest.fixture(scope="module")
def theirs() -> dict[str, nn.Module]:
    return {kind: segmenter(kind) for kind in KINDS}


@pytest.fixture(scope="module")
def folders(theirs: dict[str, nn.Module], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("segmenters")
    for kind, model in theirs.items():
        model.save_pretrained(root / kind)  # type: ignore[operator]
    return {kind: root / kind for kind in theirs}


def assert_same(ours: nn.Module, theirs: nn.Module, kind: str, images: Tensor, task: str = "panoptic") -> None:
    with torch.inference_mode():
        found = ours(images)
    found = (found,) if isinstance(found, Tensor) else found
    for mine, wanted in zip(found, outputs(theirs, kind, images, task), strict=True):
        assert mine.shape == wanted.shape
        assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def edited(folder: Path, target: Path, change: Callable[[dict[str, Any], dict[str, Tensor]], None]) -> Path:
    """Copy a folder with another configuration or other weights."""
    config, weights = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    change(config, weights)
    target.mkdir(exist_ok=True)
    (target / "config.json").write_text(json.dumps(config))
    save_file(weights, target / "model.safetensors")
    return target


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch", "height", "width"), [(1, 96, 128), (2, 75, 53)])
def test_a_whole_segmenter_computes_the_same(
    kind: str, batch: int, height: int, width: int, theirs: dict[str, nn.Module], folders: dict[str, Path]
) -> None:
    loaded = load_model(folders[kind])
    assert loaded.config.dilations == tuple(map(tuple, DILATIONS))
    assert (loaded.metadata.head, loaded.metadata.num_classes) == (kind, CLASSES)
    assert_same(loaded.module, theirs[kind], kind, image(batch, height, width))


@pytest.mark.parametrize("kind", KINDS)
def test_it_does_so_in_float64(kind: str, folders: dict[str, Path], theirs: dict[str, nn.Module]) -> None:
    loaded = load_model(folders[kind])
    mine = loaded.module.double()
    try:
        assert_same(mine, theirs[kind].double(), kind, image(1, 64, 72, torch.float64))
    finally:
        theirs[kind].float()


@pytest.mark.parametrize("task", TASKS)
def test_oneformer_answers_the_task_it_is_asked(
    task: str, folders: dict[str, Path], theirs: dict[str, nn.Module]
) -> None:
    loaded = load_model(folders["oneformer"], task=task)
    assert loaded.metadata.task == task
    assert_same(loaded.module, theirs["oneformer"], "oneformer", image(1, 64, 72), task)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("mask2former", {"pre_norm": True}),
        ("mask2former", {"common_stride": 8}),
        ("oneformer", {"pre_norm": True}),
        ("oneformer", {"use_task_norm": False, "layer_norm_eps": 1e-3}),
        ("upernet", {"pool_scales": [1, 5]}),
    ],
)
def test_variants_of_configurations_are_followed(kind: str, options: dict[str, Any], tmp_path: Path) -> None:
    model = segmenter(kind, **options)
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    assert_same(load_model(tmp_path).module, model, kind, image(1, 64, 72))


def test_nat_carries_a_head_too(tmp_path: Path) -> None:
    model = segmenter("mask2former", backbone_config("nat"))
    model.save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_model(tmp_path)
    assert not loaded.config.is_dilated
    assert_same(loaded.module, model, "mask2former", image(1, 64, 72))


def test_shards_and_pytorch_files_are_read_like_one_file(theirs: dict[str, nn.Module], tmp_path: Path) -> None:
    model: Any = theirs["maskformer"]
    model.save_pretrained(tmp_path / "shards", max_shard_size="100KB")
    model.save_pretrained(tmp_path / "pickled", safe_serialization=False)
    assert len(list((tmp_path / "shards").glob("*.safetensors"))) > 2
    for folder in ("shards", "pickled"):
        assert_same(load_model(tmp_path / folder).module, model, "maskformer", image(1, 64, 72))


def test_the_backbone_alone_is_loaded_when_it_is_asked_for(
    folders: dict[str, Path], theirs: dict[str, nn.Module]
) -> None:
    loaded = load_model(folders["oneformer"], backbone=True)
    assert (loaded.metadata.task, loaded.metadata.head, loaded.head) == ("backbone", "", None)
    assert "only the backbone of oneformer is loaded; its OneFormer head is not" in loaded.warnings
    encoder: Any = theirs["oneformer"].get_submodule("model.pixel_level_module.encoder")
    images = image(1, 64, 72)
    with torch.inference_mode():
        for mine, wanted in zip(loaded.module(images), encoder(images).feature_maps, strict=True):
            torch.testing.assert_close(mine, wanted, rtol=1e-4, atol=1e-5)


# --------------------------------------------------------------------------- metadata


def test_names_and_colours_follow_from_id2label(folders: dict[str, Path], tmp_path: Path) -> None:
    def rename(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        config["id2label"] = {str(number): f"thing {number}" for number in range(CLASSES)}

    metadata = load_model(edited(folders["upernet"], tmp_path, rename)).metadata
    assert metadata.labels[6] == "thing 6"
    assert (metadata.task, metadata.palette, metadata.segment_rule) == ("semantic", (), "transformers")


def test_known_class_counts_are_named_after_their_data_set_and_told(tmp_path: Path) -> None:
    segmenter("mask2former", num_labels=133).save_pretrained(tmp_path)  # type: ignore[operator]
    loaded = load_model(tmp_path)
    assert (loaded.metadata.labels[0], loaded.metadata.task) == ("person", "panoptic")
    assert loaded.metadata.things is not None
    assert len(loaded.metadata.things) == 80
    assert len(loaded.metadata.palette) == 133
    assert any("does not name its 133 classes" in warning for warning in loaded.warnings)
    assert any("the task is panoptic, since nothing says another" in warning for warning in loaded.warnings)


def test_a_folder_s_name_tells_the_task(folders: dict[str, Path], tmp_path: Path) -> None:
    named = edited(folders["mask2former"], tmp_path / "mask2former-dinat-coco-instance", lambda *_: None)
    assert load_model(named).metadata.task == "instance"
    assert load_model(named, task="semantic").metadata.task == "semantic"


def test_a_missing_preprocessor_file_is_told(folders: dict[str, Path]) -> None:
    loaded = load_model(folders["mask2former"])
    assert any("comes without preprocessor_config.json" in warning for warning in loaded.warnings)
    assert loaded.metadata.preprocessing.mode == "shortest-side"


# --------------------------------------------------------------------------- refusals


def test_a_head_that_lacks_weights_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    def lose(config: dict[str, Any], weights: dict[str, Tensor]) -> None:
        del weights["model.pixel_level_module.decoder.encoder.layers.1.self_attn.value_proj.weight"]

    with pytest.raises(CheckpointError, match=r"lacks sem_seg_head.*value_proj\.weight.*the file is incomplete"):
        load_model(edited(folders["mask2former"], tmp_path, lose))


@pytest.mark.parametrize(("kind", "width"), [("mask2former", "feature_size"), ("oneformer", "conv_dim")])
def test_projections_that_transformers_never_saves_are_missed(kind: str, width: str, tmp_path: Path) -> None:
    segmenter(kind, **{width: 64}).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(
        CheckpointError, match="transformers does not save them where the pixel decoder and the queries"
    ):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("mask2former", {"id2label": {str(n): str(n) for n in range(4)}}, "says 4 classes, the weights .* have 7"),
        ("mask2former", {"num_queries": 30}, "says 30 queries, the weights of its Mask2Former head have 9"),
        ("mask2former", {"decoder_layers": 9}, "says 8 layers, the weights .* have 4"),
        ("oneformer", {"hidden_dim": 64}, "says 64 hidden width, the weights .* have 32"),
        ("upernet", {"hidden_size": 512}, "says 512 channels, the weights .* have 24"),
        ("upernet", {"pool_scales": [1, 2]}, "pools at 4 scales, config.json names 2"),
        ("mask2former", {"activation_function": "gelu"}, "gives activation_function as 'gelu', which is not supported"),
    ],
)
def test_a_configuration_that_contradicts_the_weights_is_refused(
    kind: str, changes: dict[str, Any], message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_model(edited(folders[kind], tmp_path, lambda config, _: config.update(changes)))


def test_a_backbone_of_another_family_is_named_and_refused(tmp_path: Path) -> None:
    swin = transformers.SwinConfig(
        embed_dim=16,
        depths=[1, 1, 1, 1],
        num_heads=[1, 2, 4, 8],
        window_size=4,
        out_features=backbone_config().out_features,
    )
    segmenter("mask2former", swin).save_pretrained(tmp_path)  # type: ignore[operator]
    with pytest.raises(
        CheckpointError, match=r"a Mask2Former on another backbone than NAT or DiNAT: .* Swin Transformer"
    ):
        load_model(tmp_path)


def test_a_task_that_a_model_does_not_do_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(UsageError, match="is a UPerNet, which does semantic segmentation only, not panoptic"):
        load_model(folders["upernet"], task="panoptic")
    with pytest.raises(UsageError, match="is no segmenter"):
        load_model(folders["upernet"], task="semantic", backbone=True)
    with pytest.raises(UsageError, match="has a head of 7 classes, not 150"):
        load_model(folders["upernet"], num_classes=150)


def test_a_query_without_a_mask_looks_everywhere(folders: dict[str, Path]) -> None:
    loaded: LoadedModel = load_model(folders["mask2former"])
    hidden = torch.ones(1, 9, 6, dtype=torch.bool)
    layer: Any = loaded.module.get_submodule("sem_seg_head.predictor.transformer_cross_attention_layers.0")
    x, memory = torch.randn(1, 9, 32), torch.randn(1, 6, 32)
    codes = places = torch.zeros(1, 1, 32)
    torch.testing.assert_close(
        layer(x, codes, memory, places, hidden), layer(x, codes, memory, places, torch.zeros_like(hidden))
    )
    assert sum(isinstance(module, AttentionMask) for module in loaded.module.modules()) == 4
