"""Checkpoints of every wrapping are read, and damaged or foreign files are refused in one sentence."""

import argparse
import hashlib
import io
import pickle
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ema_pytorch import EMA
from safetensors.torch import save_file
from torch.optim.swa_utils import AveragedModel

from na_deploy.errors import CheckpointError, UsageError
from na_deploy.models import ModelConfig, build_model, get_model, load_model, random_checkpoint

CONFIG = ModelConfig("nat", 48, (1, 2, 3, 1), (2, 4, 8, 16), 5, ((1,), (1, 2), (1, 2, 1), (1,)), 2.5, num_classes=10)
DILATIONS = "1/1,2/1,2,1/1"
WEIGHTS = random_checkpoint(CONFIG, seed=7)
BACKBONE = replace(CONFIG, num_classes=0, out_indices=(0, 1, 2, 3))


def load(path: Path, **options: Any) -> Any:
    return load_model(path, dilations=options.pop("dilations", DILATIONS), **options)


def prefixed(prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: tensor for name, tensor in WEIGHTS.items()}


def renamed(part: str, wrapped: str) -> dict[str, torch.Tensor]:
    return {name.replace(part, wrapped): tensor for name, tensor in WEIGHTS.items()}


def averaged() -> torch.nn.Module:
    module = build_model(CONFIG)
    module.load_state_dict(WEIGHTS)
    return AveragedModel(module)


WRAPPINGS: dict[str, Callable[[], Any]] = {
    "bare": lambda: WEIGHTS,
    "state_dict": lambda: {"epoch": 3, "arch": "custom", "state_dict": WEIGHTS, "optimizer": {"lr": 0.1}},
    "model": lambda: {"model": WEIGHTS, "args": argparse.Namespace(lr=0.1, output=Path("runs"))},
    "model_ema": lambda: {"model_ema": WEIGHTS},
    "state_dict_ema": lambda: {"state_dict_ema": WEIGHTS, "metric": np.float64(83.2), "rng": np.arange(3)},
    "teacher": lambda: {"teacher": WEIGHTS},
    "module.": lambda: {"state_dict": prefixed("module.")},
    "backbone.": lambda: prefixed("backbone."),
    "encoder.": lambda: {"model": prefixed("encoder.")},
    "module.backbone.": lambda: {"teacher": prefixed("module.backbone.")},
    "_orig_mod.": lambda: prefixed("_orig_mod."),
    "compiled blocks": lambda: renamed(".blocks.", ".blocks._orig_mod."),
    "FSDP": lambda: renamed("levels.", "_fsdp_wrapped_module.levels._checkpoint_wrapped_module."),
    "model_state_dict": lambda: {"epoch": 3, "model_state_dict": prefixed("module._orig_mod.")},
    "params_ema": lambda: {"params_ema": WEIGHTS},
    "averaged": lambda: averaged().state_dict(),
    "nested": lambda: {"model": {"state_dict": WEIGHTS}},
}


@pytest.mark.parametrize("wrapping", WRAPPINGS)
def test_wrappers_and_prefixes_are_undone(wrapping: str, tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"
    torch.save(WRAPPINGS[wrapping](), path)
    loaded = load(path)
    assert loaded.config == CONFIG
    state = loaded.module.state_dict()
    assert state.keys() == WEIGHTS.keys()
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)
    assert loaded.warnings == []
    assert not loaded.module.training
    assert loaded.metadata.source_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert loaded.metadata.source_name == "weights.pth"


def test_safetensors_and_the_old_format_hold_the_same(tmp_path: Path) -> None:
    save_file(WEIGHTS, tmp_path / "weights.safetensors")
    torch.save(WEIGHTS, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("weights.safetensors", "old.pth"):
        state = load(tmp_path / name).module.state_dict()
        assert all(torch.equal(state[key], WEIGHTS[key]) for key in WEIGHTS)


def test_a_folder_of_the_hugging_face_cache_has_its_model_s_name(tmp_path: Path) -> None:
    folder = tmp_path / "models--shi-labs--nat-mini-in1k-224" / "snapshots" / "0123abcd"
    folder.mkdir(parents=True)
    torch.save({name: torch.nn.Parameter(tensor) for name, tensor in WEIGHTS.items()}, folder / "weights.pth")
    assert load(folder / "weights.pth").metadata.source_name == "shi-labs/nat-mini-in1k-224"


def test_the_averaged_weights_are_taken_and_said_so(tmp_path: Path) -> None:
    other = random_checkpoint(CONFIG, seed=8)
    torch.save({"state_dict": other, "state_dict_ema": WEIGHTS}, tmp_path / "both.pth")
    loaded = load(tmp_path / "both.pth")
    assert torch.equal(loaded.module.state_dict()["head.weight"], WEIGHTS["head.weight"])
    assert any("'state_dict_ema' was taken" in warning for warning in loaded.warnings)


def test_averages_of_ema_pytorch_are_taken_and_said_so(tmp_path: Path) -> None:
    module = build_model(CONFIG)
    module.load_state_dict(random_checkpoint(CONFIG, seed=8))
    ema = EMA(module)
    ema.ema_model.load_state_dict(WEIGHTS)
    for content in (ema.state_dict(), {"ema": ema.state_dict(), "model": module.state_dict()}):
        torch.save(content, tmp_path / "both.pth")
        loaded = load(tmp_path / "both.pth")
        assert torch.equal(loaded.module.state_dict()["head.weight"], WEIGHTS["head.weight"])
        assert any("'ema_model' was taken" in warning for warning in loaded.warnings)


def test_averages_stored_without_dots_are_taken_and_said_so(tmp_path: Path) -> None:
    trained = {f"model.{name}": tensor for name, tensor in random_checkpoint(CONFIG, seed=8).items()}
    flat = {f"model_ema.{name.replace('.', '')}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"state_dict": {**trained, **flat, "model_ema.num_updates": torch.tensor(3)}}, tmp_path / "lit.ckpt")
    loaded = load(tmp_path / "lit.ckpt")
    assert all(torch.equal(loaded.module.state_dict()[name], WEIGHTS[name]) for name in WEIGHTS)
    assert any("(model, model_ema); 'model_ema' was taken" in warning for warning in loaded.warnings)


def test_flat_parameters_are_named_for_what_they_are(tmp_path: Path) -> None:
    torch.save({"_fsdp_wrapped_module._flat_param": torch.randn(9)}, tmp_path / "shard.pth")
    with pytest.raises(CheckpointError, match=r"holds FSDP's flat parameters .*StateDictType"):
        load(tmp_path / "shard.pth")


def test_half_precision_weights_are_read_as_float32(tmp_path: Path) -> None:
    torch.save({name: tensor.half() for name, tensor in WEIGHTS.items()}, tmp_path / "half.pth")
    loaded = load(tmp_path / "half.pth")
    assert {parameter.dtype for parameter in loaded.module.parameters()} == {torch.float32}
    assert any("stored as float16" in warning for warning in loaded.warnings)


def test_a_detector_gives_its_backbone(tmp_path: Path) -> None:
    weights = {f"backbone.{name}": tensor for name, tensor in random_checkpoint(BACKBONE, seed=7).items()}
    weights["rpn_head.conv.weight"] = torch.randn(4, 4)
    weights["neck.conv.weight"] = torch.randn(4, 4)
    torch.save({"meta": {}, "state_dict": weights}, tmp_path / "detector.pth")
    with pytest.raises(CheckpointError, match=r"only the backbone of .* its other parts \(neck, rpn_head\) are not"):
        load(tmp_path / "detector.pth")
    loaded = load(tmp_path / "detector.pth", backbone=True)
    assert loaded.config == BACKBONE
    assert loaded.metadata.task == "backbone"
    assert "only the backbone of detector.pth is loaded; left aside: neck, rpn_head" in loaded.warnings
    assert (loaded.metadata.preprocessing.scale, loaded.metadata.preprocessing.mode) == (1.0, "fit")
    some = load(tmp_path / "detector.pth", out_indices=(1, 3))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    for mine, full in zip(some.module(image), loaded.module(image)[1::2], strict=True):
        torch.testing.assert_close(mine, full)


def test_a_classifier_gives_a_backbone_with_neutral_norms(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    loaded = load(tmp_path / "weights.pth", backbone=True)
    assert loaded.config == BACKBONE
    assert any("norms; they are set to weight 1 and bias 0" in warning for warning in loaded.warnings)
    maps = loaded.module(torch.randn(1, 3, 96, 64))
    assert [tuple(m.shape[1:]) for m in maps] == [(48, 24, 16), (96, 12, 8), (192, 6, 4), (384, 3, 2)]
    torch.testing.assert_close(maps[0].mean(1), torch.zeros(1, 24, 16), atol=1e-5, rtol=0)


def test_the_head_is_checked_and_can_be_left_away(tmp_path: Path) -> None:
    torch.save(WEIGHTS, tmp_path / "weights.pth")
    assert load(tmp_path / "weights.pth", num_classes=10).metadata.num_classes == 10
    assert load(tmp_path / "weights.pth", num_classes=0).module(torch.randn(1, 3, 64, 64)).shape == (1, 384)
    with pytest.raises(UsageError, match="has a head of 10 classes, not 1000"):
        load(tmp_path / "weights.pth", num_classes=1000)


class Payload:
    """Pickles into a call that would write a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_of_pickled_code_is_refused_and_not_run(zipped: bool, tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    torch.save(Payload(trap), path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(CheckpointError, match=r"holds a Python object .*torch\.save\(model\.state_dict\(\)") as error:
        load(path)
    assert "\n" not in str(error.value)
    assert not trap.exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_pickled_code_beside_weights_is_named_and_not_run(zipped: bool, tmp_path: Path) -> None:
    path, trap = tmp_path / "evil.pth", tmp_path / "trap"
    content = {"state_dict": WEIGHTS, "extra": Payload(trap)}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    loaded = load(path)
    assert torch.equal(loaded.module.state_dict()["head.weight"], WEIGHTS["head.weight"])
    assert any("holds Python objects (builtins.getattr" in warning for warning in loaded.warnings)
    assert not trap.exists()


def test_a_plain_pickle_is_refused_and_not_run(tmp_path: Path) -> None:
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"model": Payload(tmp_path / "trap")}))
    with pytest.raises(CheckpointError):
        load(tmp_path / "plain.pkl")
    assert not (tmp_path / "trap").exists()


def saved(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("readme.txt", "hello")
    return buffer.getvalue()


def script() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def without(name: str) -> dict[str, torch.Tensor]:
    return {key: tensor for key, tensor in WEIGHTS.items() if key != name}


def spoiled(name: str, value: float) -> dict[str, torch.Tensor]:
    tensor = WEIGHTS[name].clone()
    tensor.view(-1)[5] = value
    return {**WEIGHTS, name: tensor}


BAD_FILES: dict[str, tuple[str, Callable[[], bytes], str]] = {
    "empty": ("x.pth", lambda: b"", "is empty"),
    "truncated": ("x.pth", lambda: saved(WEIGHTS)[:-1000], "is truncated"),
    "cut short": ("x.pth", lambda: saved(WEIGHTS)[:30], "is truncated"),
    "an image": ("x.pth", lambda: b"\xff\xd8\xff\xe0" + bytes(100), "is a JPEG image, not a checkpoint"),
    "a pointer": ("x.pth", lambda: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
    "text": ("x.pth", lambda: b"just some words, long enough to be read", "is not a checkpoint"),
    "noise": (
        "x.pth",
        lambda: bytes(np.random.default_rng(0).integers(0, 256, 999, np.uint8)),
        "is not a checkpoint",
    ),
    "an archive": ("x.pth", archive, r"is an archive but not one of torch\.save's"),
    "TorchScript": ("x.pt", script, "is a TorchScript program"),
    "ONNX": ("x.onnx", lambda: b"\x08\x0a", "is already an ONNX model"),
    "broken safetensors": (
        "x.safetensors",
        lambda: b"\x10\x00\x00\x00\x00\x00\x00\x00{}",
        "no safetensors file",
    ),
    "a number": ("x.pth", lambda: saved(3), "holds a int, expected weights by name"),
    "a tensor": ("x.pth", lambda: saved(torch.zeros(2)), "holds a Tensor, expected weights by name"),
    "no weights": ("x.pth", lambda: saved({"epoch": 3, "lr": 0.1}), "holds epoch, lr and no weights"),
    "another network": (
        "x.pth",
        lambda: saved({"conv1.weight": torch.randn(2, 2)}),
        "holds no NAT or DiNAT network: .*conv1.weight",
    ),
    "Swin": (
        "x.pth",
        lambda: saved({"layers.0.blocks.0.attn.relative_position_bias_table": torch.randn(2, 2)}),
        "Swin",
    ),
    "NaN": (
        "x.pth",
        lambda: saved(spoiled("levels.2.blocks.1.mlp.fc1.weight", float("nan"))),
        "NaN values in levels.2",
    ),
    "infinity": ("x.pth", lambda: saved(spoiled("head.bias", float("inf"))), "infinite values in head.bias"),
    "a missing weight": (
        "x.pth",
        lambda: saved(without("levels.1.blocks.1.norm2.bias")),
        "lacks levels.1.blocks.1.norm2.bias",
    ),
    "a missing bias table": (
        "x.pth",
        lambda: saved(without("levels.0.blocks.0.attn.rpb")),
        "lacks levels.0.blocks.0.attn.rpb, from which",
    ),
    "no bias tables": (
        "x.pth",
        lambda: saved({name: tensor for name, tensor in WEIGHTS.items() if not name.endswith("rpb")}),
        r"attention without relative position bias \(no attn\.rpb\).* export the module itself",
    ),
    "a window for each level": (
        "x.pth",
        lambda: saved({**WEIGHTS, "levels.1.blocks.0.attn.rpb": torch.randn(4, 5, 5)}),
        "has windows of 5×5, 3×3, 5×5, 5×5 in its levels; .* export the module itself",
    ),
    "an extra weight": (
        "x.pth",
        lambda: saved({**WEIGHTS, "extra.weight": torch.randn(2)}),
        "holds extra.weight, which",
    ),
    "another shape": (
        "x.pth",
        lambda: saved({**WEIGHTS, "levels.3.blocks.0.mlp.fc2.bias": torch.randn(3)}),
        r"fc2.bias has shape \[3\], expected \[384\]",
    ),
    "whole numbers": (
        "x.pth",
        lambda: saved({**WEIGHTS, "head.bias": torch.arange(10)}),
        "head.bias holds int64 numbers, expected floats",
    ),
    "a missing block": (
        "x.pth",
        lambda: saved({n: t for n, t in WEIGHTS.items() if "levels.2.blocks.1." not in n}),
        "lacks blocks",
    ),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_bad_files_are_refused_in_one_sentence(case: str, tmp_path: Path) -> None:
    name, content, message = BAD_FILES[case]
    path = tmp_path / name
    path.write_bytes(content())
    with pytest.raises(CheckpointError, match=message) as error:
        load(path)
    assert error.value.exit_code == 1
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)
    assert error.value.__cause__ is None


def test_a_missing_file_and_an_empty_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist; give the path of a checkpoint"):
        load(tmp_path / "nowhere.pth")
    with pytest.raises(CheckpointError, match=r"holds no weights; expected model\.safetensors"):
        load(tmp_path)


def test_a_vit_with_other_positions_is_refused(tmp_path: Path) -> None:
    config = ModelConfig("isotropic", 32, (2,), (2,), 3, ((1, 1),), 4.0, patch_size=16, fixed_map=True)
    weights = random_checkpoint(config)
    torch.save(weights, tmp_path / "vit.pth")
    assert load(tmp_path / "vit.pth", dilations="none").config == config
    weights["layers.1.attn.relative_position_index"] = weights["layers.1.attn.relative_position_index"].flip(0)
    torch.save(weights, tmp_path / "vit.pth")
    with pytest.raises(CheckpointError, match=r"layers\.1\.attn\.relative_position_index orders positions differently"):
        load(tmp_path / "vit.pth", dilations="none")


def test_published_networks_with_imagenet_s_classes_name_them(tmp_path: Path) -> None:
    published = get_model("nat_mini").config
    torch.save(random_checkpoint(published), tmp_path / "nat_mini.pth")
    torch.save(random_checkpoint(replace(published, num_classes=12)), tmp_path / "tuned.pth")
    assert load_model(tmp_path / "nat_mini.pth").metadata.labels[207] == "golden retriever"
    assert load_model(tmp_path / "tuned.pth", arch="nat_mini").metadata.labels == {}
