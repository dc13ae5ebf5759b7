"""Exports other people's networks, unedited, from scripts/third_party.sh's folder; prints JSON. Run as a script.

    python third_party_networks.py FOLDER OUTPUT [--without-natten] NAME ...

Parents of the modules are entered without running their ``__init__``, which imports what the networks do not use.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx
import onnxruntime as ort
import torch
from operator_table import share_operator_table
from torch import Tensor, nn

from na_deploy import export
from na_deploy.attention import torch_tiles
from na_deploy.attention.torch_ops import use_implementation
from na_deploy.exporter.natten_api import importable_natten, replaced_natten


def enter(folder: Path, *packages: str) -> None:
    for name in packages:
        module = ModuleType(name)
        module.__path__ = [str(folder.joinpath(*name.split(".")))]
        module.__spec__ = ModuleSpec(name, None, is_package=True)
        sys.modules[name] = module
        parent, _, leaf = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], leaf, module)


def torchvision_beside_another_torch() -> torch.library.Library:
    """Declare two operators that torchvision's Python expects of its library, which does not load."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    return library


def without(*packages: str) -> None:
    """Stand-ins for what reads files and drives GPUs."""
    for name in packages:
        sys.modules[name] = MagicMock(__spec__=ModuleSpec(name, None))


def hdit(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """k-diffusion's HDiT, as the package hdit has it; asks has_fused_na when it runs."""
    enter(folder, "hdit", "hdit.modules")
    attention = importlib.import_module("hdit.modules.attention.neighborhood_attention")

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block = attention.NeighborhoodSelfAttentionBlock(64, 32, 32, 5)

        def forward(self, x: Tensor, pos: Tensor, cond: Tensor) -> Tensor:
            return self.block(x, pos, cond)  # type: ignore[no-any-return]

    rope = importlib.import_module("hdit.modules.attention.axial_rope")
    pos = rope.make_axial_pos(8, 10).view(1, 8, 10, 2)
    return Block(), {"x": torch.randn(1, 8, 10, 64), "pos": pos, "cond": torch.randn(1, 32)}


def allin1(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """All-In-One: 1-D and 2-D attention with biases, dataclass outputs."""
    enter(folder, "allin1", "allin1.models")
    config = importlib.import_module("allin1.config")
    settings = config.Config(
        data=config.HarmonixConfig(), depth=2, dim_embed=8, dim_input=81, num_heads=2, double_attention=True
    )
    network = importlib.import_module("allin1.models.allinone").AllInOne(settings)
    return network, {"inputs": torch.rand(1, 4, 40, 81)}


def physicsnemo(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """PhysicsNeMo's DiT attention, which calls natten through its own wrapper."""
    enter(folder, "physicsnemo", "physicsnemo.nn", "physicsnemo.nn.module", "physicsnemo.nn.functional")
    without("warp", "s3fs", "h5py", "git")
    drop = importlib.import_module("physicsnemo.nn.functional.regularization_parameterization")
    vars(sys.modules["physicsnemo.nn.functional"]).update(drop_path=drop.drop_path, weight_fact=drop.weight_fact)
    layers = importlib.import_module("physicsnemo.nn.module.dit_layers")

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention = layers.Natten2DSelfAttention(hidden_size=32, num_heads=4, attn_kernel=3, qk_norm=True)

        def forward(self, x: Tensor) -> Tensor:
            return self.attention(x, latent_hw=(6, 8))  # type: ignore[no-any-return]

    return Attention(), {"x": torch.randn(2, 48, 32)}


def earth2studio(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """Earth2Studio's Atlas block: NeighborhoodAttention2D inside circular padding."""
    enter(folder, "earth2studio", "earth2studio.models", "earth2studio.models.nn", "earth2studio.utils")
    atlas = importlib.import_module("earth2studio.models.nn.atlas")
    block = atlas.NattenDiTBlock((6, 8), hidden_size=32, num_heads=4, kernel_size=(3, 5))
    block.attn = atlas.NattenAttention((3, 5), 32, 4, circular_pad_width=True)
    return block, {"x": torch.randn(2, 48, 32), "cond": torch.randn(2, 32)}


def kernels(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """natten handed out by Hugging Face's kernels, asked for by its name on the hub."""
    get_kernel = importlib.import_module("kernels").get_kernel
    natten = get_kernel("kernels-community/natten")

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            again = get_kernel("kernels-community/natten")  # some ask when they run
            return natten.na2d(x, x, -x, kernel_size=3) + again.functional.na2d(x, -x, x, 5)  # type: ignore[no-any-return]

    return Attention(), {"x": torch.randn(1, 7, 8, 2, 16)}


def loaded_kernel(folder: Path) -> tuple[nn.Module, dict[str, Tensor]]:
    """natten's Python files loaded by kernels from a folder, under a module name of their own."""
    import natten

    spec = importlib.util.spec_from_file_location("natten_0123456789abcdef", natten.__file__)
    assert spec is not None
    assert spec.loader is not None
    own = importlib.util.module_from_spec(spec)
    sys.modules["natten_0123456789abcdef"] = own
    spec.loader.exec_module(own)

    class Attention(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return own.na2d(x, x, -x, kernel_size=3)  # type: ignore[no-any-return]

    return Attention(), {"x": torch.randn(1, 7, 8, 2, 16)}


def dinat(folder: Path, kind: str = "classifier") -> tuple[nn.Module, dict[str, Tensor]]:
    """DiNAT of a transformers in which it is broken; its weights are written beside the file."""
    import transformers

    settings = transformers.DinatConfig(
        embed_dim=32, depths=[1, 2], num_heads=[1, 2], kernel_size=3, dilations=[[1], [1, 2]], mlp_ratio=2.0,
        num_labels=5, out_features=["stage1", "stage2"], layer_scale_init_value=0.1,
    )  # fmt: skip
    made = {"classifier": transformers.DinatForImageClassification, "backbone": transformers.DinatBackbone}
    network: nn.Module = made.get(kind, transformers.DinatModel)(settings)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    if kind == "inside":

        class Larger(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = made["backbone"](settings)

            def forward(self, image: Tensor) -> Tensor:
                return torch.stack([each.mean((1, 2, 3)) for each in self.backbone(image).feature_maps])

        return Larger(), {"image": torch.randn(1, 3, 40, 48)}
    return network, {"pixel_values": torch.randn(1, 3, 40, 48)}


NETWORKS: dict[str, Any] = {
    **{maker.__name__: maker for maker in (hdit, allin1, physicsnemo, earth2studio, kernels, loaded_kernel)},
    "dinat": dinat,
    "dinat_backbone": lambda folder: dinat(folder, "backbone"),
    "dinat_inside": lambda folder: dinat(folder, "inside"),
    "dinat_model": lambda folder: dinat(folder, "model"),
}


def try_one(name: str, folder: Path, output: Path) -> dict[str, Any]:
    torch.manual_seed(7)
    with importable_natten() as stand_in:
        module, inputs = NETWORKS[name](folder)
    torch.manual_seed(8)
    for parameter in module.parameters():
        if not parameter.any():  # layers that start as zeros would hide everything before them
            nn.init.normal_(parameter, std=0.2)
    path = output / f"{name}.onnx"
    try:
        report = export(module.eval(), inputs, path)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    torch.save({"weights": module.state_dict(), "inputs": inputs}, output / f"{name}.pt")
    found = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(
        None, {key: tensor.numpy() for key, tensor in inputs.items() if key in graph_inputs(path)}
    )
    result: dict[str, Any] = {
        "stand_in": stand_in,
        "layers": report.attention_layers,
        "notices": list(report.notices),
        "outputs": [list(array.shape) for array in found],
    }
    if not name.startswith("dinat"):  # against a dense mask in PyTorch, which shares nothing with the file's tiles
        with torch.inference_mode(), replaced_natten(module), use_implementation(torch_tiles.dense):
            outputs = module(**inputs)
        leaves = list(vars(outputs).values()) if hasattr(outputs, "__dataclass_fields__") else [outputs]
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        result["difference"] = max(
            float(np.abs(ours - theirs.numpy()).max() / np.abs(theirs.numpy()).max())
            for ours, theirs in zip(found, tensors, strict=True)
        )
    return result


def graph_inputs(path: Path) -> list[str]:
    return [value.name for value in onnx.load(path).graph.input]


def hide_natten() -> None:
    class Hidden:
        def find_spec(self, name: str, *_: Any) -> None:
            if name.partition(".")[0] == "natten":
                raise ModuleNotFoundError(f"No module named {name!r}", name=name)

    find = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: (  # type: ignore[assignment]
        find(name, *more) if name.partition(".")[0] != "natten" or name in sys.modules else None
    )
    sys.meta_path.insert(0, Hidden())  # type: ignore[arg-type]


if __name__ == "__main__":
    packages, target, *names = sys.argv[1:]
    if names[0] == "--without-natten":
        hide_natten()
        del names[0]
    sys.path.insert(0, packages)
    share_operator_table()
    library = torchvision_beside_another_torch()
    print(json.dumps({name: try_one(name, Path(packages), Path(target)) for name in names}))
