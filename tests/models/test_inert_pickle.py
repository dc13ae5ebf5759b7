"""Pickles are read for their tensors, arrays and plain data; nothing else in them is built or called."""

import argparse
import collections
import functools
import pickle
import pickletools
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf
from torch import nn

from na_deploy.errors import CheckpointError
from na_deploy.models import ModelConfig, build_model, get_model, load_model, random_checkpoint
from na_deploy.models.inert_pickle import InertPickle

CONFIG = ModelConfig("nat", 16, (1, 2), (1, 2), 3, ((1,), (1, 2)), 2.0, num_classes=5)
WEIGHTS = random_checkpoint(CONFIG, seed=1)
ARRAYS = {name: tensor.numpy() for name, tensor in WEIGHTS.items()}


def load(path: Path, **options: Any) -> Any:
    return load_model(path, dilations="1/1,2", **options)


def assert_read(path: Path) -> list[str]:
    loaded = load(path)
    state = loaded.module.state_dict()
    assert all(torch.equal(state[name], WEIGHTS[name]) for name in WEIGHTS)
    return loaded.warnings


@pytest.mark.parametrize("protocol", range(2, 6))
@pytest.mark.parametrize("kind", ["arrays", "tensors"])
def test_detectron2_files_of_every_protocol_are_read(protocol: int, kind: str, tmp_path: Path) -> None:
    content = {"model": ARRAYS if kind == "arrays" else WEIGHTS, "__author__": "someone", "matching_heuristics": True}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(content, protocol))
    assert assert_read(tmp_path / "model.pkl") == []


def test_caffe_s_blobs_in_another_byte_order_are_read(tmp_path: Path) -> None:
    swapped = {name: array.astype(">f4") for name, array in ARRAYS.items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({"blobs": swapped}, 2))
    assert assert_read(tmp_path / "model.pkl") == []


class Settings(dict[str, Any]):
    """Lightning's AttributeDict is such a class."""


class Slots:
    __slots__ = ("rate",)

    def __init__(self) -> None:
        self.rate = 0.1


Pair = collections.namedtuple("Pair", "a b")

BESIDE: dict[str, Callable[[], Any]] = {
    "partial": lambda: functools.partial(torch.optim.AdamW, lr=0.1),
    "OmegaConf": lambda: OmegaConf.create({"model": {"depths": [1, 2]}, "lr": 0.1}),
    "a dict of its own class": lambda: Settings(lr=0.1),
    "slots": Slots,
    "a named tuple": lambda: Pair(1, 2),
    "a simple namespace": lambda: types.SimpleNamespace(lr=0.1),
    "a function": lambda: np.tanh,
    "an optimizer": lambda: torch.optim.SGD([nn.Parameter(torch.zeros(2))], lr=0.1),
    "an exception": lambda: ValueError("no"),
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("what", BESIDE)
def test_objects_beside_the_weights_are_left_unbuilt_and_named(what: str, zipped: bool, tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": WEIGHTS, "hyper_parameters": {"x": BESIDE[what]()}}, path, _use_new_zipfile_serialization=zipped
    )
    warnings = assert_read(path)
    assert len(warnings) == 1
    assert "last.ckpt also holds Python objects (" in warnings[0]
    assert "they were not built, and ran no code" in warnings[0]


@pytest.mark.parametrize("make", [dict, OmegaConf.create, lambda m: argparse.Namespace(**m), Settings])
def test_what_configurations_say_of_the_architecture_is_heard(make: Callable[..., Any], tmp_path: Path) -> None:
    config = get_model("nat_mini").config
    content = {"state_dict": random_checkpoint(config), "hyper_parameters": make({"model": "dinat_mini"})}
    torch.save(content, tmp_path / "last.ckpt")
    assert load_model(tmp_path / "last.ckpt").architecture == "dinat_mini"


@pytest.mark.parametrize("key", [None, "model", "ema"])
def test_a_module_saved_whole_gives_its_weights(key: str | None, tmp_path: Path) -> None:
    module = build_model(CONFIG)
    module.load_state_dict(WEIGHTS)
    module.register_buffer("scratch", torch.zeros(3), persistent=False)
    torch.save(module if key is None else {key: module, "epoch": 3}, tmp_path / "model.pt")
    (warning,) = assert_read(tmp_path / "model.pt")
    assert "also holds Python objects" in warning


class Trap:
    """Calls ``function`` with the path of a trap when it is built in any of pickle's ways."""

    def __init__(self, state: tuple[Any, ...]) -> None:
        self.state = state

    def __reduce__(self) -> tuple[Any, ...]:
        return self.state


def touch(path: str) -> None:
    Path(path).touch()


def test_no_way_of_pickle_calls_anything_in_the_file(tmp_path: Path) -> None:
    trap = str(tmp_path / "trap")
    module = touch.__module__.encode()
    name = b"\x8c" + bytes([len(trap)]) + trap.encode()  # SHORT_BINUNICODE
    attempts = [
        pickle.dumps(Trap((touch, (trap,)))),
        pickle.dumps(Trap((functools.partial, (touch, trap), {"x": 1}))),
        pickle.dumps(Trap((collections.defaultdict, (touch,), None, None, iter([("a", 1)])))),
        b"\x80\x02(c" + module + b"\ntouch\n" + b"X" + len(trap).to_bytes(4, "little") + trap.encode() + b"o.",  # OBJ
        b"(S'" + trap.encode() + b"'\ni" + module + b"\ntouch\n.",  # INST
        b"\x80\x04c" + module + b"\ntouch\n" + name + b"\x85\x81.",  # NEWOBJ
        b"\x80\x04c" + module + b"\ntouch\n" + name + b"\x85}\x92.",  # NEWOBJ_EX
        b"\x80\x04ccollections\nOrderedDict\n)R}(\x8c\x0c__setstate__c" + module + b"\ntouch\nsb.",
        b"\x80\x04cargparse\nNamespace\n}(\x8c\x08__init__c" + module + b"\ntouch\nusb.",
    ]
    for attempt in attempts:
        path = tmp_path / "attempt.pkl"
        path.write_bytes(attempt)
        with pytest.raises((CheckpointError, pickle.UnpicklingError)):
            load(path)
    assert not Path(trap).exists()
    assert argparse.Namespace().__init__.__module__ == "argparse"


def test_the_reader_covers_every_opcode_the_standard_library_knows() -> None:
    reader = InertPickle().Unpickler
    assert set(reader.dispatch) == {ord(opcode.code) for opcode in pickletools.opcodes}
