"""The command lines that serve a repository and look at what serves. Text only, runs nothing."""

from __future__ import annotations

import shlex
from pathlib import Path

from na_deploy.deployment import protobuf
from na_deploy.deployment.checks import model_folders
from na_deploy.deployment.config import PLUGIN_LIBRARY, SETTING
from na_deploy.deployment.protobuf import CONFIG, Config

IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"
"""NVIDIA's container; a TensorRT engine needs the one whose TensorRT it was built with."""

OWN_IMAGE = "na-deploy-triton"
"""Tag of the generated Dockerfile's image: NVIDIA's container with na-deploy in its Python."""

CACHE_BYTES = 256 << 20


def configs_of(repository: Path) -> list[Config]:
    """Return the configurations in a repository, by name."""
    return [protobuf.read(folder / CONFIG) for folder in model_folders(repository) if (folder / CONFIG).is_file()]


def needs_na_deploy(configs: list[Config]) -> bool:
    """Tell whether a model runs in the python backend, whose Python must have na_deploy."""
    return any(
        config.backend == "python" and any(k.startswith(SETTING) for k in config.parameters) for config in configs
    )


def on_gpu(configs: list[Config]) -> bool:
    """Tell whether a model runs on a GPU, placed there by Triton or by itself."""
    kinds = protobuf.messages().ModelInstanceGroup
    placed = {group.kind for config in configs for group in config.instance_group}
    return not placed.isdisjoint({kinds.KIND_GPU, kinds.KIND_MODEL})


def server_arguments(repository: Path, mount: str) -> list[str]:
    """Return ``tritonserver``'s arguments for a repository that lies at ``mount`` for it."""
    configs = configs_of(repository)
    arguments = [f"--model-repository={mount}", "--model-control-mode=none", "--exit-on-error=true"]
    if (repository / PLUGIN_LIBRARY).is_file():
        arguments.append(f"--backend-config=tensorrt,plugins={mount}/{PLUGIN_LIBRARY}")
    if any(config.response_cache.enable for config in configs):
        arguments.append(f"--cache-config=local,size={CACHE_BYTES}")
    return arguments


def commands(repository: Path, mount: str) -> list[tuple[str, str]]:
    """Return titles and shell lines: serve in a container, ask whether it is ready, ask for a model's answer."""
    configs = configs_of(repository)
    image = OWN_IMAGE if needs_na_deploy(configs) else IMAGE
    docker = [
        "docker",
        "run",
        "--rm",
        f"--name={OWN_IMAGE}",
        "--shm-size=1g",
        *(["--gpus=all"] if on_gpu(configs) else []),
    ]
    for port in (8000, 8001, 8002):
        docker += ["-p", f"127.0.0.1:{port}:{port}"]
    docker += ["-v", f"{repository.absolute()}:{mount}:ro", image, "tritonserver", *server_arguments(repository, mount)]
    title = "Serve (the image comes from the Dockerfile of --cluster)" if image == OWN_IMAGE else "Serve"
    lines = [(title, shlex.join(docker)), ("Ready?", "curl -f http://127.0.0.1:8000/v2/health/ready")]
    if configs:
        lines.append(("What a model takes", f"curl http://127.0.0.1:8000/v2/models/{configs[0].name}"))
    if (repository / PLUGIN_LIBRARY).is_file():
        # Triton only logs it when a plugin library cannot be opened.
        look = f"grep -m 1 {PLUGIN_LIBRARY} /proc/[0-9]*/maps"
        lines.append(
            ("Did the plugins load? (no line: no)", shlex.join(["docker", "exec", OWN_IMAGE, "sh", "-c", look]))
        )
    lines.append(("Check again after changes", shlex.join(["na-deploy", "package", "--check", str(repository)])))
    return lines
