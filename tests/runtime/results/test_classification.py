"""Logits become named, ranked classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from na_deploy.errors import UsageError
from na_deploy.runtime.results.classification import read_labels, softmax, top_classes


def test_softmax_survives_logits_that_overflow_exp():
    logits = np.random.default_rng(0).normal(0, 3, (4, 7)) + 1e4
    exact = np.exp(logits - 1e4) / np.exp(logits - 1e4).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(softmax(logits), exact, rtol=1e-9)


def test_classes_are_ranked_and_named():
    logits = np.array([[0.0, 3.0, 1.0, 2.0], [5.0, 0.0, 0.0, 0.0]], np.float32)
    first, second = top_classes(logits, 3, {1: "cat", 3: "dog"})
    assert [(p.index, p.label) for p in first] == [(1, "cat"), (3, "dog"), (2, "class 2")]
    assert [p.index for p in second] == [0, 1, 2]
    assert first[0].probability == pytest.approx(np.exp(3) / np.exp([0, 3, 1, 2]).sum())


def test_asking_for_more_classes_than_there_are_gives_all():
    assert len(top_classes(np.random.default_rng(0).normal(size=(1, 3)), 10)[0]) == 3


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("l.txt", "cat\ndog\nowl\n"),
        ("l.txt", "\ufeffcat\r\ndog\r\nowl"),
        ("l.json", json.dumps(["cat", "dog", "owl"])),
        ("l.json", json.dumps({"2": "owl", "0": "cat", "1": "dog"})),
        ("l.json", json.dumps({"0": ["n1", "cat"], "1": ["n2", "dog"], "2": ["n3", "owl"]})),
    ],
)
def test_labels_are_read_in_every_common_form(tmp_path: Path, name: str, content: str):
    path = tmp_path / name
    path.write_text(content, encoding="utf-8")
    assert read_labels(path, 3) == {0: "cat", 1: "dog", 2: "owl"}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("l.txt", b"cat\ndog\n", "name 2 classes, the model has 3"),
        ("l.txt", b"", "name no class"),
        ("l.txt", b"\xff\xfe\x00\x01", "not UTF-8"),
        ("l.json", b"[1, 2", "not valid JSON"),
        ("l.json", b"[1, 2, 3]", "expected a list of names"),
        ("l.json", b'{"cat": 0}', "expected a list of names"),
        ("l.json", b'"cat"', "single value"),
        ("l.json", b'{"0": "cat", "1": "dog", "7": "owl"}', "the model has 3"),
    ],
)
def test_labels_that_do_not_fit_are_refused(tmp_path: Path, name: str, content: bytes, message: str):
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UsageError, match=message):
        read_labels(path, 3)


def test_missing_labels_are_refused(tmp_path: Path):
    with pytest.raises(UsageError, match="cannot read the labels"):
        read_labels(tmp_path / "absent.txt")
