"""``na-deploy flatten``: an exported model in standard operators alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from na_deploy.cli.output import console, print_json, size_text
from na_deploy.cli.progress import progress_line
from na_deploy.errors import VerificationError
from na_deploy.files import check_output, staged_output

TOLERANCES = {"float16": 2e-2, "bfloat16": 1e-1, "quantized": 2e-2}
"""Largest accepted relative difference by the lowest type in a file; 1e-5 for float32.

Where values are rounded to 8 bits, a difference in the last bit of a float can become a whole step."""


@click.command()
@click.argument("model", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), help="ONNX file; by default MODEL's name with _flat.")
@click.option("--input", "inputs", multiple=True, metavar="1x3x224x224", help="Size to compare both at, or name=size.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: Path, output: Path | None, inputs: tuple[str, ...], as_json: bool) -> None:
    """Write MODEL with its functions inlined and its planning folded: standard operators only.

    OpenVINO, tract, IREE, TVM, onnxruntime-web and converters for other hardware read the result; docs/runtimes.md says
    which. ONNX Runtime runs both files on random inputs, and the flat one is kept only if they agree.
    """
    target = output or model.with_name(f"{model.stem}_flat.onnx")
    check_output(target, (model,), (".onnx",))
    with progress_line("flattening") as progress:
        import onnx

        from na_deploy.model_file.flatten import flatten_file

        with staged_output(target) as staged:
            files = flatten_file(model, staged)
            progress("comparing both in ONNX Runtime")
            difference, tolerance = _compare(model, staged, inputs)
            if not difference <= tolerance:
                raise VerificationError(
                    f"the flat file differs from {model.name} by {difference:.1e} (relative), above {tolerance:.0e}; "
                    "it was not kept"
                )
            nodes = len(onnx.load(staged, load_external_data=False).graph.node)
            size = sum(path.stat().st_size for path in files)
    content: dict[str, Any] = {
        "path": str(target),
        "files": [str(target.with_name(path.name)) for path in files],
        "bytes": size,
        "operators": nodes,
        "relative_difference": difference,
    }
    if as_json:
        print_json(content)
        return
    out = console()
    out.print(f"[bold]{target}[/bold]  {size_text(size)}, {nodes} standard operators")
    out.print(f"ONNX Runtime against {model.name}: largest relative difference {difference:.1e}")


def _compare(model: Path, flat: Path, inputs: tuple[str, ...]) -> tuple[float, float]:
    """Return the largest relative difference of all outputs, and the accepted one."""
    from na_deploy.model_file.differences import worst_difference
    from na_deploy.model_file.example_inputs import example_inputs, example_shapes, parse_inputs
    from na_deploy.runtime.session import load

    with load(model, custom_operators=False) as one, load(flat, custom_operators=False) as other:
        given = parse_inputs(inputs, [spec.name for spec in one.inputs])
        feeds = example_inputs(one.inputs, example_shapes(one.inputs, one.metadata, given))
        expected, found = one.run(feeds), other.run(feeds)
        precision = {"fp16": "float16", "bf16": "bfloat16"}.get(one.metadata.dtype if one.metadata else "", "")
        precision = precision or ("quantized" if one.metadata and one.metadata.quantized else "")
    return worst_difference(found, expected).relative, TOLERANCES.get(precision, 1e-5)
