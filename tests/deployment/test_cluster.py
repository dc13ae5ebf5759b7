"""The files for a cluster: they parse, fit Kubernetes' schemas, and agree with the repository they are for."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import kubernetes_validate
import onnx
import pytest
import yaml
from small_models import small_model

from na_deploy.deployment import PackageOptions, package
from na_deploy.deployment.cluster import QUEUE_METRIC, write_cluster_files
from na_deploy.deployment.commands import IMAGE, OWN_IMAGE, commands
from na_deploy.deployment.protobuf import CONFIG
from na_deploy.errors import NaDeployError, UsageError


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "model.onnx"
    onnx.save(small_model(batch="batch"), path)
    return path


def documents(path: Path) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all(path.read_text()))


def container(folder: Path) -> dict[str, Any]:
    deployment = documents(folder / "kubernetes.yaml")[0]
    found: dict[str, Any] = deployment["spec"]["template"]["spec"]["containers"][0]
    return found


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_kubernetes_files_fit_the_schemas(model: Path, repository: Path, tmp_path: Path, backend: str) -> None:
    package([model], repository, PackageOptions(backend=backend, operators="none", cache=True))
    write_cluster_files(repository, tmp_path / "cluster")
    kinds = []
    for document in documents(tmp_path / "cluster" / "kubernetes.yaml"):
        kubernetes_validate.validate(document, "1.31", strict=True)
        kinds.append(document["kind"])
    assert kinds == ["Deployment", "Service", "HorizontalPodAutoscaler"]


def test_the_schemas_notice_a_wrong_field(model: Path, repository: Path, tmp_path: Path) -> None:
    package([model], repository, PackageOptions(operators="none"))
    write_cluster_files(repository, tmp_path / "cluster")
    document = documents(tmp_path / "cluster" / "kubernetes.yaml")[0]
    document["spec"]["template"]["spec"]["containers"][0]["probes"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, "1.31", strict=True)


def test_selectors_ports_and_metrics_agree(model: Path, repository: Path, tmp_path: Path) -> None:
    package([model], repository, PackageOptions(operators="none"))
    write_cluster_files(repository, tmp_path / "cluster", mount="/data/models")
    deployment, service, autoscaler = documents(tmp_path / "cluster" / "kubernetes.yaml")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert deployment["spec"]["selector"]["matchLabels"] == service["spec"]["selector"] == labels
    ports = {port["name"] for port in container(tmp_path / "cluster")["ports"]}
    assert {port["targetPort"] for port in service["spec"]["ports"]} == ports
    probes = {
        container(tmp_path / "cluster")[f"{kind}Probe"]["httpGet"]["port"]
        for kind in ("startup", "readiness", "liveness")
    }
    assert probes <= ports
    assert autoscaler["spec"]["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    (metric,) = autoscaler["spec"]["metrics"]
    (adapter,) = documents(tmp_path / "cluster" / "prometheus-adapter.yaml")
    assert metric["pods"]["metric"]["name"] == adapter["rules"]["custom"][0]["name"]["as"] == QUEUE_METRIC
    mounts = {mount["name"]: mount["mountPath"] for mount in container(tmp_path / "cluster")["volumeMounts"]}
    assert mounts["models"] == "/data/models"
    assert "--model-repository=/data/models" in container(tmp_path / "cluster")["args"]
    volumes = {volume["name"] for volume in deployment["spec"]["template"]["spec"]["volumes"]}
    assert volumes == mounts.keys()


@pytest.mark.parametrize("backend", ["python", "onnxruntime"])
def test_gpus_are_asked_for_only_by_models_on_them(model: Path, repository: Path, tmp_path: Path, backend: str) -> None:
    package([model], repository, PackageOptions(operators="none"))
    write_cluster_files(repository, tmp_path / "cluster")
    assert "nvidia.com/gpu" not in container(tmp_path / "cluster")["resources"]["limits"]
    package([model], repository, PackageOptions(name="fast", device="gpu", backend=backend))
    write_cluster_files(repository, tmp_path / "cluster")
    assert "--gpus=all" in shlex.split(commands(repository, "/models")[0][1])
    assert container(tmp_path / "cluster")["resources"]["limits"]["nvidia.com/gpu"] == 1


def test_na_deploy_is_installed_only_for_the_python_backend(model: Path, repository: Path, tmp_path: Path) -> None:
    package([model], repository, PackageOptions(operators="none"))
    write_cluster_files(repository, tmp_path / "cluster")
    assert container(tmp_path / "cluster")["image"] == IMAGE
    assert "pip install" not in (tmp_path / "cluster" / "Dockerfile").read_text()
    package([model], repository, PackageOptions(name="ours", backend="python"))
    write_cluster_files(repository, tmp_path / "cluster")
    assert container(tmp_path / "cluster")["image"] == OWN_IMAGE
    dockerfile = (tmp_path / "cluster" / "Dockerfile").read_text().splitlines()
    assert f"FROM {IMAGE}" in dockerfile
    assert any(line.startswith("RUN python3 -m pip install") for line in dockerfile)


def test_kserve_is_written_only_where_the_operator_library_is_where_kserve_puts_it(
    model: Path, repository: Path, tmp_path: Path
) -> None:
    library = tmp_path / "library.so"
    library.write_bytes(b"\x7fELF")
    package([model], repository, PackageOptions(operators=str(library)))
    files = write_cluster_files(repository, tmp_path / "cluster")
    assert "kserve.yaml" not in [path.name for path in files]
    other = tmp_path / "for_kserve"
    package([model], other, PackageOptions(operators=str(library), mount="/mnt/models"))
    write_cluster_files(other, tmp_path / "cluster", mount="/mnt/models")
    (service,) = documents(tmp_path / "cluster" / "kserve.yaml")
    assert (service["apiVersion"], service["kind"]) == ("serving.kserve.io/v1beta1", "InferenceService")
    (only,) = service["spec"]["predictor"]["containers"]
    assert "--model-repository=/mnt/models" in only["args"]


def test_a_repository_that_fails_the_checks_gets_no_files(model: Path, repository: Path, tmp_path: Path) -> None:
    package([model], repository, PackageOptions(operators="none"))
    (repository / "model" / CONFIG).write_text('name: "model"')
    with pytest.raises(NaDeployError, match="does not pass the checks"):
        write_cluster_files(repository, tmp_path / "cluster")
    assert not (tmp_path / "cluster").exists()


def test_the_files_do_not_go_into_the_repository(model: Path, repository: Path) -> None:
    package([model], repository, PackageOptions(operators="none"))
    with pytest.raises(UsageError, match="takes every folder for a model"):
        write_cluster_files(repository, repository / "cluster")


def test_command_lines_name_what_the_models_need(model: Path, repository: Path) -> None:
    package([model], repository, PackageOptions(backend="python", cache=True))
    serve = shlex.split(next(line for title, line in commands(repository, "/models") if title.startswith("Serve")))
    assert OWN_IMAGE in serve
    assert "--cache-config=local,size=268435456" in serve
    assert f"{repository}:/models:ro" in serve
    assert not any(argument.startswith("--backend-config") for argument in serve)
    (repository / "libna_deploy_trt.so").write_bytes(b"\x7fELF")
    lines = dict(commands(repository, "/models"))
    assert "libna_deploy_trt.so" in shlex.split(next(lines[title] for title in lines if "plugins load" in title))[-1]
    serve = shlex.split(next(lines[title] for title in lines if title.startswith("Serve")))
    assert "--backend-config=tensorrt,plugins=/models/libna_deploy_trt.so" in serve
