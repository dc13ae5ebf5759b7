"""Files that run a repository in a cluster: Dockerfile, Kubernetes, the metric to scale by, KServe. Applies nothing.

The YAML is written by PyYAML from plain values. Every file is a starting point to read and change.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from na_deploy import __version__
from na_deploy.deployment.checks import check_repository
from na_deploy.deployment.commands import IMAGE, OWN_IMAGE, configs_of, needs_na_deploy, on_gpu, server_arguments
from na_deploy.deployment.config import SETTING
from na_deploy.deployment.protobuf import Config
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.files import staged_output

APP = "na-deploy-triton"
PORTS = {"http": 8000, "grpc": 8001, "metrics": 8002}
QUEUE_METRIC = "triton_queue_time_us"
QUEUE_TARGET_US = 20_000
"""Microseconds a request may wait on average before another replica is started."""

CLAIM = "na-deploy-models"
KSERVE_MOUNT = "/mnt/models"
USER = 1000
"""``triton-server`` in NVIDIA's container."""


def write_cluster_files(repository: str | Path, folder: str | Path, mount: str = "/models") -> list[Path]:
    """Write the files.

    Args:
        repository: the model repository; it must pass the checks.
        folder: the files' place; made if it does not exist. It must not lie in the repository, where Triton would
            take it for a model.
        mount: the repository's place as Triton sees it.

    Returns:
        The files written. ``kserve.yaml`` is left out where operator libraries are named outside ``/mnt/models``, where
        KServe puts repositories.

    Raises:
        UsageError: the folder cannot be written, or lies in the repository.
        NaDeployError: the repository does not pass the checks.
        MissingDependencyError: PyYAML is not installed.
    """
    repository, folder = Path(repository), Path(folder)
    if folder.resolve().is_relative_to(repository.resolve()):
        raise UsageError(
            f"{folder} lies in the repository, where Triton takes every folder for a model; choose another"
        )
    if not folder.absolute().parent.is_dir():
        raise UsageError(
            f"cannot write {folder}: {folder.absolute().parent} does not exist; create it or choose another"
        )
    findings = check_repository(repository)
    if findings:
        raise NaDeployError(f"{repository} does not pass the checks: " + "; ".join(map(str, findings)))
    configs = configs_of(repository)
    texts = {
        "Dockerfile": dockerfile(configs),
        "kubernetes.yaml": to_yaml(kubernetes(repository, mount)),
        "prometheus-adapter.yaml": to_yaml([adapter_values()]),
    }
    if fits_kserve(configs):
        texts["kserve.yaml"] = to_yaml([kserve(repository)])
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror or error}; choose another folder") from None
    for name, text in texts.items():
        with staged_output(folder / name) as path:
            path.write_text(text, encoding="utf-8")
    return [folder / name for name in texts]


def to_yaml(documents: list[dict[str, Any]]) -> str:
    """Return documents as YAML, keys in the order given.

    Raises:
        MissingDependencyError: PyYAML is not installed.
    """
    try:
        import yaml
    except ImportError:
        raise MissingDependencyError(
            "writing files for a cluster needs PyYAML, which is not installed; "
            "install it with: pip install 'na-deploy[triton]'"
        ) from None
    text: str = yaml.safe_dump_all(documents, sort_keys=False, width=120, explicit_start=True)
    return text


def dockerfile(configs: list[Config]) -> str:
    """Return the image that serves these models: NVIDIA's, with na-deploy where the python backend needs it."""
    lines = [
        "# Build beside a wheel of na-deploy (pip wheel --no-deps -w . <na-deploy's sources>):",
        f"#   docker build -t {OWN_IMAGE} .",
        "# A TensorRT engine needs the release whose TensorRT it was built with; NVIDIA's release notes say which.",
        f"FROM {IMAGE}",
    ]
    if needs_na_deploy(configs):
        setting = SETTING + "backend"
        runtimes = {each.parameters[setting].string_value for each in configs if setting in each.parameters}
        more = " openvino" if "openvino" in runtimes else ""
        lines += [
            f"COPY na_deploy-{__version__}-*.whl /tmp/",
            "# The python backend runs the image's python3, which must import na_deploy; PyTorch is not needed.",
            f"RUN python3 -m pip install --no-cache-dir --break-system-packages /tmp/na_deploy-*.whl{more} \\",
            "    && rm /tmp/na_deploy-*.whl \\",
            "    && python3 -c 'import na_deploy, onnxruntime'",
        ]
    lines += [f"USER {USER}", f"EXPOSE {' '.join(map(str, PORTS.values()))}", ""]
    return "\n".join(lines)


def kubernetes(repository: Path, mount: str) -> list[dict[str, Any]]:
    """Return Deployment, Service and HorizontalPodAutoscaler."""
    labels = {"app.kubernetes.io/name": APP}
    return [_deployment(repository, mount, labels), _service(labels), _autoscaler(labels)]


def _deployment(repository: Path, mount: str, labels: dict[str, str]) -> dict[str, Any]:
    configs = configs_of(repository)
    limits: dict[str, Any] = {"memory": "8Gi"}
    if on_gpu(configs):
        # A shared GPU has another name: nvidia.com/gpu.shared (time slices), nvidia.com/mig-1g.10gb (MIG).
        limits["nvidia.com/gpu"] = 1
    container = {
        "name": "triton",
        "image": OWN_IMAGE if needs_na_deploy(configs) else IMAGE,
        "args": ["tritonserver", *server_arguments(repository, mount)],
        "ports": [{"name": name, "containerPort": port} for name, port in PORTS.items()],
        # Loading and warming engines takes long once; after that, silence means trouble.
        "startupProbe": {**_probe("/v2/health/ready"), "periodSeconds": 5, "failureThreshold": 120},
        "readinessProbe": {**_probe("/v2/health/ready"), "periodSeconds": 5, "failureThreshold": 2},
        "livenessProbe": {**_probe("/v2/health/live"), "periodSeconds": 10, "failureThreshold": 3},
        # Time for the Service to stop sending before Triton finishes what it has.
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", "10"]}}},
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": limits},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "models", "mountPath": mount, "readOnly": True},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            {"name": "temporary", "mountPath": "/tmp"},
        ],
    }
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": APP, "labels": labels},
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "template": {
                "metadata": {
                    "labels": labels,
                    "annotations": {"prometheus.io/scrape": "true", "prometheus.io/port": str(PORTS["metrics"])},
                },
                "spec": {
                    "automountServiceAccountToken": False,
                    "securityContext": {
                        "runAsNonRoot": True,
                        "runAsUser": USER,
                        "seccompProfile": {"type": "RuntimeDefault"},
                    },
                    "terminationGracePeriodSeconds": 60,
                    "containers": [container],
                    "volumes": [
                        {"name": "models", "persistentVolumeClaim": {"claimName": CLAIM, "readOnly": True}},
                        # The python backend passes tensors through shared memory.
                        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": "1Gi"}},
                        {"name": "temporary", "emptyDir": {"sizeLimit": "1Gi"}},
                    ],
                },
            },
        },
    }


def _probe(path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": "http"}, "timeoutSeconds": 3}


def _service(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": APP, "labels": labels},
        "spec": {
            "selector": labels,
            "ports": [{"name": name, "port": port, "targetPort": name} for name, port in PORTS.items()],
        },
    }


def _autoscaler(labels: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": APP, "labels": labels},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": APP},
            "minReplicas": 1,
            "maxReplicas": 4,
            "metrics": [
                {
                    "type": "Pods",
                    "pods": {
                        "metric": {"name": QUEUE_METRIC},
                        "target": {"type": "AverageValue", "averageValue": str(QUEUE_TARGET_US)},
                    },
                }
            ],
            "behavior": {"scaleDown": {"stabilizationWindowSeconds": 300}},
        },
    }


def adapter_values() -> dict[str, Any]:
    """Return values for the Helm chart prometheus-adapter: mean microseconds that requests waited, by pod."""
    rate = "sum(rate({}{{<<.LabelMatchers>>}}[1m])) by (<<.GroupBy>>)"
    waited, answered = rate.format("nv_inference_queue_duration_us"), rate.format("nv_inference_request_success")
    rule = {
        "seriesQuery": 'nv_inference_queue_duration_us{namespace!="",pod!=""}',
        "resources": {"overrides": {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}},
        "name": {"matches": "^nv_inference_queue_duration_us$", "as": QUEUE_METRIC},
        # No requests: 0 rather than nothing, so that replicas are let go.
        "metricsQuery": f"{waited} / clamp_min({answered}, 0.001)",
    }
    return {"rules": {"default": False, "custom": [rule]}}


def kserve(repository: Path) -> dict[str, Any]:
    """Return an InferenceService of its own container; KServe copies the repository to ``/mnt/models``."""
    configs = configs_of(repository)
    limits: dict[str, Any] = {"cpu": "4", "memory": "8Gi"}
    if on_gpu(configs):
        limits["nvidia.com/gpu"] = 1
    container = {
        "name": "kserve-container",
        "image": OWN_IMAGE if needs_na_deploy(configs) else IMAGE,
        "args": ["tritonserver", "--http-port=8080", "--grpc-port=9000", *server_arguments(repository, KSERVE_MOUNT)],
        # KServe's storage initializer takes it from here: pvc://, s3://, gs://, https://.
        "env": [{"name": "STORAGE_URI", "value": f"pvc://{CLAIM}"}],
        "ports": [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}],
        "readinessProbe": {"httpGet": {"path": "/v2/health/ready", "port": 8080}, "periodSeconds": 5},
        "livenessProbe": {"httpGet": {"path": "/v2/health/live", "port": 8080}, "periodSeconds": 10},
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": limits},
    }
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": APP},
        "spec": {
            "predictor": {
                "minReplicas": 1,
                "maxReplicas": 4,
                # Requests in flight for each replica; KServe knows no queue time.
                "scaleMetric": "concurrency",
                "scaleTarget": 8,
                "containers": [container],
            }
        },
    }


def fits_kserve(configs: list[Config]) -> bool:
    """Tell whether the operator libraries are named where KServe puts the repository."""
    libraries = [library for config in configs for library in config.model_operations.op_library_filename]
    return all(library.startswith(KSERVE_MOUNT + "/") for library in libraries)
