"""Which output of a head means which label of a task."""

import pytest

from redundancy_hf.data import load_task
from redundancy_hf.outputs import find_label_order
from redundancy_hf.task import TaskArguments


@pytest.mark.parametrize(
    ("found", "wanted", "outputs"),
    [
        (["b", "a", "c"], ["a", "b", "c"], [1, 0, 2]),
        (["NEGATIVE", "Positive"], ["negative", "positive"], [0, 1]),
        (["Not-Equivalent", "equivalent"], ["equivalent", "not_equivalent"], [1, 0]),
        (["POS", "NEG"], ["negative", "positive"], [1, 0]),
        (["CONTRADICTION", "NEUTRAL", "ENTAILMENT"], ["entailment", "neutral", "contradiction"], [2, 1, 0]),
        (["a", "A"], ["A", "a"], [1, 0]),
        # numbers are names too: as strings they are sorted otherwise
        ([f"LABEL_{index}" for index in range(11)], sorted(map(str, range(11))), [0, 1, 10, *range(2, 10)]),
        (["10", "1.0", "-1"], ["-1", "1", "10"], [2, 1, 0]),
        (["A+", "A", "A-"], ["A", "A-", "A+"], [1, 2, 0]),
        (["anything"], ["stars"], [0]),
    ],
)
def test_labels_are_found_by_name(found, wanted, outputs):
    for output_names in (None, wanted):
        assert find_label_order(found, wanted, output_names) == (outputs, False)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [(["LABEL_0", "LABEL_1"], ["negative", "positive"]), (["NEGATIVE", "POSITIVE"], ["0", "1"])],
)
def test_order_is_assumed_where_a_side_only_numbers(found, wanted):
    assert find_label_order(found, wanted) == ([0, 1], True)
    assert find_label_order(found, wanted, wanted) == ([0, 1], False)
    assert find_label_order(found, wanted, wanted[::-1]) == ([1, 0], False)


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        (["ham", "spam"], ["negative", "positive"]),
        (["positive", "other"], ["negative", "positive"]),
        # beginnings that fit two, or are too short to be one
        (["pos", "posit"], ["positive", "negative"]),
        (["n", "p"], ["negative", "positive"]),
        (["1", "2"], ["10", "20"]),
        (["A", "a"], ["a", "b"]),
    ],
)
def test_nothing_is_guessed(found, wanted):
    assert find_label_order(found, wanted) is None
    assert find_label_order(found, wanted, wanted) == ([0, 1], False)
    assert find_label_order(found, wanted, wanted[::-1]) == ([1, 0], False)


def test_another_number_of_labels_is_another_head():
    assert find_label_order(["a", "b", "c"], ["a", "b"], ["a", "b"]) is None


def test_order_that_is_given_leaves_the_task_as_it_is(tiny_text_file):
    arguments = TaskArguments(dataset_name=str(tiny_text_file), validation_fraction=0.25)
    before = load_task(arguments)
    arguments.label_order = ["positive", "negative"]
    after = load_task(arguments)
    # F1 is of the same class
    assert after.label_names == before.label_names and after.output_names == ["positive", "negative"]
    assert after.splits["train"]["labels"][:] == before.splits["train"]["labels"][:]
    # but a head may be another, and so is a search
    assert before.fingerprint != after.fingerprint
    arguments.label_order = ["positive", "neutral"]
    with pytest.raises(ValueError, match="--label_order must be the labels .'negative', 'positive'. in some order"):
        load_task(arguments)
