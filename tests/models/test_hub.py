"""Models by their address on the Hugging Face hub, from a cache on this machine: nothing is downloaded."""

import sys
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import save_file

from na_deploy.errors import CheckpointError, MissingDependencyError, UsageError
from na_deploy.models import load_model, random_checkpoint
from na_deploy.models.hub import local_path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Return a function that puts a model into an empty cache, which alone is asked."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)

    def put(name: str, *, safe: bool = True) -> Path:
        folder = tmp_path / f"models--{name.replace('/', '--')}"
        snapshot = folder / "snapshots" / COMMIT
        snapshot.mkdir(parents=True)
        (folder / "refs").mkdir()
        (folder / "refs" / "main").write_text(COMMIT)
        (snapshot / "config.json").write_text('{"model_type": "nat"}')
        weights = random_checkpoint("nat_mini", seed=3)
        if safe:
            save_file(weights, snapshot / "model.safetensors")
        else:
            torch.save(weights, snapshot / "pytorch_model.bin")
        return snapshot

    return put


@pytest.mark.parametrize("safe", [True, False])
def test_an_address_is_found_in_the_cache(cached: Callable[..., Path], safe: bool) -> None:
    snapshot = cached("some-labs/nat-mini", safe=safe)
    assert local_path("hf://some-labs/nat-mini") == snapshot
    assert local_path(Path("hf://some-labs/nat-mini")) == snapshot  # which joins the slashes
    assert local_path(f"hf://some-labs/nat-mini@{COMMIT}") == snapshot
    loaded = load_model("hf://some-labs/nat-mini")
    assert (loaded.architecture, loaded.metadata.source_name) == ("nat_mini", "some-labs/nat-mini")


def test_a_model_that_cannot_be_reached_is_told(cached: Callable[..., Path]) -> None:
    with pytest.raises(CheckpointError, match="cannot get nobody/nothing from the Hugging Face hub"):
        local_path("hf://nobody/nothing")


@pytest.mark.parametrize("address", ["hf://", "hf://owner", "hf://a/b/c", "hf://a/b c"])
def test_addresses_of_another_form_are_refused(address: str) -> None:
    with pytest.raises(UsageError, match="write hf://owner/name"):
        local_path(address)


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'na-deploy\[hub\]'"):
        local_path("hf://a/b")


def test_paths_stay_as_they_are() -> None:
    assert local_path("models/nat.pth") == Path("models/nat.pth")
