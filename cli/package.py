"""``na-deploy package``: models as a repository for NVIDIA Triton, or the check of one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from na_deploy.cli.arguments import grouped, precision_option, threads_option
from na_deploy.cli.output import console, print_json, table
from na_deploy.cli.progress import progress_line
from na_deploy.deployment.options import DEVICES, PACKAGE_BACKENDS
from na_deploy.errors import NaDeployError, UsageError

if TYPE_CHECKING:
    from na_deploy.deployment.checks import Finding
    from na_deploy.deployment.repository import PackagedModel


@click.command(
    cls=grouped(
        {
            "Repository": ("output", "target", "checked", "mount", "cluster"),
            "Model": ("backend", "precision", "name", "version", "serve_versions", "labels", "preprocess", "operators"),
            "Batches and queue": ("max_batch", "preferred", "batch_delay_ms", "queue", "timeout_ms", "cache"),
            "Running": ("instances", "device", "gpus", "threads", "warm_up", "inputs", "cuda_graphs"),
        }
    )
)
@click.argument("models", type=click.Path(path_type=Path), nargs=-1)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The model repository; made, or added to.")
@click.option(
    "--target", type=click.Choice(["triton"]), default="triton", show_default=True, help="What will serve it."
)
@click.option("--check", "checked", type=click.Path(path_type=Path), metavar="REPOSITORY", help="Check a repository.")
@click.option(
    "--backend",
    type=click.Choice(PACKAGE_BACKENDS),
    help="Triton's, or openvino in its python backend; by default what fits.",
)
@precision_option()
@click.option("--name", help="The model's name; by default the file's.")
@click.option("--version", type=int, help="Number of the new version; by default the next.")
@click.option("--serve-versions", metavar="latest:1", help="Versions that are served: latest:N, all, or 1,3.")
@click.option("--max-batch", type=int, help="Largest batch; by default the engine's, or 8.")
@click.option("--preferred", metavar="4,8", help="Batch sizes to prefer.")
@click.option("--batch-delay-ms", type=float, default=0.0, show_default=True, help="Wait so long for a batch to fill.")
@click.option("--queue", type=int, default=0, show_default=True, help="Requests that may wait; 0: any number.")
@click.option("--timeout-ms", type=float, default=0.0, show_default=True, help="Refuse what waits longer; 0: never.")
@click.option("--instances", type=int, default=1, show_default=True, help="Copies of the model, on each GPU.")
@click.option("--device", type=click.Choice(DEVICES), help="By default gpu for tensorrt, else cpu.")
@click.option("--gpus", metavar="0,1", help="Numbers of the GPUs; by default all.")
@threads_option()
@click.option("--warm-up/--no-warm-up", default=True, show_default=True, help="Run the model before it is ready.")
@click.option(
    "--input", "inputs", multiple=True, metavar="1x3x224x224", help="Input size for warm-up, where free, or name=size."
)
@click.option("--cuda-graphs", is_flag=True, help="Capture CUDA graphs (tensorrt; python on a gpu).")
@click.option("--cache", is_flag=True, help="Answer repeated requests from Triton's response cache.")
@click.option("--labels", type=click.Path(path_type=Path), help="Class names; by default the model's.")
@click.option("--preprocess", is_flag=True, help="Also write a model that takes JPEG or PNG files.")
@click.option(
    "--operators", default="auto", show_default=True, help="Operator library (onnxruntime): auto, none, a file."
)
@click.option("--mount", default="/models", show_default=True, help="Where the repository lies for Triton.")
@click.option("--cluster", type=click.Path(path_type=Path), help="Write Dockerfile, Kubernetes and KServe files here.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(models: tuple[Path, ...], output: Path | None, checked: Path | None, as_json: bool, **given: Any) -> None:
    """Write MODELS (.onnx files, bundles) into a repository that NVIDIA Triton serves.

    A model that is in the repository already gets a new version. --check looks at a repository instead, also one that
    was written or changed by hand.
    """
    if checked is not None:
        if models or output is not None:
            raise UsageError("--check takes a repository alone; package first, then check")
        _check(checked, as_json)
        return
    if not models or output is None:
        raise UsageError("give one or more models and -o repository, or --check repository")
    from na_deploy.deployment.options import PackageOptions
    from na_deploy.deployment.repository import package

    options = PackageOptions(
        backend=given["backend"],
        precision=given["precision"],
        name=given["name"],
        version=given["version"],
        max_batch=given["max_batch"],
        preferred=_numbers(given["preferred"], "--preferred"),
        delay_ms=given["batch_delay_ms"],
        queue=given["queue"],
        timeout_ms=given["timeout_ms"],
        instances=given["instances"],
        device=given["device"],
        gpus=_numbers(given["gpus"], "--gpus"),
        threads=given["threads"],
        warm_up=given["warm_up"],
        cuda_graphs=given["cuda_graphs"],
        cache=given["cache"],
        labels=given["labels"],
        versions=given["serve_versions"],
        preprocess=given["preprocess"],
        operators=given["operators"],
        mount=given["mount"],
        shapes=given["inputs"],
    )
    with progress_line("reading the models") as progress:
        written = package(models, output, options, progress)
    files: list[Path] = []
    if given["cluster"] is not None:
        from na_deploy.deployment.cluster import write_cluster_files

        files = write_cluster_files(output, given["cluster"], options.mount)
    if as_json:
        print_json({"models": [_as_dict(model) for model in written], "files": [str(path) for path in files]})
        return
    _print(written, files, output, options.mount)


def _check(repository: Path, as_json: bool) -> None:
    from na_deploy.deployment.checks import check_repository, model_folders

    findings = check_repository(repository)
    if as_json:
        print_json({"findings": [{"model": finding.model, "text": finding.text} for finding in findings]})
    else:
        _print_findings(findings)
    if findings:
        models = len({finding.model for finding in findings})
        raise NaDeployError(f"{len(findings)} findings in {models} of {len(model_folders(repository))} models")
    if not as_json:
        count = len(model_folders(repository))
        console().print(f"{count} model{'s' if count != 1 else ''}, nothing found")


def _print_findings(findings: list[Finding]) -> None:
    from rich.markup import escape

    if findings:
        rows = table("model", "finding")
        for finding in findings:
            rows.add_row(escape(finding.model), escape(finding.text))
        console().print(rows)


def _numbers(text: str | None, option: str) -> tuple[int, ...]:
    parts = [] if text is None else text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UsageError(f"cannot read {option} {text!r}; write numbers joined by commas, such as 4,8")
    return tuple(int(part) for part in parts)


def _as_dict(model: PackagedModel) -> dict[str, Any]:
    return {
        "name": model.name,
        "version": model.version,
        "backend": model.backend,
        "max_batch": model.max_batch,
        "folder": str(model.folder),
        "notes": list(model.notes),
    }


def _print(written: list[PackagedModel], files: list[Path], repository: Path, mount: str) -> None:
    from rich.markup import escape

    from na_deploy.deployment.commands import commands

    out = console()
    rows = table("model", "version", "backend", "largest batch", right=("version", "largest batch"))
    for model in written:
        batch = str(model.max_batch) if model.max_batch else "fixed"
        rows.add_row(escape(model.name), str(model.version), model.backend, batch)
    out.print(rows)
    for model in written:
        for note in model.notes:
            out.print(escape(f"{model.name}: {note}"))
    if files:
        out.print(escape("wrote " + ", ".join(str(path) for path in files)))
    for title, line in commands(repository, mount):
        out.print(f"\n{title}", style="bold")
        click.echo(f"  {line}")
