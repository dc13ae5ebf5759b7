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
        for name, parameter in inspect.signature(function).parameters.items():
            default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
            assert f"\n    {name}: {parameter.annotation}{default},\n" in shown  # in the signature
            assert f"\n    {name}: " in shown.partition("Args:")[2]
        assert f") -> {inspect.signature(function).return_annotation}\n" in shown
    for name in ("threads", "providers", "device"):
        assert name in inspect.signature(na_deploy.load).parameters


def test_importing_the_package_imports_no_large_library():
    code = "import sys, na_deploy; print(sorted({'torch', 'onnx', 'numpy', 'onnxruntime'} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_both_exports_refuse_the_same_impossible_options(tmp_path):
    import torch

    module, example = torch.nn.Linear(2, 2), torch.zeros(1, 2)
    for options, message in (
        ({"opset": 9}, "opset 9 is not supported"),
        ({"tolerance": 0.0}, "must be above 0, got 0"),
    ):
        with pytest.raises(na_deploy.UsageError, match=message):
            na_deploy.export(module, example, tmp_path / "module.onnx", **options)
        with pytest.raises(na_deploy.UsageError, match=message):
            na_deploy.export(tmp_path / "absent.pth", tmp_path / "checkpoint.onnx", **options)
