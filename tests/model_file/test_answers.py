"""One rule says what a model answers."""

from __future__ import annotations

import pytest

from na_deploy.model_file.answers import BOXES, answer_of
from na_deploy.model_file.tensors import TensorSpec
from na_deploy.models.metadata import SEGMENT_TASKS, TASKS, ModelMetadata

LOGITS = TensorSpec("logits", "float32", ("batch", 10))
QUERIES = (
    TensorSpec("class_logits", "float32", ("batch", 100, 151)),
    TensorSpec("mask_logits", "float32", ("batch", 100, "height", "width")),
)


def test_a_classifier_answers_with_class_scores():
    answer = answer_of([LOGITS], ModelMetadata("nat_mini", num_classes=10))
    assert (answer.task, answer.scores, answer.class_count) == ("classification", LOGITS, 10)
    free = TensorSpec("logits", "float32", ("batch", "classes"))
    assert answer_of([free], ModelMetadata("nat_mini", labels={0: "cat"})).class_count is None


def test_a_classifier_without_head_answers_with_features_whatever_the_user_calls_them():
    headless = ModelMetadata("nat_mini", task="classification", num_classes=0)
    assert answer_of([LOGITS], headless).task == "features"
    assert answer_of([LOGITS], headless, labelled=True).scores is None


def test_a_file_from_elsewhere_is_a_classifier_by_its_output_s_name_or_the_user_s_word():
    other = TensorSpec("output", "float32", (1, 10))
    assert answer_of([LOGITS], None).scores == LOGITS
    assert answer_of([other], None).task == "features"
    assert answer_of([other], None, labelled=True).scores == other
    assert answer_of([TensorSpec("logits", "float32", (1, 10, 7, 7))], None, labelled=True).scores is None
    assert answer_of([LOGITS, other], None, labelled=True).scores is None


@pytest.mark.parametrize("task", sorted(TASKS.keys() - {"classification"}))
def test_the_file_s_own_word_decides_on_other_tasks(task: str):
    answer = answer_of([LOGITS], ModelMetadata("nat", task=task, num_classes=10), labelled=True)
    assert (answer.task, answer.scores, answer.has_queries) == (task, None, False)
    assert answer.has_segments == (task in SEGMENT_TASKS)
    boxes = [TensorSpec(name, "float32", ("batch", 100)) for name in BOXES]
    assert answer_of(boxes, ModelMetadata("nat", task=task)).has_boxes == (task == "detection")
    assert answer_of(QUERIES, ModelMetadata("nat", task=task)).has_queries == (task in SEGMENT_TASKS)
