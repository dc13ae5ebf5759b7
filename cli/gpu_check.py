"""Everything that could not be executed without an NVIDIA GPU, executed: ``na-deploy doctor --gpu``.

Each case is a function that returns what it found in words, raises :class:`Skipped` where something is not installed,
and any other exception where something is wrong. docs/engines.md lists the cases; a test holds the two together.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from na_deploy.attention.schema import DOMAIN, PACKED_OPERATOR, PLUGIN_ATTRIBUTES, VERSION
from na_deploy.errors import MissingDependencyError, NaDeployError
from na_deploy.exporter.function_body import BodyFeatures, packed_function
from na_deploy.model_file.tensors import Array
from na_deploy.progress import Progress
from na_deploy.runtime.building.build import build
from na_deploy.runtime.building.options import BuildOptions
from na_deploy.runtime.session import Session, load

OPSET = 20
SIDE, HEADS, HEAD_DIM, KERNEL, CLASSES = 14, 4, 32, 7, 10
CHANNELS = HEADS * HEAD_DIM
TOLERANCES = {"float32": 2e-3, "float16": 1e-2, "bfloat16": 5e-2}
"""Largest accepted difference, relative to the largest number. TF32 products of float32 models have 10 bits."""


class Skipped(Exception):  # noqa: N818
    """A case cannot be run on this machine; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Outcome of a case.

    Attributes:
        name: the case.
        status: ``"passed"``, ``"failed"`` or ``"skipped"``.
        detail: what it found, what is wrong, or why it was not run.
        seconds: time it took.
    """

    name: str
    status: str
    detail: str
    seconds: float


@dataclass
class Bench:
    """Files and models that the cases share.

    Attributes:
        folder: temporary files.
        device: number of the GPU.
        bundles: what was built so far, by name.
        reference: the float32 model on the CPU, once it was needed.
    """

    folder: Path
    device: int
    bundles: dict[str, Path] = field(default_factory=dict)
    reference: Session | None = None

    def model(self, dtype: str = "float32") -> Path:
        """Return a model of two attention layers with a free batch, in one precision."""
        path = self.folder / f"{dtype}.onnx"
        if not path.is_file():
            onnx.save(attention_model(dtype), path)
        return path

    def bundle(self, backend: str, name: str = "plain", dtype: str = "float32", **options: Any) -> Path:
        """Return a bundle, built when it is first asked for."""
        key = f"{backend}-{name}-{dtype}"
        if key not in self.bundles:
            target = self.folder / f"{key}.{'zip' if options.get('plugins') == 'embed' else 'bundle'}"
            settings = BuildOptions(backend=backend, batch=(1, 4, 8), device=self.device, **options)
            build(self.model(dtype), target, settings)
            self.bundles[key] = target
        return self.bundles[key]

    def images(self, batch: int, dtype: str = "float32", seed: int = 0) -> Array:
        """Return random input."""
        from na_deploy.model_file.tensors import numpy_type

        random = np.random.default_rng(seed)
        array: Array = random.standard_normal((batch, CHANNELS, SIDE, SIDE), dtype=np.float32).astype(numpy_type(dtype))
        return array

    @contextmanager
    def session(self, bundle: Path, **options: Any) -> Iterator[Session]:
        """Open a bundle on the device."""
        with load(bundle, device=self.device, **options) as session:
            yield session

    def expected(self, array: Array) -> Array:
        """Return the float32 model's output on ONNX Runtime's CPU with nothing of ours registered."""
        if self.reference is None:
            self.reference = load(self.model(), custom_operators=False, providers=["CPUExecutionProvider"])
        return self.reference.run(array.astype(np.float32))["scores"]

    def difference(self, found: Array, array: Array, dtype: str = "float32") -> float:
        """Return the largest difference to :meth:`expected`, relative to its largest number.

        Raises:
            NaDeployError: it is above the precision's tolerance.
        """
        right = self.expected(array)
        worst = float(np.abs(found.astype(np.float32) - right).max() / np.abs(right).max())
        if not worst <= TOLERANCES[dtype]:
            raise NaDeployError(f"differs from ONNX Runtime by {worst:.1e}, more than {TOLERANCES[dtype]:.0e} accepted")
        return worst


Case = Callable[[Bench], str]


def run_cases(cases: dict[str, Case], device: int, progress: Progress) -> Iterator[Outcome]:
    """Run the cases in order and yield what each found; none ends the run."""
    with tempfile.TemporaryDirectory(prefix="na-deploy-gpu-") as folder:
        bench = Bench(Path(folder), device)
        for name, case in cases.items():
            progress(name)
            started = perf_counter()
            try:
                status, detail = "passed", case(bench)
            except (Skipped, MissingDependencyError) as error:
                status, detail = "skipped", str(error)
            except Exception as error:
                status, detail = "failed", f"{type(error).__name__}: {error}"
            yield Outcome(name, status, " ".join(detail.split()), perf_counter() - started)


def attention_model(dtype: str) -> onnx.ModelProto:
    """Return a model: tokens, two neighborhood attention layers with bias (dilations 1 and 2), a mean, a classifier."""
    random = np.random.default_rng(7)
    kind = {"float32": TensorProto.FLOAT, "float16": TensorProto.FLOAT16, "bfloat16": TensorProto.BFLOAT16}[dtype]
    weights: list[onnx.TensorProto] = []

    def weight(name: str, *shape: int) -> str:
        numbers = random.normal(0, shape[0] ** -0.5, shape).astype(np.float32)
        weights.append(helper.make_tensor(name, kind, shape, numbers.ravel().tolist()))
        return name

    def sizes(name: str, *numbers: int) -> str:
        weights.append(numpy_helper.from_array(np.array(numbers, np.int64), name))
        return name

    nodes = [helper.make_node("Transpose", ["image"], ["tokens0"], perm=[0, 2, 3, 1])]
    packed, flat = sizes("packed", 0, SIDE, SIDE, 3, HEADS, HEAD_DIM), sizes("flat", 0, SIDE, SIDE, CHANNELS)
    for layer in range(2):
        bias = weight(f"bias{layer}", HEADS, 2 * KERNEL - 1, 2 * KERNEL - 1)
        nodes += [
            helper.make_node(
                "MatMul", [f"tokens{layer}", weight(f"qkv{layer}", CHANNELS, 3 * CHANNELS)], [f"r{layer}"]
            ),
            helper.make_node("Reshape", [f"r{layer}", packed], [f"p{layer}"]),
            helper.make_node(
                PACKED_OPERATOR,
                [f"p{layer}", bias],
                [f"h{layer}"],
                name=f"attention{layer}",
                domain=DOMAIN,
                kernel_size=[KERNEL] * 2,
                dilation=[layer + 1] * 2,
                stride=[1, 1],
                is_causal=[0, 0],
                scale=HEAD_DIM**-0.5,
                **PLUGIN_ATTRIBUTES,
            ),
            helper.make_node("Reshape", [f"h{layer}", flat], [f"f{layer}"]),
            helper.make_node("Add", [f"tokens{layer}", f"f{layer}"], [f"tokens{layer + 1}"]),
        ]
    nodes += [
        helper.make_node("ReduceMean", ["tokens2", sizes("axes", 1, 2)], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", weight("head", CHANNELS, CLASSES)], ["scores"]),
    ]
    graph = helper.make_graph(
        nodes,
        "check",
        [helper.make_tensor_value_info("image", kind, ("batch", CHANNELS, SIDE, SIDE))],
        [helper.make_tensor_value_info("scores", kind, ("batch", CLASSES))],
        weights,
    )
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, VERSION)],
        functions=[packed_function(BodyFeatures(rel_pos_bias=True), OPSET)],
        ir_version=10,
    )
