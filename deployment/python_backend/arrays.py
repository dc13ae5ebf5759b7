"""The check that Triton's python backend and the NumPy beside it agree. Imported inside Triton."""

from __future__ import annotations

from typing import Any

import numpy as np


def check_arrays(backend: Any) -> None:
    """Refuse to start where tensors would be answered wrongly.

    A python backend compiled for NumPy 1 (Triton 24.10 is) reads the arrays of NumPy 2 without an error: every element
    becomes the first one, and answers are empty.

    Args:
        backend: ``triton_python_backend_utils``.

    Raises:
        TritonModelException: an array does not come back as it went in.
    """
    given = np.arange(1, 4, dtype=np.float32)
    packed = backend.Tensor("check", given).to_dlpack()
    found = backend.Tensor.from_dlpack("check", packed).as_numpy()
    if not np.array_equal(given, found):
        raise backend.TritonModelException(
            f"this Triton's python backend cannot read the arrays of NumPy {np.__version__}: "
            "install 'numpy<2' for it, or use a newer Triton"
        )
