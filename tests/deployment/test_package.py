"""Output of `package`: versions, files, settings; and that it writes all of it or nothing."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from detectors import detector
from segmenters import segmenter
from small_models import small_model
from triton_stand_in import Models

from na_deploy.deployment import PackageOptions, check_repository, package
from na_deploy.deployment.cluster import dockerfile
from na_deploy.deployment.commands import configs_of
from na_deploy.deployment.protobuf import CONFIG, Config, messages, read, type_name
from na_deploy.deployment.python_backend.arrays import check_arrays
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import ModelMetadata
from na_deploy.models.preprocessing import Preprocessing
from na_deploy.runtime.building.build import BuildOptions, build
from na_deploy.runtime.bundle import Manifest, Profile, write_bundle

LABELS = {index: f"thing {index}" for index in range(10)}
METADATA = ModelMetadata(
    "nat_mini", num_classes=10, preprocessing=Preprocessing(size=(32, 32), resize=36), labels=LABELS
)
PROPERTIES = METADATA.to_props()
WriteModel = Callable[..., Path]


@pytest.fixture
def free(write_model: WriteModel) -> Path:
    return write_model("free.onnx", batch="batch", properties=PROPERTIES)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "repository"


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def config_of(repository: Path, name: str) -> Config:
    return read(repository / name / CONFIG)


def engine_bundle(path: Path, backend: str = "tensorrt", dtype: str = "float16") -> Path:
    """A bundle as `build` writes it, around an engine that is random bytes."""
    onnx.save(small_model(batch="batch"), path.with_suffix(".onnx"))
    engine = path.with_suffix(".engine")
    engine.write_bytes(hashlib.sha256(b"engine").digest() * 100)
    shape = ("batch", 3, 32, 32)
    write_bundle(
        path,
        {"model.onnx": ("model", path.with_suffix(".onnx")), "model.engine": ("engine", engine)},
        lambda members: Manifest(
            backend=backend,
            members=members,
            inputs=(TensorSpec("image", dtype, shape),),
            outputs=(TensorSpec("logits", dtype, ("batch", 10)),),
            requires={"tensorrt": "11.4", "compute_capability": "9.0"},
            profiles={"image": Profile((1, 3, 32, 32), (8, 3, 32, 32), (16, 3, 32, 32))},
            metadata=PROPERTIES,
        ),
    )
    return path


def test_a_free_batch_is_batched_and_a_fixed_one_is_part_of_the_dimensions(
    free: Path, write_model: WriteModel, repository: Path
) -> None:
    package([free], repository, PackageOptions(max_batch=16))
    package([write_model("fixed.onnx", properties=PROPERTIES)], repository)
    batched, fixed = config_of(repository, "free"), config_of(repository, "fixed")
    assert (batched.max_batch_size, list(batched.input[0].dims), list(batched.output[0].dims)) == (
        16,
        [3, 32, 32],
        [10],
    )
    assert (fixed.max_batch_size, list(fixed.input[0].dims), list(fixed.output[0].dims)) == (0, [1, 3, 32, 32], [1, 10])
    assert batched.HasField("dynamic_batching")
    assert not fixed.HasField("dynamic_batching")


def test_every_setting_reaches_the_configuration(free: Path, repository: Path) -> None:
    options = PackageOptions(
        backend="onnxruntime",
        name="renamed",
        max_batch=32,
        preferred=(16, 8),
        delay_ms=0.5,
        queue=64,
        timeout_ms=250.0,
        instances=3,
        device="gpu",
        gpus=(0, 2),
        threads=2,
        cache=True,
        versions="latest:2",
    )
    package([free], repository, options)
    config = config_of(repository, "renamed")
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [8, 16]
    assert batching.max_queue_delay_microseconds == 500
    assert batching.default_queue_policy.max_queue_size == 64
    assert batching.default_queue_policy.default_timeout_microseconds == 250_000
    assert batching.default_queue_policy.timeout_action == messages().ModelQueuePolicy.REJECT
    (group,) = config.instance_group
    assert (group.count, group.kind, list(group.gpus)) == (3, messages().ModelInstanceGroup.KIND_GPU, [0, 2])
    assert config.parameters["intra_op_thread_count"].string_value == "2"
    assert config.response_cache.enable
    assert config.version_policy.latest.num_versions == 2
    assert [(sample.batch_size, list(sample.inputs["image"].dims)) for sample in config.model_warmup] == [
        (1, [3, 32, 32]),
        (8, [3, 32, 32]),
        (16, [3, 32, 32]),
        (32, [3, 32, 32]),
    ]


def test_labels_come_from_the_model_or_from_a_file(free: Path, repository: Path, tmp_path: Path) -> None:
    package([free], repository)
    assert (repository / "free" / "labels.txt").read_text().splitlines() == list(LABELS.values())
    assert config_of(repository, "free").output[0].label_filename == "labels.txt"
    names = tmp_path / "names.json"
    names.write_text(json.dumps([f"other {index}" for index in range(10)]))
    package([free], repository, PackageOptions(name="other", labels=names))
    assert (repository / "other" / "labels.txt").read_text().splitlines()[9] == "other 9"


def test_a_second_version_keeps_the_first_and_what_is_served(free: Path, repository: Path) -> None:
    package([free], repository, PackageOptions(versions="all"))
    before = (repository / "free" / "1" / "model.onnx").read_bytes()
    onnx.save(small_model(batch="batch", properties=PROPERTIES, seed=7), free)
    (written,) = package([free], repository)
    assert written.version == 2
    assert (repository / "free" / "1" / "model.onnx").read_bytes() == before
    assert (repository / "free" / "2" / "model.onnx").read_bytes() == free.read_bytes() != before
    assert config_of(repository, "free").version_policy.HasField("all")
    assert check_repository(repository) == []


def test_a_version_of_another_shape_is_refused_and_nothing_changes(
    free: Path, write_model: WriteModel, repository: Path
) -> None:
    package([free], repository)
    before = {name: (repository / name).read_bytes() for name in files(repository)}
    other = write_model("other.onnx", batch="batch", size=64)
    with pytest.raises(UsageError, match="other inputs"):
        package([other], repository, PackageOptions(name="free"))
    with pytest.raises(UsageError, match="version 1 already"):
        package([free], repository, PackageOptions(version=1))
    assert {name: (repository / name).read_bytes() for name in files(repository)} == before
    assert [path.name for path in repository.parent.iterdir() if path.name.startswith(".")] == []


def test_nothing_is_written_if_one_of_several_models_is_damaged(free: Path, repository: Path, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(free.read_bytes()[:100])
    with pytest.raises(NaDeployError, match="damaged"):
        package([free, damaged], repository)
    assert not repository.exists()


def test_a_failure_while_moving_takes_out_what_was_moved(
    free: Path, write_model: WriteModel, repository: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package([free], repository, PackageOptions(name="there"))
    before = files(repository)
    real = Path.rename

    def rename(self: Path, target: Path) -> Path:
        if Path(target).name == "second":
            raise OSError(28, "No space left on device", str(target))
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with pytest.raises(OSError, match="No space"):
        package([write_model("first.onnx"), write_model("second.onnx")], repository)
    assert files(repository) == before


def test_the_python_backend_gets_the_model_or_the_whole_bundle(free: Path, repository: Path, tmp_path: Path) -> None:
    build(free, tmp_path / "free.bundle", BuildOptions(batch=(1, 2, 4)))
    package([free], repository, PackageOptions(backend="python", threads=2))
    package([tmp_path / "free.bundle"], repository, PackageOptions(backend="python", name="bundled"))
    assert files(repository / "free" / "1") == {"model.py", "model.onnx"}
    assert files(repository / "bundled" / "1") >= {"model.py", "model.bundle/manifest.json", "model.bundle/model.onnx"}
    assert config_of(repository, "free").parameters["na_deploy.threads"].string_value == "2"
    assert "na_deploy.cuda_graphs" not in config_of(repository, "free").parameters
    graphs = PackageOptions(backend="python", name="graphs", device="gpu", max_batch=6, cuda_graphs=True)
    package([free], repository, graphs)
    assert config_of(repository, "graphs").parameters["na_deploy.cuda_graphs"].string_value == "6"


def test_an_archive_is_packaged_as_a_folder_is(free: Path, repository: Path, tmp_path: Path) -> None:
    build(free, tmp_path / "packed.zip", BuildOptions(batch=(1, 2, 4)))
    package([tmp_path / "packed.zip"], repository)
    assert (repository / "packed" / "1" / "model.onnx").read_bytes() == free.read_bytes()


def test_weights_beside_the_model_come_along(repository: Path, tmp_path: Path) -> None:
    path = tmp_path / "large.onnx"
    onnx.save(
        small_model(batch="batch"), path, save_as_external_data=True, location="large.onnx.data", size_threshold=64
    )
    package([path], repository)
    assert files(repository / "large" / "1") == {"model.onnx", "large.onnx.data"}
    onnx.checker.check_model(repository / "large" / "1" / "model.onnx")
    (tmp_path / "large.onnx.data").unlink()
    with pytest.raises(NaDeployError, match=r"large\.onnx\.data"):
        package([path], repository, PackageOptions(name="again"))


def test_the_operator_library_lies_beside_the_model_and_is_named_in_full(
    free: Path, repository: Path, tmp_path: Path
) -> None:
    library = tmp_path / "some_library.so"
    library.write_bytes(b"\x7fELF library")
    package([free], repository, PackageOptions(operators=str(library), mount="/mnt/models"))
    assert (repository / "free" / "libna_deploy_ort.so").read_bytes() == library.read_bytes()
    named = list(config_of(repository, "free").model_operations.op_library_filename)
    assert named == ["/mnt/models/free/libna_deploy_ort.so"]
    package([free], repository, PackageOptions(name="without", operators="none"))
    assert not config_of(repository, "without").model_operations.op_library_filename


def test_an_engine_becomes_a_plan_with_its_sizes_and_graphs(repository: Path, tmp_path: Path) -> None:
    bundle = engine_bundle(tmp_path / "fast.bundle")
    plugins = tmp_path / "libna_deploy_trt.so"
    plugins.write_bytes(b"\x7fELF plugins")
    options = PackageOptions(preferred=(8,), cuda_graphs=True, gpus=(1,), operators=str(plugins))
    (written,) = package([bundle], repository, options)
    assert (written.backend, written.max_batch) == ("tensorrt", 16)
    assert any("compute_capability 9.0" in note for note in written.notes)
    assert (repository / "fast" / "1" / "model.plan").read_bytes() == (bundle / "model.engine").read_bytes()
    assert (repository / "libna_deploy_trt.so").read_bytes() == plugins.read_bytes()
    config = config_of(repository, "fast")
    assert (config.platform, type_name(config.input[0].data_type)) == ("tensorrt_plan", "TYPE_FP16")
    assert config.optimization.cuda.graphs
    graphs = [(graph.batch_size, list(graph.input["image"].dim)) for graph in config.optimization.cuda.graph_spec]
    assert graphs == [(1, [3, 32, 32]), (8, [3, 32, 32]), (16, [3, 32, 32])]
    assert config.instance_group[0].kind == messages().ModelInstanceGroup.KIND_GPU
    assert check_repository(repository) == []


def test_an_engine_is_held_to_what_was_recorded_of_it(repository: Path, tmp_path: Path) -> None:
    package([engine_bundle(tmp_path / "fast.bundle")], repository)
    plan = repository / "fast" / "1" / "model.plan"
    plan.write_bytes(plan.read_bytes() + b"x")
    (finding,) = check_repository(repository)
    assert "not the engine" in finding.text


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (PackageOptions(backend="tensorrt"), "for tensorrt-rtx, which Triton's tensorrt backend cannot run"),
        (PackageOptions(backend="python", cuda_graphs=True), "CUDA graphs are for models on a GPU; give --device gpu"),
        (PackageOptions(backend="onnxruntime", cuda_graphs=True), "gives each request memory of its own"),
    ],
)
def test_what_an_rtx_bundle_cannot_be_packaged_for_is_said(
    options: PackageOptions, sentence: str, repository: Path, tmp_path: Path
) -> None:
    bundle = engine_bundle(tmp_path / "rtx.bundle", backend="tensorrt-rtx")
    with pytest.raises(UsageError, match=sentence):
        package([bundle], repository, options)
    assert not repository.exists()


def test_more_than_the_engine_takes_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="batches up to 16, 32 was asked for"):
        package([engine_bundle(tmp_path / "fast.bundle")], repository, PackageOptions(max_batch=32))


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_batch": 4}, "fixed batch"),
        ({"delay_ms": 10}, "fixed batch"),
        ({"queue": 10}, "fixed batch"),
        ({"labels": Path("missing.txt")}, "missing.txt"),
        ({"operators": "/no/such/library.so"}, "does not exist"),
        ({"backend": "python", "operators": "/x.so"}, "takes no operator library"),
        ({"backend": "tensorrt"}, "no TensorRT engine"),
    ],
)
def test_options_that_do_not_fit_a_model_of_fixed_batch_are_refused(
    write_model: WriteModel, repository: Path, options: dict[str, object], sentence: str
) -> None:
    with pytest.raises(UsageError, match=sentence):
        package([write_model()], repository, PackageOptions(**options))  # type: ignore[arg-type]
    assert not repository.exists()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"backend": "pytorch"}, "backends"),
        ({"name": "../up"}, "cannot be a model's name"),
        ({"name": ""}, "cannot be a model's name"),
        ({"version": 0}, "at least 1"),
        ({"instances": 0}, "at least 1"),
        ({"preferred": (4, 4)}, "different positive"),
        ({"max_batch": 4, "preferred": (8,)}, "above the largest"),
        ({"gpus": (-1,), "device": "gpu"}, "numbered from 0"),
        ({"gpus": (0,), "device": "cpu"}, "GPUs are chosen"),
        ({"backend": "tensorrt", "device": "cpu"}, "GPUs only"),
        ({"mount": "models"}, "full path"),
        ({"versions": "newest"}, "cannot read the versions"),
        ({"versions": "latest:0"}, "cannot read the versions"),
    ],
)
def test_impossible_options_are_refused_before_a_model_is_read(options: dict[str, object], sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence):
        PackageOptions(**options)  # type: ignore[arg-type]


def test_free_sizes_need_a_size_for_warm_up(repository: Path, tmp_path: Path) -> None:
    model = small_model(batch="batch")
    for axis in (2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[axis].dim_param = f"side{axis}"
    path = tmp_path / "sizes.onnx"
    onnx.save(model, path)
    with pytest.raises(UsageError, match=r"give --input image=.*, or leave warm-up out with --no-warm-up"):
        package([path], repository)
    package([path], repository, PackageOptions(shapes=("1x3x32x48",)))
    config = config_of(repository, "sizes")
    assert list(config.input[0].dims) == [3, -1, -1]
    assert list(config.model_warmup[0].inputs["image"].dims) == [3, 32, 48]
    package([path], repository, PackageOptions(name="cold", warm_up=False))
    assert not config_of(repository, "cold").model_warmup


def test_the_ensemble_joins_preprocessing_and_model(free: Path, repository: Path) -> None:
    written = package([free], repository, PackageOptions(preprocess=True))
    assert [model.name for model in written] == ["free", "free_preprocessing", "free_from_image"]
    stored = config_of(repository, "free_preprocessing").parameters["na_deploy.preprocessing"].string_value
    assert Preprocessing.from_json(stored) == METADATA.preprocessing
    assert check_repository(repository) == []
    package([free], repository, PackageOptions(preprocess=True))
    assert check_repository(repository) == []
    assert (repository / "free" / "2").is_dir()


def test_a_segmenter_s_image_files_are_answered_by_one_model(repository: Path, tmp_path: Path) -> None:
    onnx.save(segmenter("panoptic", "batch", 64, 64), tmp_path / "parts.onnx")
    written = package([tmp_path / "parts.onnx"], repository, PackageOptions(backend="python", preprocess=True))
    assert [(model.name, model.backend) for model in written] == [("parts", "python"), ("parts_from_image", "python")]
    config = config_of(repository, "parts_from_image")
    assert [output.name for output in config.output] == ["segments", "ids"]
    parameters = {name: entry.string_value for name, entry in config.parameters.items()}
    assert parameters["na_deploy.model"] == "parts"
    assert Preprocessing.from_json(parameters["na_deploy.preprocessing"]).mode == "fit"
    metadata = ModelMetadata.from_props(json.loads(parameters["na_deploy.metadata"]))
    assert metadata is not None
    assert (metadata.task, metadata.things) == ("panoptic", (1, 3))
    assert check_repository(repository) == []


@pytest.mark.parametrize(("masks", "answers"), [(True, ["segments", "ids"]), (False, ["segments"])])
def test_a_detector_s_image_files_are_answered_by_one_model(
    repository: Path, tmp_path: Path, masks: bool, answers: list[str]
) -> None:
    onnx.save(detector("batch", 64, 64, masks=masks), tmp_path / "things.onnx")
    package([tmp_path / "things.onnx"], repository, PackageOptions(preprocess=True))
    assert [output.name for output in config_of(repository, "things_from_image").output] == answers
    counts = next(output for output in config_of(repository, "things").output if output.name == "count")
    assert (list(counts.dims), counts.HasField("reshape"), list(counts.reshape.shape)) == ([1], True, [])
    assert check_repository(repository) == []


def test_a_model_from_elsewhere_gets_no_preprocessing(write_model: WriteModel, repository: Path) -> None:
    with pytest.raises(UsageError, match="does not say how images"):
        package([write_model()], repository, PackageOptions(preprocess=True))


@pytest.mark.parametrize("place", ["a/b/repository", "free.onnx"])
def test_a_repository_needs_a_place(free: Path, place: str) -> None:
    with pytest.raises(UsageError, match="cannot write"):
        package([free], free.parent / place)


class _Mismatched:
    """A python backend of NumPy 1 beside NumPy 2: it reads every element as the first one."""

    class TritonModelException(Exception):  # noqa: N818 - Triton's name
        pass

    class Tensor:
        def __init__(self, name: str, array: np.ndarray) -> None:
            self.array = array

        def to_dlpack(self) -> np.ndarray:
            return np.full_like(self.array, self.array[0])

        @classmethod
        def from_dlpack(cls, name: str, packed: np.ndarray) -> _Mismatched.Tensor:
            return cls(name, packed)

        def as_numpy(self) -> np.ndarray:
            return self.array


def test_models_refuse_a_python_backend_that_reads_arrays_wrongly() -> None:
    with pytest.raises(_Mismatched.TritonModelException, match="cannot read the arrays of NumPy"):
        check_arrays(_Mismatched)


@pytest.fixture
def in_triton(monkeypatch: pytest.MonkeyPatch) -> Models:
    """Return models as Triton's python backend opens them."""
    return Models(monkeypatch)


def test_models_and_bundles_run_on_openvino_in_the_python_backend(
    free: Path, repository: Path, tmp_path: Path, in_triton: Models
) -> None:
    openvino = pytest.importorskip("openvino")
    precision = "bf16" if "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES") else "f32"
    build(free, tmp_path / "own.zip", BuildOptions("openvino", precision, batch=(1, 1, 4)))
    (plain,) = package([free], repository, PackageOptions(name="plain", backend="openvino", threads=1))
    (bundle,) = package([tmp_path / "own.zip"], repository)
    assert (plain.backend, bundle.backend) == ("python", "python")
    assert plain.notes == ()
    assert any("computes in bf16: outputs differ" in note for note in bundle.notes) == (precision == "bf16")
    assert check_repository(repository) == []
    for name, expected in (("plain", "f32"), ("own", precision)):
        with in_triton.open(repository, name).session as session:
            assert (session.backend, session.precision) == ("openvino", expected)
    assert " openvino" in dockerfile(configs_of(repository))
    package([free], tmp_path / "other", PackageOptions(backend="python"))
    assert " openvino" not in dockerfile(configs_of(tmp_path / "other"))
    for options, sentence in (
        ({"precision": "bf16"}, "of backend openvino"),
        ({"backend": "openvino", "precision": "f16"}, "got 'f16'"),
        ({"backend": "openvino", "device": "gpu"}, "runs on the processor"),
    ):
        with pytest.raises(UsageError, match=sentence):
            PackageOptions(**options)


def test_an_archive_is_unpacked_for_the_python_backend(free: Path, repository: Path, in_triton: Models, tmp_path):
    build(free, tmp_path / "packed.zip", BuildOptions(batch=(1, 1, 4)))
    package([tmp_path / "packed.zip"], repository, PackageOptions(backend="python"))
    with in_triton.open(repository, "packed").session as session:
        assert session.backend == "onnxruntime"
