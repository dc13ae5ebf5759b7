"""Other people's modules run unedited: they export and compute what a dense mask computes, natten installed or not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest
import torch

from na_deploy.exporter.natten_api import importable_natten
from na_deploy.exporter.natten_api.unfused import FUNCTIONS

ROOT = Path(__file__).parents[2]
PACKAGES = ROOT / "build" / "third_party"
SCRIPT = ROOT / "tests" / "support" / "third_party_networks.py"
LAYERS = {"hdit": 1, "allin1": 6, "physicsnemo": 1, "earth2studio": 1}

pytestmark = pytest.mark.skipif(
    not (PACKAGES / "installed").is_file() and os.environ.get("NA_DEPLOY_THIRD_PARTY") != "ON",
    reason="scripts/third_party.sh has not installed the packages",
)


@pytest.fixture(scope="module")
def run_networks(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., tuple[Path, dict[str, Any]]]:
    """Export networks in a process of their own; their packages want other versions than ours."""

    def run(folder: str, *names: str) -> tuple[Path, dict[str, Any]]:
        output = tmp_path_factory.mktemp(folder)
        done = subprocess.run(
            [sys.executable, str(SCRIPT), str(PACKAGES / folder), str(output), *names], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return output, json.loads(done.stdout.splitlines()[-1])

    return run


@pytest.mark.parametrize("natten", ["installed", pytest.param("absent", marks=pytest.mark.slow)])
def test_networks_from_packages_export_as_they_are(natten: str, run_networks: Callable[..., Any]):
    options = ["--without-natten"] if natten == "absent" else []
    _, results = run_networks("packages", *options, *LAYERS)
    for name, layers in LAYERS.items():
        result = results[name]
        assert "error" not in result, result["error"]
        assert result["stand_in"] == (natten == "absent")
        assert (result["layers"], result["notices"]) == (layers, [])
        assert result["difference"] < 2e-6
    assert len(results["allin1"]["outputs"]) == 5  # a dataclass of five tensors


@pytest.mark.parametrize(
    "names",
    [["kernels", "loaded_kernel"], pytest.param(["--without-natten", "kernels"], marks=pytest.mark.slow)],
    ids=["installed", "absent"],
)
def test_natten_from_hugging_face_s_kernels_is_replaced(names: list[str], run_networks: Callable[..., Any]):
    _, results = run_networks("kernels", *names)
    assert results["kernels"]["layers"] == 2
    assert all(result["difference"] < 2e-6 for result in results.values())


@pytest.fixture(scope="module")
def dinat_454(run_networks: Callable[..., Any]) -> tuple[Path, dict[str, Any]]:
    return run_networks("transformers", "dinat", "dinat_backbone", "dinat_inside", "dinat_model")  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", ["dinat", "dinat_backbone", "dinat_inside"])
def test_the_broken_dinat_is_named_and_our_network_computes_what_the_last_good_one_did(
    name: str, dinat_454: tuple[Path, dict[str, Any]]
):
    folder, results = dinat_454
    assert "error" not in results[name], results[name]["error"]
    assert results[name]["layers"] == 3
    (notice,) = results[name]["notices"]
    assert notice.startswith("DiNAT of transformers 4.57.6 is broken (4.53 is the last that works")
    assert notice.endswith("na-deploy's own network with the same weights was exported in its place")
    saved = torch.load(folder / f"{name}.pt", weights_only=True)
    expected = last_good(name, saved["weights"], next(iter(saved["inputs"].values())))
    session = ort.InferenceSession(str(folder / f"{name}.onnx"), providers=["CPUExecutionProvider"])
    found = session.run(None, {key: tensor.numpy() for key, tensor in saved["inputs"].items()})
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert np.abs(ours - theirs.numpy()).max() < 1e-5 * np.abs(theirs.numpy()).max()


def last_good(name: str, weights: dict[str, torch.Tensor], image: torch.Tensor) -> list[torch.Tensor]:
    """Return what transformers 4.53.3 computes, on natten's functions of its time."""
    with importable_natten():
        import transformers
        from transformers.models.dinat import modeling_dinat
    assert transformers.__version__ == "4.53.3"
    transformers.utils.import_utils._natten_available = True  # whatever another test has set
    settings = transformers.DinatConfig(
        embed_dim=32, depths=[1, 2], num_heads=[1, 2], kernel_size=3, dilations=[[1], [1, 2]], mlp_ratio=2.0,
        num_labels=5, out_features=["stage1", "stage2"], layer_scale_init_value=0.1,
    )  # fmt: skip
    vars(modeling_dinat).update({key: FUNCTIONS[key] for key in ("natten2dqkrpb", "natten2dav")})
    modeling_dinat.requires_backends = lambda *_: None
    if name == "dinat":
        network = modeling_dinat.DinatForImageClassification(settings)
    else:
        network = modeling_dinat.DinatBackbone(settings)
        weights = {key.removeprefix("backbone."): tensor for key, tensor in weights.items()}
    network.load_state_dict(weights)
    with torch.inference_mode():
        outputs = network.eval()(image)
    if name == "dinat":
        return [outputs.logits]
    maps = list(outputs.feature_maps)
    return maps if name == "dinat_backbone" else [torch.stack([each.mean((1, 2, 3)) for each in maps])]


def test_a_part_of_the_broken_dinat_is_refused_with_advice(dinat_454: tuple[Path, dict[str, Any]]):
    error = dinat_454[1]["dinat_model"]["error"]
    assert error.startswith("UsageError: DiNAT of transformers 4.57.6 is broken")
    assert "DinatModel has no counterpart here; give DinatForImageClassification or DinatBackbone" in error
