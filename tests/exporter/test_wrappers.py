"""Modules and weights as training leaves them: compiled, spread over devices, averaged."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from ema_pytorch import EMA
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from na_deploy import export
from na_deploy.attention.torch_ops import neighborhood_attention_qkv
from na_deploy.errors import CheckpointError, UsageError
from na_deploy.exporter.module_request import load_weights


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.proj = nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        qkv = self.qkv(x).unflatten(-1, (3, 2, 8))
        return self.proj(neighborhood_attention_qkv(qkv, kernel_size=3).flatten(-2))  # type: ignore[no-any-return]


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention()
        self.norm = nn.LayerNorm(16)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x))  # type: ignore[no-any-return]


def network(seed: int = 0) -> Network:
    torch.manual_seed(seed)
    return Network().eval()


def inside(wrapper: Callable[[nn.Module], Any]) -> nn.Module:
    module = network()
    module.attention = wrapper(module.attention)
    return module


def compiled_in_place() -> nn.Module:
    module = network()
    module.attention.compile()
    return module


MODULES: dict[str, Callable[[], Any]] = {
    "compiled": lambda: torch.compile(network()),
    "parallel": lambda: nn.DataParallel(network()),
    "averaged": lambda: AveragedModel(network()),
    "compiled and parallel": lambda: torch.compile(nn.DataParallel(network())),
    "compiled inside": lambda: inside(torch.compile),
    "parallel inside": lambda: inside(nn.DataParallel),
    "compiled in place": compiled_in_place,
}
X = torch.randn(1, 6, 7, 16, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("kind", MODULES)
def test_the_network_inside_wrappers_is_exported(kind: str, tmp_path: Path) -> None:
    module = MODULES[kind]()
    before = [type(part) for part in module.modules()]
    report = export(module, X, tmp_path / "model.onnx")
    assert report.attention_layers == 1
    assert [type(part) for part in module.modules()] == before
    graph = onnx.load(report.path).graph
    assert [value.name for value in graph.input] == ["x"]
    assert graph.name == "Network"
    (node,) = [node for node in graph.node if node.domain == "na_deploy"]
    assert node.name == "attention"


def test_torchscript_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"a TorchScript program cannot be exported; give the torch\.nn\.Module"):
        export(torch.jit.script(nn.Linear(2, 2)), X, tmp_path / "model.onnx")


def prefixed(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {prefix + name: tensor for name, tensor in state.items()}


def ema_of(wanted: nn.Module) -> EMA:
    ema = EMA(network(9))
    ema.ema_model.load_state_dict(wanted.state_dict())
    return ema


FILES: dict[str, tuple[Callable[[nn.Module], Any], str | None]] = {
    "bare": (lambda m: m.state_dict(), None),
    "model_state_dict": (lambda m: {"model_state_dict": m.state_dict(), "epoch": 2}, None),
    "compiled": (lambda m: torch.compile(m).state_dict(), None),
    "compiled, parallel": (lambda m: {"model": prefixed("module._orig_mod.", m.state_dict())}, None),
    "ema-pytorch": (lambda m: ema_of(m).state_dict(), "'ema_model' was taken"),
    "averaged beside trained": (
        lambda m: {"state_dict": network(9).state_dict(), "state_dict_ema": m.state_dict()},
        "'state_dict_ema' was taken",
    ),
    "part of more": (
        lambda m: {"state_dict": prefixed("net.", m.state_dict()) | {"loss.weight": torch.ones(3)}},
        "only the part 'net' of weights.pt is the network; left aside: loss",
    ),
    "half precision": (lambda m: {n: t.half() for n, t in m.state_dict().items()}, "stored as float16"),
    "saved whole": (lambda m: {"model": m}, "also holds Python objects"),
}


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("wrap", [lambda m: m, torch.compile, nn.DataParallel], ids=["plain", "compiled", "parallel"])
def test_weights_of_every_form_reach_the_module(kind: str, wrap: Any, tmp_path: Path) -> None:
    content, warning = FILES[kind]
    wanted, module = network(1), network(2)
    torch.save(content(wanted), tmp_path / "weights.pt")
    warnings = load_weights(wrap(module), tmp_path / "weights.pt")
    tolerance = 1e-3 if kind == "half precision" else 0.0
    for name, tensor in wanted.state_dict().items():
        torch.testing.assert_close(module.state_dict()[name], tensor, rtol=0, atol=tolerance)
    assert len(warnings) == (warning is not None) or kind in ("ema-pytorch", "saved whole")
    assert warning is None or any(warning in sentence for sentence in warnings)


def test_safetensors_and_their_folders_are_read(tmp_path: Path) -> None:
    wanted, module = network(1), network(2)
    save_file(wanted.state_dict(), tmp_path / "model.safetensors")
    assert load_weights(module, tmp_path) == []
    assert torch.equal(module.norm.weight, wanted.norm.weight)
    assert torch.equal(module.attention.qkv.weight, wanted.attention.qkv.weight)


def test_weights_of_another_module_are_refused_by_name(tmp_path: Path) -> None:
    torch.save({"other.weight": torch.ones(2)}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"lacks attention\.qkv\.weight, .* and holds other\.weight"):
        load_weights(network(), tmp_path / "weights.pt")
    torch.save({**network().state_dict(), "norm.weight": torch.full((16,), float("nan"))}, tmp_path / "weights.pt")
    with pytest.raises(CheckpointError, match=r"holds NaN values in norm\.weight"):
        load_weights(network(), tmp_path / "weights.pt")
