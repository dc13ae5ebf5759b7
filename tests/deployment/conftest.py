"""Repositories and a server shared by the tests on Triton's own core."""

from __future__ import annotations

import os

import pytest
import triton_server

REASON = "Triton's server is not installed: bash scripts/triton_server.sh"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs Triton's server where it is not installed, unless it was asked for."""
    if triton_server.is_installed() or os.environ.get("NA_DEPLOY_TRITON") == "ON":
        return
    for item in items:
        if item.get_closest_marker("triton"):
            item.add_marker(pytest.mark.skip(reason=REASON))
