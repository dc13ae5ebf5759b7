"""Engines of TensorRT 10 and 11 and of TensorRT-RTX: building them, and sessions that run them on a GPU.

Both libraries have one Python interface under two module names; everything here works with either. Importing this
package imports neither, nor CUDA.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from na_deploy.runtime.session import SessionOptions
    from na_deploy.runtime.tensorrt.session import TensorRTSession


def open_session(path: Path, options: SessionOptions) -> TensorRTSession:
    """Load an engine of TensorRT. See :func:`na_deploy.runtime.session.load` for the errors."""
    from na_deploy.runtime.tensorrt.api import TENSORRT
    from na_deploy.runtime.tensorrt.session import open_engine_session

    return open_engine_session(path, options, TENSORRT)
