"""``na-deploy build-kernels``: the GPU kernels for this machine, compiled into the installed package."""

from __future__ import annotations

from pathlib import Path

import click

from na_deploy.cli.output import size_text


@click.command()
@click.option("--architectures", metavar="LIST", help="Such as 80,90a; left out, those of this machine's GPUs.")
@click.option("--fat", is_flag=True, help="For all architectures from compute capability 8.0 on.")
@click.option("--tensorrt-root", type=click.Path(path_type=Path), help="Folder that holds TensorRT's include/.")
@click.option("--folder", type=click.Path(path_type=Path), help="Where to compile and keep fetched tools.")
@click.option("--jobs", type=click.IntRange(min=1), help="Compilations at once.")
def command(
    architectures: str | None, fat: bool, tensorrt_root: Path | None, folder: Path | None, jobs: int | None
) -> None:
    """Compile the GPU kernels for this machine and put them into the installed package.

    Makes the operator library for ONNX Runtime's CUDA provider and, where TensorRT's headers are found or can be
    fetched, its plugin. CUDA's compiler is fetched from PyPI where it is missing. `na-deploy doctor` shows the result.
    """
    from na_deploy.runtime.kernel_build import KernelOptions, build_kernels

    chosen = tuple(part.strip() for part in (architectures or "").split(",") if part.strip())
    options = KernelOptions(chosen, fat, tensorrt_root, folder, jobs)
    for library in build_kernels(options, lambda text: click.echo(text, err=True)):
        click.echo(f"{library}  {size_text(library.stat().st_size)}")
