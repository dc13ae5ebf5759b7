"""``na_deploy.export``: checkpoints go to the pipeline of known models, modules to the exporter of any model."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, overload

from torch import Tensor, nn

from na_deploy.exporter.module_export import ModuleExportReport, export_module
from na_deploy.exporter.pipeline import ExportReport
from na_deploy.exporter.pipeline import export as export_checkpoint
from na_deploy.exporter.rewindow import SetWindow
from na_deploy.models import LoadedModel

__all__ = ["ExportReport", "ModuleExportReport", "SetWindow", "export"]


@overload
def export(
    source: nn.Module,
    example_inputs: Tensor | Sequence[Tensor] | Mapping[str, Tensor],
    output: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ModuleExportReport: ...


@overload
def export(
    source: str | os.PathLike[str] | LoadedModel, output: str | os.PathLike[str] | None = None, **options: Any
) -> ExportReport: ...


def export(source: Any, *arguments: Any, **options: Any) -> ExportReport | ModuleExportReport:
    """Export a checkpoint (:func:`pipeline.export`) or a module (:func:`module_export.export_module`) to ONNX."""
    if isinstance(source, nn.Module):
        return export_module(source, *arguments, **options)
    return export_checkpoint(source, *arguments, **options)
