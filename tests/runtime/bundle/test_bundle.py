"""Bundles: what is built loads and runs; what is damaged, moved or forged in any place is refused by name."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import na_deploy
from na_deploy.errors import NaDeployError, UsageError
from na_deploy.runtime.building.build import BuildOptions, build
from na_deploy.runtime.bundle import open_bundle, read_manifest, write_bundle
from na_deploy.runtime.bundle.manifest import Manifest, parse_manifest

NAMES = ["model.bundle", "model.zip"]


@pytest.fixture
def model(write_model: Callable[..., Path]) -> Path:
    return write_model(properties={"na_deploy.architecture": "nat_mini"})


@pytest.fixture
def image() -> np.ndarray:
    return np.random.default_rng(0).normal(size=(1, 3, 32, 32)).astype(np.float32)


def answer(path: Path, image: np.ndarray) -> np.ndarray:
    with na_deploy.load(path) as session:
        return session.run(image)["logits"]


@pytest.mark.parametrize("name", NAMES)
def test_a_bundle_answers_as_its_model(model: Path, image: np.ndarray, tmp_path: Path, name: str):
    summary = build(model, tmp_path / name)
    np.testing.assert_array_equal(answer(tmp_path / name, image), answer(model, image))
    assert summary.attention_nodes == 2
    manifest = read_manifest(tmp_path / name)
    assert manifest.metadata == {"na_deploy.architecture": "nat_mini"}
    assert [member.role for member in manifest.members] == ["model"]
    assert manifest.members[0].sha256 == hashlib.sha256(model.read_bytes()).hexdigest()


def test_the_session_of_an_archive_leaves_nothing_behind(
    model: Path, image: np.ndarray, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build(model, tmp_path / "model.zip")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(unpacked))
    with na_deploy.load(tmp_path / "model.zip") as session:
        session.run(image)
        assert [path.stat().st_mode & 0o777 for path in unpacked.iterdir()] == [0o700]
    assert list(unpacked.iterdir()) == []


def test_a_program_that_ends_without_closing_leaves_nothing_behind(model: Path, tmp_path: Path):
    build(model, tmp_path / "model.zip")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    program = f"import na_deploy; session = na_deploy.load({str(tmp_path / 'model.zip')!r})"
    subprocess.run([sys.executable, "-c", program], check=True, env=os.environ | {"TMPDIR": str(unpacked)})
    assert list(unpacked.glob("na-deploy*")) == []


def test_an_interrupted_build_leaves_nothing_behind(model: Path, tmp_path: Path):
    old = tmp_path / "model.bundle"
    build(model, old)
    before = {path.name: path.read_bytes() for path in old.iterdir()}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    # Interrupted when the first file is copied: everything is there but the renaming.
    program = (
        "import time, na_deploy.runtime.building.build as b, na_deploy.runtime.bundle.archive as a\n"
        "slow = a._copy_hashed\n"
        "a._copy_hashed = lambda *x: (slow(*x), print('copied', flush=True), time.sleep(60))[0]\n"
        "from na_deploy.cli.main import main\n"
        f"main(['build', {str(model)!r}, '-o', {str(old)!r}])"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        env=os.environ | {"TMPDIR": str(scratch)},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"copied\n"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == 130
    assert list(scratch.glob("na-deploy*")) == []
    assert {path.name: path.read_bytes() for path in old.iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bundle", "scratch", "small.onnx"]


def test_the_same_model_gives_the_same_archive(model: Path, tmp_path: Path):
    for name in ("a.zip", "b.zip"):
        build(model, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()


@pytest.mark.parametrize("name", NAMES)
def test_every_damaged_byte_region_is_noticed(model: Path, image: np.ndarray, tmp_path: Path, name: str):
    target = tmp_path / name
    build(model, target)
    expected = answer(target, image)
    files = [target] if target.is_file() else [target / "model.onnx", target / "manifest.json"]
    chance = random.Random(0)
    tried = harmless = 0
    for file in files:
        whole = file.read_bytes()
        for position in [*range(0, 64), *chance.sample(range(len(whole)), 60), *range(len(whole) - 64, len(whole))]:
            damaged = bytearray(whole)
            damaged[position] ^= 1 << chance.randrange(8)
            file.write_bytes(damaged)
            # Some bytes carry no meaning: padding, a time, a text for people.
            with contextlib.suppress(NaDeployError):
                found = answer(target, image)
                np.testing.assert_array_equal(found, expected, err_msg=f"byte {position} of {file.name}")
                harmless += 1
            tried += 1
        file.write_bytes(whole)
    assert harmless < tried / 2
    np.testing.assert_array_equal(answer(target, image), expected)


@pytest.mark.parametrize("name", NAMES)
def test_every_truncation_is_noticed(model: Path, tmp_path: Path, name: str):
    target = tmp_path / name
    build(model, target)
    file = target if target.is_file() else target / "model.onnx"
    whole = file.read_bytes()
    for length in (0, 1, 4, 100, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(NaDeployError):
            open_bundle(target).close()


def forge(target: Path, change: Callable[[dict], None]) -> None:
    """Change a folder's manifest."""
    content = json.loads((target / "manifest.json").read_text())
    change(content)
    (target / "manifest.json").write_text(json.dumps(content))


@pytest.mark.parametrize(
    "name",
    [
        "../outside",
        "/etc/hostname",
        "a/../../outside",
        "C:/outside",
        "..\\outside",
        "a//b",
        "./a",
        "",
        "manifest.json",
        "A\0",
    ],
)
def test_members_never_lie_outside(model: Path, tmp_path: Path, name: str):
    target = tmp_path / "model.bundle"
    build(model, target)
    (tmp_path / "outside").write_text("secret")
    forge(target, lambda content: content["members"][0].update(name=name))
    with pytest.raises(NaDeployError, match="not a plain path inside the bundle"):
        open_bundle(target)


def as_links(bundle: Path, folder: Path) -> Path:
    """Return a folder like Hugging Face's cache: every file is a link to one that is named by its hash elsewhere."""
    blobs, snapshot = folder / "blobs", folder / "snapshots" / "main"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in bundle.iterdir():
        blob = blobs / hashlib.sha256(file.read_bytes()).hexdigest()
        blob.write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / blob.name)
    return snapshot


def test_a_bundle_of_links_is_taken_by_what_they_lead_to(model: Path, image: np.ndarray, tmp_path: Path):
    build(model, tmp_path / "model.bundle")
    linked = as_links(tmp_path / "model.bundle", tmp_path / "cache")
    np.testing.assert_array_equal(answer(linked, image), answer(model, image))
    (linked / "model.onnx").unlink()
    (linked / "model.onnx").symlink_to("/dev/zero")
    with pytest.raises(NaDeployError, match="not a plain file"):
        na_deploy.load(linked)
    (linked / "model.onnx").unlink()
    os.mkfifo(linked / "model.onnx")  # opening it would wait for ever
    with pytest.raises(NaDeployError, match="not a plain file"):
        na_deploy.load(linked)
    (linked / "model.onnx").unlink()
    other = tmp_path / "other"
    other.write_bytes(bytes(model.stat().st_size))
    (linked / "model.onnx").symlink_to(other)
    with pytest.raises(NaDeployError, match="is not the file that"):
        na_deploy.load(linked)


def test_a_model_of_links_with_weights_beside_it_loads(model: Path, image: np.ndarray, tmp_path: Path):
    folder = tmp_path / "plain"
    folder.mkdir()
    onnx.save(
        onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=256
    )
    linked = as_links(folder, tmp_path / "cache")
    np.testing.assert_array_equal(answer(linked / "m.onnx", image), answer(model, image))


def with_weights_beside(model: Path, folder: Path) -> Path:
    folder.mkdir()
    onnx.save(
        onnx.load(model), folder / "m.onnx", save_as_external_data=True, location="m.onnx.data", size_threshold=256
    )
    return folder / "m.onnx"


BACKENDS = ["onnxruntime", "openvino"]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", ["file", "folder"])
def test_a_loaded_model_stays_what_it_was_whatever_becomes_of_its_files(
    model: Path, image: np.ndarray, tmp_path: Path, form: str, backend: str
):
    path = with_weights_beside(model, tmp_path / "m")
    if form == "folder":
        build(path, tmp_path / "m.bundle")
        path = tmp_path / "m.bundle"
    files = [file for file in (path.parent if form == "file" else path).iterdir() if file.name != "manifest.json"]
    assert len(files) == 2
    with na_deploy.load(path, backend) as session:
        before = session.run(image)["logits"]
        for file in files:
            with file.open("r+b") as opened:
                opened.write(b"\1" * file.stat().st_size)
        np.testing.assert_array_equal(session.run(image)["logits"], before)
        for file in files:
            os.truncate(file, 0)
        np.testing.assert_array_equal(session.run(image)["logits"], before)
        for file in files:
            file.unlink()
        np.testing.assert_array_equal(session.run(image)["logits"], before)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_file_that_changes_after_it_was_verified_is_not_loaded(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: str
):
    from na_deploy.runtime.bundle import session as bundle_session

    build(with_weights_beside(model, tmp_path / "m"), tmp_path / "m.bundle")
    check = bundle_session.check_requirements

    def change(path: Path, *given: object) -> None:
        weights = next(path.glob("*.data"))
        weights.write_bytes(bytes(weights.stat().st_size))
        check(path, *given)

    monkeypatch.setattr(bundle_session, "check_requirements", change)
    with pytest.raises(NaDeployError, match="changed while it was loaded"):
        na_deploy.load(tmp_path / "m.bundle", backend)


def test_an_archive_with_one_top_folder_is_a_bundle(model: Path, image: np.ndarray, tmp_path: Path):
    build(model, tmp_path / "model.bundle")
    for name, extra in (("plain.zip", []), ("apple.zip", ["__MACOSX/._model.bundle"])):
        with zipfile.ZipFile(tmp_path / name, "w") as archive:
            archive.writestr("model/", b"")
            for file in (tmp_path / "model.bundle").iterdir():
                archive.write(file, f"model/{file.name}")
            for other in extra:
                archive.writestr(other, b"x")
        np.testing.assert_array_equal(answer(tmp_path / name, image), answer(model, image))
    with zipfile.ZipFile(tmp_path / "two.zip", "w") as archive:
        for file in (tmp_path / "model.bundle").iterdir():
            archive.write(file, f"model/{file.name}")
        archive.writestr("beside/x", b"")
    with pytest.raises(UsageError, match="without manifest"):
        na_deploy.load(tmp_path / "two.zip")


def test_what_a_killed_process_unpacked_is_removed_by_the_next(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    build(model, tmp_path / "model.zip")
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    program = "import na_deploy, os, sys; s = na_deploy.load(sys.argv[1]); os.kill(os.getpid(), 9)"
    environment = os.environ | {"TMPDIR": str(temporary)}
    subprocess.run([sys.executable, "-c", program, tmp_path / "model.zip"], env=environment, check=False)
    (left,) = temporary.glob("na-deploy-bundle-*")
    (temporary / "na-deploy-bundle-of-others").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    with na_deploy.load(tmp_path / "model.zip"):
        assert not left.exists()
        with na_deploy.load(tmp_path / "model.zip"):
            assert len(list(temporary.glob("na-deploy-bundle-*"))) == 3  # those in use stay
    assert [entry.name for entry in temporary.glob("na-deploy-bundle-*")] == ["na-deploy-bundle-of-others"]


def test_a_full_disk_is_said(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    from na_deploy.runtime.bundle import archive

    build(model, tmp_path / "model.zip")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(archive, "_copy_verified", full)
    with pytest.raises(NaDeployError, match=r"cannot be unpacked into .*: No space left on device; free space there"):
        na_deploy.load(tmp_path / "model.zip")


def test_an_archive_is_unpacked_by_its_manifest_alone(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    target = tmp_path / "model.zip"
    build(model, target)
    with zipfile.ZipFile(target, "a") as archive:
        archive.writestr("../escaped", "x")
        archive.writestr("extra.so", "x")
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(unpacked))
    with open_bundle(target) as bundle:
        assert [path.name for path in bundle.folder.rglob("*")] == ["model.onnx"]
    assert not (unpacked / "escaped").exists()


def test_a_bomb_is_not_unpacked(tmp_path: Path):
    target = tmp_path / "bomb.zip"
    size = 1000
    manifest = Manifest("onnxruntime", (), (), ())
    content = json.loads(manifest.to_json())
    content["members"] = [{"name": "model.onnx", "role": "model", "bytes": size, "sha256": "0" * 64}]
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", json.dumps(content))
        archive.writestr("model.onnx", b"\0" * (200 << 20))
    with pytest.raises(NaDeployError, match=f"has more than {size} bytes, .* says {size}"):
        open_bundle(target)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format=2), "a bundle of format 2, this na-deploy .* reads 1"),
        (lambda c: c.pop("backend"), "it lacks 'backend'"),
        (lambda c: c.update(members={}), "expected a list"),
        (lambda c: c["members"][0].update(sha256="1234"), "has no SHA-256"),
        (lambda c: c["members"][0].update(bytes=-1), "expected a size"),
        (lambda c: c["members"][0].update(role="script"), "unknown role 'script'"),
        (lambda c: c["members"].append(dict(c["members"][0])), "names a member twice"),
        (lambda c: c.update(backend="tensorrt-rtx"), "holds no engine"),
        (lambda c: c["requires"].update(onnxruntime=">=99.1"), "needs onnxruntime 99.1 or later"),
    ],
)
def test_a_manifest_that_is_not_right_is_refused_by_name(
    model: Path, tmp_path: Path, change: Callable[[dict], None], message: str
):
    target = tmp_path / "model.bundle"
    build(model, target)
    forge(target, change)
    with pytest.raises(NaDeployError, match=message):
        na_deploy.load(target)


@pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_a_manifest_of_any_bytes_gives_one_sentence(text: bytes):
    with pytest.raises(NaDeployError) as error:
        parse_manifest(text, "x.bundle")
    assert "\n" not in str(error.value)


def test_an_embedded_library_is_the_one_that_runs(model: Path, image: np.ndarray, tmp_path: Path):
    from na_deploy.runtime.native_libraries import onnxruntime_library, why_missing

    if onnxruntime_library() is None:
        with pytest.raises(NaDeployError, match="no operator library to embed"):
            build(model, tmp_path / "model.bundle", BuildOptions(plugins="embed"))
        assert why_missing()
        return
    build(model, tmp_path / "model.bundle", BuildOptions(plugins="embed"))
    with na_deploy.load(tmp_path / "model.bundle") as session:
        embedded = tmp_path / "model.bundle" / "lib" / "libna_deploy_ort.so"
        assert session.library is not None
        assert session.library != embedded  # a private copy, which nobody can change under the session
        assert session.library.read_bytes() == embedded.read_bytes()
        np.testing.assert_allclose(session.run(image)["logits"], answer(model, image), rtol=1e-5)
    forge(tmp_path / "model.bundle", lambda c: c["requires"].update(platform="plan9-mips"))
    with pytest.raises(NaDeployError, match="was built for plan9-mips, this machine is"):
        na_deploy.load(tmp_path / "model.bundle")


def test_an_older_bundle_is_replaced_and_nothing_else(model: Path, tmp_path: Path):
    target = tmp_path / "model.bundle"
    build(model, target)
    (target / "notes.txt").write_text("mine")
    build(model, target)
    assert sorted(path.name for path in target.iterdir()) == ["manifest.json", "model.onnx"]
    other = tmp_path / "photos"
    other.mkdir()
    (other / "photo.jpg").write_text("x")
    with pytest.raises(UsageError, match="something else is there"):
        build(model, other)
    assert (other / "photo.jpg").exists()


def test_a_failed_build_leaves_the_old_bundle(model: Path, image: np.ndarray, tmp_path: Path):
    target = tmp_path / "model.bundle"
    build(model, target)
    before = answer(target, image)
    with pytest.raises(RuntimeError):
        write_bundle(target, {"model.onnx": ("model", model)}, lambda _: (_ for _ in ()).throw(RuntimeError("killed")))
    np.testing.assert_array_equal(answer(target, image), before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.bundle", "small.onnx"]


@pytest.mark.parametrize("name", NAMES)
def test_builds_to_one_output_at_once_leave_one_whole_bundle(model: Path, image: np.ndarray, tmp_path: Path, name: str):
    target, failures = tmp_path / name, []

    def work() -> None:
        try:
            build(model, target)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(isinstance(error, NaDeployError) for error in failures)
    assert len(failures) < 4
    np.testing.assert_array_equal(answer(target, image), answer(model, image))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, "small.onnx"])


def test_free_sizes_need_and_keep_their_ranges(write_model: Callable[..., Path], tmp_path: Path):
    model = write_model(batch="batch")
    with pytest.raises(UsageError, match="free batch; give --batch smallest:usual:largest"):
        build(model, tmp_path / "model.bundle")
    with pytest.raises(UsageError, match="must grow from smallest to largest"):
        build(model, tmp_path / "model.bundle", BuildOptions(batch=(4, 2, 8)))
    with pytest.raises(UsageError, match="--size was given, but the model's size is fixed"):
        build(model, tmp_path / "model.bundle", BuildOptions(batch=(1, 2, 8), size=((32, 32),) * 3))
    manifest = build(model, tmp_path / "model.bundle", BuildOptions(batch=(1, 2, 8))).manifest
    assert manifest.profiles["image"].maximum == (8, 3, 32, 32)
    assert manifest.profiles["image"].holds((3, 3, 32, 32))
    assert not manifest.profiles["image"].holds((9, 3, 32, 32))


def test_weights_in_another_file_travel_along(model: Path, image: np.ndarray, tmp_path: Path):
    import onnx

    external = tmp_path / "external"
    external.mkdir()
    onnx.save(onnx.load(model), external / "m.onnx", save_as_external_data=True, location="m.data")
    manifest = build(external / "m.onnx", tmp_path / "model.zip").manifest
    assert {member.name: member.role for member in manifest.members} == {"model.onnx": "model", "m.data": "weights"}
    np.testing.assert_array_equal(answer(tmp_path / "model.zip", image), answer(model, image))


@pytest.mark.parametrize("where", ["folder", "archive", "text"])
def test_what_is_no_bundle_is_told_so(tmp_path: Path, where: str):
    target = tmp_path / "thing"
    if where == "folder":
        target.mkdir()
    elif where == "archive":
        with zipfile.ZipFile(target, "w") as archive:
            archive.writestr("a", "b")
    else:
        target.write_text("hello")
    with pytest.raises(NaDeployError) as error:
        na_deploy.load(target)
    assert str(target) in str(error.value)


def test_a_folder_that_cannot_be_written_is_told_before_the_work(model: Path, tmp_path: Path):
    with pytest.raises(UsageError, match="does not exist"):
        build(model, tmp_path / "nowhere" / "model.bundle")
    if os.geteuid() != 0:
        locked = tmp_path / "locked"
        locked.mkdir(mode=0o500)
        with pytest.raises(UsageError, match="cannot be written"):
            build(model, locked / "model.bundle")
        shutil.rmtree(locked)
