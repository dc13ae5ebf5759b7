"""``na_deploy.export``: checkpoints go to the pipeline of known models, modules to the exporter of any model."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol, TypeVar, overload

from torch import nn

from na_deploy.exporter.collector import rare_collections
from na_deploy.exporter.module_export import ModuleExportReport, export_module
from na_deploy.exporter.pipeline import ExportReport
from na_deploy.exporter.pipeline import export as export_checkpoint
from na_deploy.exporter.rewindow import SetWindow

__all__ = ["ExportReport", "ModuleExportReport", "SetWindow", "export"]

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R", covariant=True)
S = TypeVar("S", covariant=True)


class _Either(Protocol[P, R, Q, S]):
    """A function with the signatures of two others, as type checkers and editors see it."""

    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R: ...

    @overload
    def __call__(self, *args: Q.args, **kwargs: Q.kwargs) -> S: ...


class _Annotation(str):
    """An annotation that is shown without quotes."""

    __repr__ = str.__str__


def _signature(name: str, function: Callable[..., Any]) -> str:
    """Return a function's signature under another name, a parameter on each line."""
    signature = inspect.signature(function)
    lines = []
    for parameter in signature.parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in lines:
            lines.append("*")
        lines.append(str(parameter.replace(annotation=_Annotation(parameter.annotation))))
    return f"{name}(\n    " + ",\n    ".join(lines) + f",\n) -> {signature.return_annotation}"


def _export(of_checkpoint: Callable[P, R], of_module: Callable[Q, S]) -> _Either[P, R, Q, S]:
    """Return ``export``: the first argument decides which function runs. Its help shows both signatures."""

    def export(*arguments: Any, **options: Any) -> Any:
        given = arguments[0] if arguments else options.get("module")
        with rare_collections():
            return (of_module if isinstance(given, nn.Module) else of_checkpoint)(*arguments, **options)

    described = "\n\n".join(
        f"{_signature('export', function)}\n\n{inspect.getdoc(function)}" for function in (of_checkpoint, of_module)
    )
    export.__doc__ = f"Export a checkpoint, or a module that calls natten, to one verified ONNX file.\n\n{described}"
    export.__module__ = "na_deploy"
    return export


export = _export(export_checkpoint, export_module)
