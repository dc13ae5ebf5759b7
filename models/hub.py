"""Models on the Hugging Face hub: ``hf://owner/name`` to a local folder, weights and JSON only."""

from __future__ import annotations

import re
from pathlib import Path

from na_deploy.errors import CheckpointError, MissingDependencyError, UsageError

_ADDRESS = re.compile(r"^hf:/{1,2}(?P<repository>[\w.-]+/[\w.-]+?)(?:@(?P<revision>[\w./-]+))?/?$")
_TEXT = ["config.json", "preprocessor_config.json"]
_KINDS = (
    ["model*.safetensors", "model.safetensors.index.json"],
    ["pytorch_model*.bin", "pytorch_model.bin.index.json"],
)
"""Forms of weights, the safer one first."""


def local_path(source: str | Path) -> Path:
    """Return where a checkpoint is on this machine; an address on the hub is downloaded, or found in its cache.

    Args:
        source: a path, or ``hf://owner/name``, ``hf://owner/name@revision``.

    Raises:
        UsageError: an address of another form.
        MissingDependencyError: huggingface_hub is not installed.
        CheckpointError: there is no such model, or it can be reached neither on the hub nor in the cache.
    """
    text = str(source)
    if not text.startswith("hf:/"):
        return Path(source)
    match = _ADDRESS.match(text)
    if match is None:
        raise UsageError(f"cannot read the address {text!r}; write hf://owner/name, or hf://owner/name@revision")
    repository = match["repository"]
    try:
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled
    except ImportError:
        raise MissingDependencyError(
            f"reading {text} needs huggingface_hub; install it with: pip install 'na-deploy[hub]'"
        ) from None
    try:
        for weights in _KINDS:
            folder = Path(snapshot_download(repository, revision=match["revision"], allow_patterns=_TEXT + weights))
            if any(any(folder.glob(pattern)) for pattern in weights):
                return folder
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, OSError) as error:
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"cannot get {repository} from the Hugging Face hub: {reason}") from None
    raise CheckpointError(f"{repository} holds no weights; expected model.safetensors or pytorch_model.bin")
