"""PyTorch to ONNX: tracing, translation of our operators, function bodies, graph passes and verification.

``export`` is imported on first use: the function bodies and graph helpers need no PyTorch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from na_deploy.optional_dependencies import export_libraries

if TYPE_CHECKING:
    from na_deploy.exporter.entry import export
    from na_deploy.exporter.module_export import ModuleExportReport
    from na_deploy.exporter.natten_api import importable_natten
    from na_deploy.exporter.options import ExportOptions
    from na_deploy.exporter.pipeline import ExportReport
    from na_deploy.exporter.rewindow import SetWindow

__all__ = ["ExportOptions", "ExportReport", "ModuleExportReport", "SetWindow", "export", "importable_natten"]


def __getattr__(name: str) -> Any:
    if name in ("export", "ExportReport", "ModuleExportReport", "SetWindow"):
        with export_libraries("exporting"):
            from na_deploy.exporter import entry

        return getattr(entry, name)
    if name == "importable_natten":
        with export_libraries("importing natten's stand-in"):
            from na_deploy.exporter import natten_api

        return natten_api.importable_natten
    if name == "ExportOptions":
        from na_deploy.exporter.options import ExportOptions

        return ExportOptions
    raise AttributeError(f"module 'na_deploy.exporter' has no attribute {name!r}")
