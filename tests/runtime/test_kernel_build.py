"""Compiling the GPU kernels into the package: the architectures, the tools, the errors without them."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from na_deploy.cli.main import run
from na_deploy.errors import MissingDependencyError, NaDeployError, UsageError
from na_deploy.runtime import kernel_build
from na_deploy.runtime.kernel_build import KernelOptions, build_kernels, find_nvcc, find_sources, find_tensorrt

CMAKE = """#!/bin/sh
echo "$@" >> {log}
if [ "$1" = --install ]; then
  mkdir -p "$4/na_deploy/lib"
  for n in ort cuda; do echo new > "$4/na_deploy/lib/libna_deploy_$n.so"; done
fi
case "$1" in {fail}) echo "nvcc fatal: Unsupported gpu architecture"; exit 3;; esac
"""
NVIDIA_SMI = """#!/bin/sh
case "$1" in --query-gpu=compute_cap) printf '{capabilities}';; *) echo "| CUDA Version: {cuda} |";; esac
"""


class Machine:
    """A machine whose tools are scripts."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.tools, self.folder, self.log = folder / "tools", folder / "work", folder / "cmake.log"
        self.package = folder / "package" / "na_deploy"
        for made in (self.tools, self.folder, self.package / "lib"):
            made.mkdir(parents=True)
        (self.package / "lib" / "libna_deploy_ort.so").write_text("old")
        sources = self.package / "sources" / "plugins" / "cuda"
        sources.mkdir(parents=True)
        (sources / "CMakeLists.txt").touch()
        monkeypatch.setattr(kernel_build, "package_folder", lambda: self.package)
        monkeypatch.setenv("PATH", f"{self.tools}:/usr/bin:/bin")
        for name in ("CUDA_HOME", "CUDA_PATH", "TENSORRT_ROOT"):
            monkeypatch.delenv(name, raising=False)
        self.add("cmake", CMAKE.format(log=self.log, fail="never"))
        self.add("c++", "#!/bin/sh\n")
        self.add("nvcc", "#!/bin/sh\n")
        is_file = Path.is_file
        monkeypatch.setattr(Path, "is_file", lambda path: not str(path).startswith("/usr/local/cuda") and is_file(path))

    def add(self, name: str, script: str) -> None:
        (self.tools / name).write_text(script)
        (self.tools / name).chmod(stat.S_IRWXU)

    def add_gpu(self, capabilities: str, cuda: str = "13.0") -> None:
        self.add("nvidia-smi", NVIDIA_SMI.format(capabilities=capabilities, cuda=cuda))

    def build(self, **options: object) -> list[Path]:
        return build_kernels(KernelOptions(folder=self.folder, **options), lambda _: None)  # type: ignore[arg-type]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(tmp_path, monkeypatch)


def test_the_libraries_for_this_machines_gpus_take_the_installed_ones_place(machine: Machine):
    machine.add_gpu("9.0\\n8.6\\n9.0\\n")
    installed = machine.build()
    assert installed == [machine.package / "lib" / f"libna_deploy_{name}.so" for name in ("cuda", "ort")]
    assert {path.read_text() for path in installed} == {"new\n"}
    assert sorted(path.name for path in (machine.package / "lib").iterdir()) == [path.name for path in installed]
    configured = machine.log.read_text().splitlines()[0].split()
    assert "-DCMAKE_CUDA_ARCHITECTURES=86-real;90a-real" in configured
    assert f"-DCMAKE_CUDA_COMPILER={machine.tools / 'nvcc'}" in configured
    assert "-DNA_DEPLOY_CUDA=ON" in configured


def test_a_fat_build_leaves_the_architectures_to_cmake(machine: Machine):
    machine.build(fat=True)
    assert "-DCMAKE_CUDA_ARCHITECTURES= " in machine.log.read_text()


def test_named_architectures_need_no_gpu(machine: Machine):
    machine.build(architectures=("80", "90a"))
    assert "-DCMAKE_CUDA_ARCHITECTURES=80-real;90a-real" in machine.log.read_text()


def test_without_a_gpu_it_says_what_to_give(machine: Machine, capsys: pytest.CaptureFixture[str]):
    assert run(["build-kernels", "--folder", str(machine.folder)]) == 2
    assert "finds no GPU here to compile for; give --architectures" in capsys.readouterr().err
    with pytest.raises(UsageError, match="not both"):
        machine.build(fat=True, architectures=("80",))


def test_a_failure_shows_the_compilers_words_and_leaves_the_installed_library(machine: Machine):
    machine.add("cmake", CMAKE.format(log=machine.log, fail="--build"))
    with pytest.raises(NaDeployError, match="Unsupported gpu architecture"):
        machine.build(architectures=("80",))
    assert (machine.package / "lib" / "libna_deploy_ort.so").read_text() == "old"


def test_a_missing_compiler_is_named_with_its_package(machine: Machine, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(
        MissingDependencyError, match=r"no-such-compiler, which was not found; install .*apt install g\+\+"
    ):
        machine.build(architectures=("80",))


def test_a_driver_older_than_the_packages_is_told_which_toolkit_to_install(machine: Machine):
    (machine.tools / "nvcc").unlink()
    machine.add_gpu("8.0\\n", cuda="12.4")
    with pytest.raises(MissingDependencyError, match=r"takes CUDA 12\.4 at most.*install NVIDIA's CUDA toolkit 12\.4"):
        machine.build()


@pytest.mark.parametrize(
    ("answer", "remedy"),
    [
        ("ERROR: No matching distribution found for nvidia-cuda-nvcc==13.0.*", "install NVIDIA's CUDA toolkit 13.0"),
        ("python: No module named pip", "install pip into this environment, or NVIDIA's CUDA toolkit 13.0"),
    ],
    ids=["offline", "without pip"],
)
def test_a_compiler_that_cannot_be_fetched_is_told_with_the_reason_and_what_to_install(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, answer: str, remedy: str
):
    (machine.tools / "nvcc").unlink()
    machine.add("python", f"#!/bin/sh\necho '{answer}' >&2\nexit 1\n")
    monkeypatch.setattr("sys.executable", str(machine.tools / "python"))
    with pytest.raises(MissingDependencyError) as raised:
        machine.build(architectures=("80",))
    assert answer in str(raised.value)
    assert f"{remedy} and set CUDA_HOME" in str(raised.value)
    assert not (machine.folder / f"cuda-{kernel_build.CUDA_VERSION}" / "complete").exists()


def test_a_compiler_that_was_fetched_is_taken_again(machine: Machine):
    (machine.tools / "nvcc").unlink()
    kept = machine.folder / f"cuda-{kernel_build.CUDA_VERSION}"
    nvcc = kept / "nvidia" / "cu13" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    shutil.copy("/bin/true", nvcc)
    (kept / "complete").touch()
    assert find_nvcc(machine.folder, pytest.fail) == nvcc


def test_tensorrts_headers_are_fetched_for_the_installed_version_with_all_they_include(
    machine: Machine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    served = tmp_path / "served" / "10.16" / "include"
    served.mkdir(parents=True)
    (served / "NvInferRuntime.h").write_text('#include <cstdint>\n#include "NvInferRuntimePlugin.h"\n')
    (served / "NvInferRuntimePlugin.h").write_text('#include "NvInferRuntime.h"\n')
    (served / "NvInferSafe.h").write_text("")
    monkeypatch.setenv("NA_DEPLOY_TENSORRT_HEADERS", (tmp_path / "served").as_uri())
    monkeypatch.setattr(kernel_build, "_tensorrt_version", lambda: "10.16")
    root = find_tensorrt(None, machine.folder, lambda _: None)
    assert root is not None
    assert sorted(path.name for path in (root / "include").iterdir()) == ["NvInferRuntime.h", "NvInferRuntimePlugin.h"]
    assert find_tensorrt(None, machine.folder, pytest.fail) == root  # kept

    said: list[str] = []
    monkeypatch.setattr(kernel_build, "_tensorrt_version", lambda: "10.99")
    assert find_tensorrt(None, machine.folder, said.append) is None
    assert "install libnvinfer-headers-dev, or unpack TensorRT and give --tensorrt-root" in said[-1]
    assert not (machine.folder / "tensorrt-10.99").exists()


def test_a_folder_without_headers_is_refused(tmp_path: Path):
    with pytest.raises(UsageError, match=r"holds no include/NvInferRuntime\.h"):
        find_tensorrt(tmp_path, tmp_path, pytest.fail)


def test_the_tree_is_its_own_source():
    assert (find_sources() / "CMakeLists.txt").is_file()
