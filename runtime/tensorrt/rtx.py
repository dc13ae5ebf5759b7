"""Sessions over TensorRT-RTX engines, as a backend that :mod:`na_deploy.runtime.session` opens by name."""

from __future__ import annotations

from pathlib import Path

from na_deploy.runtime.session import SessionOptions
from na_deploy.runtime.tensorrt.api import RTX
from na_deploy.runtime.tensorrt.session import TensorRTSession, open_engine_session


def open_session(path: Path, options: SessionOptions) -> TensorRTSession:
    """Load an engine of TensorRT-RTX. See :func:`na_deploy.runtime.session.load` for the errors."""
    return open_engine_session(path, options, RTX)
