"""The public API is what ``na_deploy.__all__`` states, and ``help`` shows its real signatures."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import na_deploy
from na_deploy.exporter.module_export import export_module
from na_deploy.exporter.pipeline import export as export_checkpoint


def test_every_public_name_can_be_imported_and_is_listed_by_dir():
    for name in na_deploy.__all__:
        assert getattr(na_deploy, name) is not None
        assert name in dir(na_deploy)
    with pytest.raises(AttributeError, match="no attribute 'absent'"):
        _ = na_deploy.absent


def test_every_error_is_public_and_a_kind_of_the_one_to_catch():
    from na_deploy import errors

    kinds = {name for name, value in vars(errors).items() if inspect.isclass(value) and issubclass(value, Exception)}
    assert kinds <= set(na_deploy.__all__)
    assert all(issubclass(getattr(na_deploy, name), na_deploy.NaDeployError) for name in kinds)


def test_help_shows_the_signatures_and_arguments_of_both_exports():
    shown = inspect.getdoc(na_deploy.export)
    for function in (export_checkpoint, export_module):
        assert f"export{inspect.signature(function)}" in shown
        for name in inspect.signature(function).parameters:
            assert f"{name}: " in shown
    for name in ("threads", "providers", "device"):
        assert name in inspect.signature(na_deploy.load).parameters


def test_importing_the_package_imports_no_large_library():
    code = "import sys, na_deploy; print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
