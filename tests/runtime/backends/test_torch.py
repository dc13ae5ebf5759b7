"""The reference backend: checkpoints in PyTorch behind the session's interface."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.models import ModelConfig, load_model, random_checkpoint

CONFIG = ModelConfig(
    family="nat",
    embed_dim=32,
    depths=(1, 1),
    heads=(1, 2),
    kernel_size=3,
    dilations=((1,), (1,)),
    mlp_ratio=2.0,
    num_classes=10,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "small.pth"
    random_checkpoint(CONFIG, seed=3, path=path)
    return path


def test_a_session_gives_what_the_network_gives(checkpoint: Path):
    image = np.random.default_rng(0).standard_normal((2, 3, 64, 48), dtype=np.float32)
    with na_deploy.load(checkpoint, arch="nat") as session:
        assert (session.backend, session.device) == ("torch", "CPU")
        assert [str(spec) for spec in session.inputs] == ["image: float32 batch×3×height×width"]
        found = session.run(image)
    with torch.inference_mode():
        expected = load_model(checkpoint, arch="nat").module(torch.from_numpy(image)).numpy()
    assert list(found) == ["logits"]
    np.testing.assert_array_equal(found["logits"], expected)
    with pytest.raises(UsageError, match="is closed"):
        session.run(image)


def test_wrong_use_is_one_sentence(checkpoint: Path, tmp_path: Path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"x")
    with pytest.raises(UsageError, match=r"PyTorch runs checkpoints and model\.onnx is none"):
        na_deploy.load(model, backend="torch")
    with pytest.raises(UsageError, match="there is no device 99"):
        na_deploy.load(checkpoint, arch="nat", device=99)
    damaged = tmp_path / "damaged.pth"
    damaged.write_bytes(checkpoint.read_bytes()[:1000])
    with pytest.raises(NaDeployError):
        na_deploy.load(damaged, arch="nat")
    with na_deploy.load(checkpoint, arch="nat") as session, pytest.raises(UsageError, match="3 axes"):
        session.run(np.zeros((3, 64, 64), np.float32))


def test_without_pytorch_the_error_says_what_to_install(checkpoint: Path):
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import na_deploy\n"
        f"try: na_deploy.load({str(checkpoint)!r}, arch='nat')\n"
        "except na_deploy.errors.MissingDependencyError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == (
        "the torch backend needs torch, which is not installed; install it with: pip install 'na-deploy[export]'"
    ), done.stderr
