"""Checkpoints of mmsegmentation's UPerNet and of Detectron2's Mask2Former and OneFormer, as training leaves them."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hugging_face_segmenters import CLASSES, image, outputs, randomised, segmenter
from mmseg_head import uper_head
from torch import Tensor, nn

from na_deploy.errors import CheckpointError
from na_deploy.models import ModelConfig, load_model, random_checkpoint
from na_deploy.models.build import build_model
from na_deploy.models.config_text import read_assignments
from na_deploy.models.heads.oneformer import task_vector
from na_deploy.models.heads.transformer import resized

BACKBONE = ModelConfig(
    "nat", 16, (1, 1, 2, 1), (1, 2, 4, 8), 3, ((3,), (2,), (1, 2), (1,)), 3.0, out_indices=(0, 1, 2, 3)
)
DILATIONS = "[[3], [2], [1, 2], [1]]"


# --------------------------------------------------------------------------- mmsegmentation

MMCV = f"""
norm_cfg = dict(type='SyncBN', requires_grad=True)
model = dict(
    type='EncoderDecoder',
    pretrained=None,
    backbone=dict(type='DiNAT', embed_dim=16, dilations={DILATIONS}, drop_path_rate=-0.3),
    decode_head=dict(type='UPerHead', channels=24, num_classes=7, pool_scales=(1, 2, 5), align_corners=True),
    auxiliary_head=dict(type='FCNHead', num_classes=7))
img_norm_cfg = dict(mean=[100.5, 101.5, 102.5], std=[50.5, 51.5, 52.5], to_rgb=True)
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True),
        dict(type='Normalize', mean=[100.5, 101.5, 102.5], std=[50.5, 51.5, 52.5], to_rgb=True)])]
total = max(1, 2)
"""
MMENGINE = f"""
model = dict(
    type='EncoderDecoder',
    data_preprocessor=dict(type='SegDataPreProcessor', mean=[100.5, 101.5, 102.5], std=[50.5, 51.5, 52.5],
        bgr_to_rgb=True, size_divisor=None),
    backbone=dict(type='DiNAT', dilations={DILATIONS}),
    decode_head=dict(type='UPerHead', channels=24, num_classes=7, pool_scales=[1, 2, 5], align_corners=True))
test_pipeline = [dict(type='LoadImageFromFile'), dict(type='Resize', scale=(2048, 512), keep_ratio=True)]
"""
NAMES = tuple(f"class {number}" for number in range(CLASSES))
COLOURS = [[number, 2 * number, 3 * number] for number in range(CLASSES)]
METAS: dict[str, dict[str, Any]] = {
    "mmcv": {"config": MMCV, "CLASSES": NAMES, "PALETTE": COLOURS},
    "mmengine": {"cfg": MMENGINE, "dataset_meta": {"classes": NAMES, "palette": COLOURS}},
}


@pytest.fixture(scope="module")
def upernet() -> tuple[nn.Module, nn.Module, dict[str, Tensor]]:
    """A backbone, mmsegmentation's head and the state dict that training would leave."""
    weights = random_checkpoint(BACKBONE, seed=5)
    backbone = build_model(BACKBONE)
    backbone.load_state_dict(weights)
    head = randomised(uper_head(BACKBONE.widths, 24, CLASSES, pool_scales=(1, 2, 5), align_corners=True))
    state = {f"backbone.{name}": tensor for name, tensor in weights.items()}
    state |= {f"decode_head.{name}": tensor for name, tensor in head.state_dict().items()}
    state["auxiliary_head.conv_seg.weight"] = torch.randn(7, 8, 1, 1)
    return backbone, head, state


@pytest.mark.parametrize("library", METAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_upernet_computes_what_mmsegmentation_s_head_does(
    library: str, dtype: torch.dtype, upernet: tuple[nn.Module, nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    backbone, head, state = upernet
    torch.save({"meta": METAS[library], "state_dict": state}, tmp_path / "upernet.pth")
    loaded = load_model(tmp_path / "upernet.pth")
    images = image(2, 91, 70, dtype)
    with torch.inference_mode():
        scores = head.to(dtype)(backbone.to(dtype)(images))
        wanted = resized(scores, images.shape[2:], align_corners=True)
        found = loaded.module.to(dtype)(images)
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert "left aside, since only training uses it: auxiliary_head" in loaded.warnings


@pytest.mark.parametrize("library", METAS)
def test_what_mm_libraries_store_beside_weights_is_read(
    library: str, upernet: tuple[nn.Module, nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    torch.save({"meta": METAS[library], "state_dict": upernet[2]}, tmp_path / "upernet.pth")
    metadata = load_model(tmp_path / "upernet.pth").metadata
    assert (metadata.task, metadata.head, metadata.labels[6], metadata.palette[2]) == (
        "semantic", "upernet", "class 6", (2, 4, 6)
    )  # fmt: skip
    prepared = metadata.preprocessing
    assert (prepared.mode, prepared.resize, prepared.longest) == ("shortest-side", 512, 2048)
    assert (prepared.mean, prepared.std) == ((100.5, 101.5, 102.5), (50.5, 51.5, 52.5))
    assert prepared.channel_order == "RGB"


def test_configuration_text_is_read_and_never_run() -> None:
    found = read_assignments("import os\nx = dict(a=[1, -2.5, ('b',)], c=os.system('false'))\ny = {'d': None, 2: x}\nz")
    assert found == {"x": {"a": [1, -2.5, ["b"]], "c": None}, "y": {"d": None, 2: None}}
    assert read_assignments("x = dict(") == {}
    assert read_assignments("x = " + "[" * 5000) == {}


def test_another_decode_head_and_another_class_count_are_refused(
    upernet: tuple[nn.Module, nn.Module, dict[str, Tensor]], tmp_path: Path
) -> None:
    for old, new, message in (
        ("type='UPerHead'", "type='SegformerHead'", "decode_head of type SegformerHead; only UPerHead"),
        ("num_classes=7, pool", "num_classes=150, pool", "says 150 classes, the weights of its UPerNet head have 7"),
        ("pool_scales=(1, 2, 5)", "pool_scales=(1, 2)", "pools at 3 scales, its training configuration names 2"),
    ):
        meta = {"config": MMCV.replace(old, new)}
        torch.save({"meta": meta, "state_dict": upernet[2]}, tmp_path / "upernet.pth")
        with pytest.raises(CheckpointError, match=message):
            load_model(tmp_path / "upernet.pth")


# --------------------------------------------------------------------------- Detectron2


def packed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return our weights as the official code names them: queries, keys and values of attention in one."""
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            others = (tensors[name.replace(".q_proj.", f".{part}_proj.")] for part in "kv")
            result[name.replace(".q_proj.", ".in_proj_")] = torch.cat([tensor, *others])
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[name] = tensor
    return result


@pytest.fixture(scope="module", params=["mask2former", "oneformer"])
def detectron(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, nn.Module, Any]:
    """A kind, transformers' model of it, and the same weights as Detectron2 saves them."""
    kind = request.param
    # Detectron2's number of heads is no part of a file; its configurations have 8.
    theirs = segmenter(kind, num_attention_heads=8)
    folder = tmp_path_factory.mktemp(kind)
    theirs.save_pretrained(folder)  # type: ignore[operator]
    official = packed(load_model(folder).module.state_dict())
    official["criterion.empty_weight"] = torch.ones(CLASSES + 1)
    if kind == "oneformer":
        official |= {"text_encoder.ln_final.weight": torch.ones(4), "prompt_ctx.weight": torch.ones(2, 4)}
        official["criterion.logit_scale"] = torch.tensor(2.0)
    return kind, theirs, official


def test_detectron2_s_names_are_the_official_ones(detectron: tuple[str, nn.Module, Any]) -> None:
    kind, _, official = detectron
    predictor, pixels = "sem_seg_head.predictor.", "sem_seg_head.pixel_decoder."
    expected = {
        "backbone.norm3.bias",
        f"{pixels}input_proj.0.1.weight",
        f"{pixels}transformer.level_embed",
        f"{pixels}transformer.encoder.layers.1.self_attn.sampling_offsets.weight",
        f"{pixels}transformer.encoder.layers.1.norm2.bias",
        f"{pixels}adapter_1.norm.weight",
        f"{pixels}layer_1.weight",
        f"{pixels}mask_features.bias",
        f"{predictor}transformer_self_attention_layers.0.self_attn.in_proj_weight",
        f"{predictor}transformer_cross_attention_layers.3.multihead_attn.out_proj.bias",
        f"{predictor}transformer_ffn_layers.0.linear2.weight",
        f"{predictor}decoder_norm.weight",
        f"{predictor}level_embed.weight",
        f"{predictor}mask_embed.layers.2.weight",
    }
    expected |= (
        {f"{predictor}query_feat.weight"}
        if kind == "mask2former"
        else {
            "task_mlp.layers.1.bias",
            f"{predictor}class_input_proj.weight",
            f"{predictor}class_transformer.decoder.layers.1.multihead_attn.in_proj_bias",
            f"{predictor}class_transformer.decoder.norm.bias",
        }
    )
    assert expected <= set(official)


@pytest.mark.parametrize("form", ["pth", "pkl"])
def test_detectron2_s_files_compute_what_transformers_does(
    form: str, detectron: tuple[str, nn.Module, Any], tmp_path: Path
) -> None:
    kind, theirs, official = detectron
    path = tmp_path / f"{kind}_dinat_tiny.{form}"
    if form == "pth":
        torch.save({"model": official, "iteration": 9}, path)
    else:
        arrays = {name: np.asarray(tensor) for name, tensor in official.items()}
        path.write_bytes(pickle.dumps({"model": arrays, "__author__": "third party"}))
    loaded = load_model(path, arch="dinat", dilations="3/2/2/1")
    assert (loaded.metadata.head, loaded.metadata.segment_rule) == (kind, "detectron2")
    images = image(1, 64, 72)
    with torch.inference_mode():
        found = loaded.module(images)
    for mine, wanted in zip(found, outputs(theirs, kind, images), strict=True):
        assert (mine - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert loaded.metadata.thresholds["score"] == 0.8
    assert any(warning.startswith("left aside, since only training uses it: criterion") for warning in loaded.warnings)


def test_entries_that_the_network_does_not_have_are_refused(
    detectron: tuple[str, nn.Module, Any], tmp_path: Path
) -> None:
    kind, _, official = detectron
    extra = {**official, "sem_seg_head.predictor.extra.weight": torch.ones(2)}
    torch.save({"model": extra}, tmp_path / f"{kind}.pth")
    with pytest.raises(CheckpointError, match=r"predictor\.extra\.weight, which a .* head does not"):
        load_model(tmp_path / f"{kind}.pth", arch="dinat", dilations="3/2/2/1")


def test_a_task_s_vector_is_that_of_clip_s_vocabulary() -> None:
    assert task_vector("instance")[0, :7].tolist() == [49406, 518, 10549, 533, 34572, 49407, 0]
    assert task_vector("panoptic")[0, :8].tolist() == [49406, 518, 10549, 533, 1072, 24755, 49407, 0]
    assert task_vector("semantic").shape == (1, 77)
