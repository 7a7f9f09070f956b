"""Tasks: what is inferred from a data set, how its splits are arranged, and what is refused."""

import logging

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, List, Value
from transformers import BertTokenizer

from redundancy_hf import splits as sources
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.splits import GLUE_TASKS
from redundancy_hf.task import TaskArguments

TEXTS = [f"text {number}" for number in range(10)]
LABELS = [0, 1] * 5
RATED = {"text": TEXTS, "label": LABELS}


def write(folder, suffix=".parquet", **splits):
    """Write one file per split into a folder and return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, columns in splits.items():
        split = columns if isinstance(columns, Dataset) else Dataset.from_dict(columns)
        path = str(folder / f"{name}{suffix}")
        if suffix == ".parquet":
            split.to_parquet(path)
        elif suffix == ".csv":
            split.to_csv(path)
        else:
            split.to_json(path)
    return folder


def load(folder, **arguments):
    return load_task(TaskArguments(dataset_name=str(folder), **arguments))


def part(columns, start, stop):
    return {name: values[start:stop] for name, values in columns.items()}


@pytest.fixture
def bert_tokenizer():
    """A word-level tokenizer with token types: 3 special tokens in a pair, 2 in a single text."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "text", *map(str, range(10))]
    return BertTokenizer(vocab={word: index for index, word in enumerate(words)}, model_max_length=32)


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".json", ".jsonl"])
def test_every_format_gives_the_same_task(tmp_path, suffix):
    folder = write(tmp_path / "reviews", suffix, train=RATED, test=part(RATED, 0, 4))
    task = load(folder)
    assert task.name == "reviews"
    assert task.text_columns == ("text",)
    assert task.problem_type == "single_label_classification"
    assert task.label_names == ["0", "1"] and task.num_labels == 2
    assert task.metric_name == "accuracy"
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 8, "validation": 2, "test": 4}
    assert task.splits["test"][:] == {"text": TEXTS[:4], "labels": [0, 1, 0, 1]}
    assert task.truncated == {}


def test_one_file_is_carved_twice(tmp_path):
    folder = write(tmp_path, ".csv", reviews={"text": [f"text {i}" for i in range(100)], "label": LABELS * 10})
    task = load(folder / "reviews.csv")
    assert task.name == "reviews"
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 82, "validation": 8, "test": 10}
    assert sorted(text for split in task.splits.values() for text in split["text"]) == sorted(
        f"text {i}" for i in range(100)
    )


@pytest.mark.parametrize("name", sorted(GLUE_TASKS))
def test_a_folder_named_like_a_glue_task_is_that_task(tmp_path, name):
    text_columns, metric_name = GLUE_TASKS[name]
    labels = {"stsb": [0.0, 2.5] * 5, "mnli": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]}.get(name, LABELS)
    columns = {"idx": list(range(10)), "label": labels} | dict.fromkeys(text_columns, TEXTS)
    validation = "validation_matched" if name == "mnli" else "validation"
    folder = write(
        tmp_path / name, train=columns, **{validation: part(columns, 0, 6), "validation_mismatched": columns}
    )
    task = load(folder)
    assert (task.name, task.text_columns, task.metric_name) == (name, text_columns, metric_name)
    assert task.problem_type == ("regression" if name == "stsb" else "single_label_classification")
    assert task.num_labels == {"stsb": 1, "mnli": 3}.get(name, 2)
    assert set(task.splits["train"].column_names) == {*text_columns, "labels"}
    assert len(task.splits["test"]) == 6


def test_a_folder_named_like_a_glue_task_may_be_something_else(tmp_path):
    task = load(write(tmp_path / "mrpc", train=RATED))
    assert (task.text_columns, task.metric_name) == (("text",), "accuracy")


def test_glue_comes_from_the_hub(monkeypatch):
    """Its unlabelled test split is dropped, the matched validation split becomes the test split."""
    pair = {"premise": TEXTS, "hypothesis": TEXTS, "idx": list(range(10))}
    labelled = Dataset.from_dict(pair | {"label": [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]})
    unlabelled = Dataset.from_dict(pair | {"label": [-1] * 10})
    asked = []

    def load_dataset(*names):
        asked.append(names)
        return DatasetDict(
            train=labelled,
            validation_matched=labelled.select(range(7)),
            validation_mismatched=labelled,
            test_matched=unlabelled,
            test_mismatched=unlabelled,
        )

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    task = load_task(TaskArguments(dataset_name="mnli"))
    again = load_task(TaskArguments(dataset_name="nyu-mll/glue", dataset_config_name="mnli"))
    assert asked == [("nyu-mll/glue", "mnli")] * 2
    assert task.name == again.name == "mnli"
    assert task.fingerprint == again.fingerprint
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 7, "validation": 3, "test": 7}


@pytest.mark.parametrize(
    ("given", "test_rows"),
    [
        (("train", "validation", "test"), 4),
        (("train", "validation"), 2),
        (("train", "test"), 4),
        (("train", "validation", "test_unlabelled"), 2),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, tuple) else "",
)
def test_which_split_is_the_test_split(tmp_path, given, test_rows):
    columns = {"train": part(RATED, 0, 10), "validation": part(RATED, 0, 2), "test": part(RATED, 0, 4)}
    columns["test_unlabelled"] = {"text": TEXTS[:4], "label": [-1] * 4}
    task = load(write(tmp_path, **{name.removesuffix("_unlabelled"): columns[name] for name in given}))
    assert list(task.splits) == ["train", "validation", "test"]
    assert len(task.splits["test"]) == test_rows
    is_carved = given != ("train", "validation", "test")
    assert len(task.splits["train"]) == (8 if is_carved else 10)
    assert not is_carved or set(task.splits["train"]["text"]).isdisjoint(task.splits["validation"]["text"])


@pytest.mark.parametrize("test", [{"text": TEXTS}, {"text": TEXTS, "label": [None] * 10}], ids=["no-column", "null"])
def test_a_test_split_without_labels_is_left_out(tmp_path, test):
    task = load(write(tmp_path, train=RATED, validation=part(RATED, 0, 4), test=test))
    assert task.splits["test"]["text"][:] == TEXTS[:4]


def test_minus_one_can_be_a_class(tmp_path):
    columns = {"text": TEXTS, "label": [-1, 1] * 5}
    task = load(write(tmp_path, train=columns, test={"text": ["a"], "label": [-1]}))
    assert task.label_names == ["-1", "1"]
    assert task.splits["test"]["labels"][:] == [0]


def test_carving_keeps_the_shares_of_classes_and_every_class_in_train(tmp_path):
    labels = ["common"] * 60 + ["seldom"] * 20 + ["once"]
    columns = {"text": [str(i) for i in range(81)], "label": labels}
    folder = write(tmp_path, train=columns, test={"text": ["a"], "label": ["once"]})
    for seed in range(4):
        task = load(folder, split_seed=seed)
        assert task.label_names == ["common", "once", "seldom"]
        assert np.bincount(task.splits["validation"]["labels"][:], minlength=3).tolist() == [6, 0, 2]
        assert np.bincount(task.splits["train"]["labels"][:]).tolist() == [54, 1, 18]


def test_carving_depends_on_the_seed_only(tmp_path):
    folder = write(tmp_path, train={"text": [f"text {i}" for i in range(100)], "label": LABELS * 10})
    first, again, other = (load(folder, split_seed=seed).splits["validation"]["text"][:] for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_samples_are_a_seeded_subset(tmp_path):
    folder = write(tmp_path, train=RATED, validation=RATED, test=RATED)
    limits = {"max_train_samples": 4, "max_validation_samples": 3, "max_test_samples": 50}
    task = load(folder, **limits)
    assert {name: len(split) for name, split in task.splits.items()} == {"train": 4, "validation": 3, "test": 10}
    assert set(task.splits["train"]["text"]) < set(TEXTS)
    assert task.splits["train"]["text"][:] == load(folder, **limits).splits["train"]["text"][:]
    assert task.splits["train"]["text"][:] != load(folder, split_seed=7, **limits).splits["train"]["text"][:]


@pytest.mark.parametrize(
    ("labels", "names", "encoded"),
    [
        (["no", "yes", "maybe"], ["maybe", "no", "yes"], [1, 2, 0]),
        ([10, 2, 5], ["2", "5", "10"], [2, 0, 1]),
        ([True, False, True], ["False", "True"], [1, 0, 1]),
    ],
    ids=["strings", "gaps", "booleans"],
)
def test_labels_are_sorted_and_numbered(tmp_path, labels, names, encoded):
    task = load(
        write(
            tmp_path,
            train={"text": TEXTS[:3], "label": labels},
            validation={"text": ["a"], "label": labels[:1]},
            test={"text": TEXTS[:3], "label": labels},
        )
    )
    assert task.label_names == names
    assert task.splits["test"]["labels"][:] == encoded


def test_splits_that_number_the_classes_differently_agree(tmp_path):
    def split(names):
        features = Features({"text": Value("string"), "label": ClassLabel(names=names)})
        return Dataset.from_dict(
            {"text": TEXTS, "label": [names.index("spam")] * 5 + [names.index("ham")] * 5}, features
        )

    task = load(
        write(tmp_path, train=split(["spam", "ham"]), validation=split(["ham", "spam"]), test=split(["ham", "spam"]))
    )
    assert task.label_names == ["spam", "ham"]
    assert [split["labels"][:] for split in task.splits.values()] == [[0] * 5 + [1] * 5] * 3


@pytest.mark.parametrize(
    ("labels", "problem_type", "expected"),
    [
        ([0.5, 4.0] * 5, None, [0.5, 4.0]),
        ([1, 4] * 5, "regression", [1.0, 4.0]),
        ([1.0, 4.0] * 5, "regression", [1.0, 4.0]),
        (["3.4", "-2"] * 5, "regression", [3.4, -2.0]),
    ],
    ids=["floats", "integers-on-request", "whole-floats-on-request", "numbers-as-text"],
)
def test_regression(tmp_path, labels, problem_type, expected):
    columns = {"text": TEXTS, "score": labels}
    task = load(write(tmp_path, train=columns, test=part(columns, 0, 2)), problem_type=problem_type)
    assert (task.problem_type, task.metric_name, task.label_names) == ("regression", "spearmanr", ["score"])
    assert task.splits["test"]["labels"][:] == pytest.approx(expected)
    assert task.splits["train"].features["labels"] == Value("float32")


def test_a_few_whole_numbers_are_classes_though_they_are_floats(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    columns = {"text": TEXTS, "label": [1.0, 0.0] * 5}
    task = load(write(tmp_path, train=columns, test=columns))
    assert (task.problem_type, task.metric_name) == ("single_label_classification", "accuracy")
    assert task.label_names == ["0", "1"]
    assert task.splits["test"]["labels"][:] == [1, 0] * 5
    assert "column 'label' holds the numbers 0, 1, which are read as classes; `problem_type` regression" in caplog.text


def test_many_whole_numbers_are_values(tmp_path):
    columns = {
        "text": [f"text {number}" for number in range(60)],
        "label": [float(number % 30) for number in range(60)],
    }
    assert load(write(tmp_path, train=columns)).problem_type == "regression"


def test_numbers_as_text_are_classes_where_they_are_few(tmp_path):
    task = load(write(tmp_path, ".jsonl", train={"text": TEXTS, "label": ["3", "4"] * 5}))
    assert (task.problem_type, task.label_names) == ("single_label_classification", ["3", "4"])
    columns = {"text": TEXTS, "label": ["3.5", "4"] * 5}
    task = load(write(tmp_path / "named", train=columns), problem_type="single_label_classification")
    assert task.label_names == ["3.5", "4"]


@pytest.mark.parametrize(
    ("labels", "feature", "names"),
    [
        ([["b"], ["a", "c"]], None, ["a", "b", "c"]),
        ([[1], [0, 2]], None, ["0", "1", "2"]),
        ([[1], [0, 2]], List(ClassLabel(names=["x", "y", "z"])), ["x", "y", "z"]),
        ([[0, 1, 0], [1, 0, 1]], None, ["0", "1", "2"]),
        ([[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]], None, ["0", "1", "2"]),
        ([[False, True, False], [True, False, True]], None, ["0", "1", "2"]),
    ],
    ids=["names", "ids", "class-labels", "integer-rows", "float-rows", "boolean-rows"],
)
def test_multi_label(tmp_path, labels, feature, names):
    split = Dataset.from_dict({"text": TEXTS, "labels": labels * 5})
    if feature is not None:
        split = split.cast_column("labels", feature)
    task = load(write(tmp_path, train=split, test=split))
    assert (task.problem_type, task.metric_name) == ("multi_label_classification", "f1")
    assert task.label_names == names
    assert task.splits["test"]["labels"][:2] == [[0.0, 1.0, 0.0], [1.0, 0.0, 1.0]]
    assert task.splits["train"].features["labels"] == List(Value("float32"))


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        (("id", "sentence1", "sentence2"), ("sentence1", "sentence2")),
        (("question", "sentence"), ("question", "sentence")),
        (("sentence", "note"), ("sentence",)),
        (("body",), ("body",)),
        (("sentence_A", "sentence_B", "title"), ("sentence_A", "sentence_B")),
    ],
    ids="+".join,
)
def test_text_columns_are_inferred(tmp_path, columns, expected):
    task = load(write(tmp_path, train={"label": LABELS} | dict.fromkeys(columns, TEXTS)))
    assert task.text_columns == expected


DATES = [f"2024-01-{day:02d} 12:30" for day in range(1, 11)]


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"review": TEXTS, "label_text": ["bad", "good"] * 5}, "review"),
        ({"label_text": ["bad", "good"] * 5, "text": TEXTS}, "text"),
        ({"review": TEXTS, "text": ["bad", "good"] * 5}, "review"),
        ({"id": list("abcdefghij"), "tweet": TEXTS}, "tweet"),
        ({"id": [f"{number:04d}" for number in range(10)], "tweet": TEXTS}, "tweet"),
        ({"tweet": TEXTS, "author": [f"user_{number}" for number in range(10)]}, "tweet"),
        ({"body": TEXTS, "date": DATES}, "body"),
        ({"body": TEXTS, "date": ["Mon Apr 06 22:19:45 PDT 2009"] * 10}, "body"),
        ({"body": TEXTS, "price": ["3.40", "2"] * 4 + ["2", "2"]}, "body"),
        ({"评论": [f"很好看的电影{number}" for number in range(10)], "id": list("abcdefghij")}, "评论"),
    ],
)
def test_what_is_no_text_is_not_read(tmp_path, caplog, columns, expected):
    caplog.set_level(logging.INFO)
    task = load(write(tmp_path, ".jsonl", train=columns | {"label": LABELS}))
    assert (task.text_columns, task.label_column) == ((expected,), "label")
    unread = ", ".join(name for name in columns if name != expected)
    said = [record for record in caplog.records if record.name == "screen"]
    assert said[0].message == f"{tmp_path.name}: text from {expected}, labels from label, not read: {unread}"


def test_given_columns_win(tmp_path):
    columns = {"text": ["no"] * 10, "a": TEXTS, "b": TEXTS, "label": [0] * 10, "verdict": ["x", "y"] * 5}
    task = load(write(tmp_path, train=columns), text_column="b", text_pair_column="a", label_column="verdict")
    assert task.text_columns == ("b", "a")
    assert task.label_names == ["x", "y"]


def test_the_label_is_no_text(tmp_path):
    task = load(write(tmp_path, train={"text": ["x", "y"] * 5, "body": TEXTS}), label_column="text")
    assert task.text_columns == ("body",)
    assert task.label_names == ["x", "y"]


def test_shards_of_a_split_are_joined(tmp_path):
    shards = {f"train-0000{i}-of-00002": part(RATED, 5 * i, 5 * i + 5) for i in range(2)}
    task = load(write(tmp_path, test=part(RATED, 0, 2), **shards))
    assert len(task.splits["train"]) + len(task.splits["validation"]) == 10


def test_without_a_data_set_it_is_the_demo_task(tmp_path, monkeypatch):
    demo = load(write(tmp_path, train=RATED))
    monkeypatch.setattr("redundancy_hf.data.load_standard_library_task", lambda: demo)
    task = load_task(TaskArguments(max_train_samples=2, metric_name="macro_f1"))
    assert len(task.splits["train"]) == 2
    assert task.metric_name == "macro_f1"
    assert load_task(TaskArguments(dataset_name="standard_library")).name == demo.name


def test_without_test_keeps_the_rest(tmp_path, bert_tokenizer):
    task = tokenize(load(write(tmp_path, train=RATED)), bert_tokenizer, 16)
    for_search = task.without_test()
    assert list(for_search.splits) == list(for_search.truncated) == ["train", "validation"]
    assert for_search.fingerprint == task.fingerprint
    assert "test" in task.splits


def test_fingerprint_covers_what_a_search_depends_on(tmp_path, bert_tokenizer):
    def load_changed(folder, metric_name=None, **changed):
        splits = {"train": RATED, "validation": RATED, "test": RATED} | changed
        return load(write(tmp_path / folder, **splits), metric_name=metric_name)

    other_text = RATED | {"text": ["other", *TEXTS[1:]]}
    other_label = RATED | {"label": [1, *LABELS[1:]]}
    same = load_changed("same")
    assert same.fingerprint == load_changed("copy").fingerprint == load_changed("test", test=other_text).fingerprint
    different = [
        load_changed("train", train=other_text),
        load_changed("validation", validation=other_label),
        load_changed("metric", metric_name="f1"),
        tokenize(same, bert_tokenizer, 16),
        tokenize(same, bert_tokenizer, 3),
    ]
    assert len({task.fingerprint for task in [same, *different]}) == 6


def test_tokenize_keeps_model_columns_only(tmp_path, bert_tokenizer, tiny_tokenizer):
    columns = {"idx": list(range(10)), "sentence1": TEXTS, "sentence2": TEXTS, "label": LABELS}
    task = load(write(tmp_path, train=columns, test=columns))
    bert, roberta = tokenize(task, bert_tokenizer, 32), tokenize(task, tiny_tokenizer, 64)
    assert set(bert.splits["test"].column_names) == {"input_ids", "attention_mask", "token_type_ids", "labels"}
    assert set(roberta.splits["test"].column_names) == {"input_ids", "attention_mask", "labels"}
    assert bert.splits["test"][0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    assert bert.splits["test"]["labels"][:] == LABELS
    assert bert.truncated == {"train": 0, "validation": 0, "test": 0}


def test_truncation_is_counted_and_said(tmp_path, bert_tokenizer, caplog):
    """Beside one word and 3 special tokens there is room for 4 words of 8 tokens, and the longer text is cut."""
    texts = [" ".join(["text"] * length) for length in (2, 20, 4, 4, 5, 6, 1, 2, 3, 10)]
    columns = {"sentence1": texts, "sentence2": ["9"] * 10, "label": LABELS}
    task = load(write(tmp_path / "cut", train=columns, test=columns))
    with caplog.at_level(logging.WARNING, logger="redundancy_hf.data"):
        tokenized = tokenize(task, bert_tokenizer, 8)
    test = tokenized.splits["test"]
    assert tokenized.truncated["test"] == 4
    assert "4 of 10 inputs of cut test (40.0%) were truncated to 8 tokens" in caplog.text
    expected = bert_tokenizer(texts, ["9"] * 10, truncation="longest_first", max_length=8)
    for name in ("input_ids", "attention_mask", "token_type_ids"):
        assert test[name][:] == expected[name]
    assert "truncated" not in test.column_names


def test_nothing_is_said_where_nothing_is_cut(tmp_path, bert_tokenizer, caplog):
    with caplog.at_level(logging.WARNING, logger="redundancy_hf.data"):
        tokenize(load(write(tmp_path, train=RATED)), bert_tokenizer, 16)
    assert not caplog.records


@pytest.mark.parametrize(
    ("splits", "arguments", "message"),
    [
        ({"validation": RATED}, {}, r"no train split, found \['validation'\]"),
        ({"labels": RATED}, {}, r"no file like train.parquet, found \['labels.parquet'\]"),
        ({"train": RATED, "dev": RATED, "validation": RATED}, {}, r"two splits for one of .*found \['dev'"),
        (
            {"train": RATED, "validation": part(RATED, 0, 0)},
            {},
            "could not read validation.parquet .* at least one row",
        ),
        ({"train": {"text": TEXTS}}, {}, r"no label column: .* found \['text'\]; name it by `label_column`"),
        ({"train": RATED}, {"label_column": "y"}, r"`label_column` 'y' is not in .* found \['text', 'label'\]"),
        ({"train": RATED}, {"text_column": "txt"}, r"column 'txt' is not in split 'train', found \['text', 'label'\]"),
        ({"train": {"number": LABELS, "label": LABELS}}, {}, r"Of \['number', 'label'\] none seems to be"),
        (
            {"train": {"title": TEXTS, "body": TEXTS, "label": LABELS}},
            {},
            "one of title, body may be; name it by `text_column`, and the second text of a pair by `text_pair_column`",
        ),
        ({"train": {"n": LABELS} | RATED}, {"text_column": "n"}, r"text column 'n' .* must hold strings, got Value"),
        ({"train": {"text": [*TEXTS[:9], None], "label": LABELS}}, {}, "misses 1 of 10 texts, the first in row 9"),
        ({"train": {"text": TEXTS, "label": [*LABELS[:9], None]}}, {}, "misses 1 of 10 labels, the first in row 9"),
        ({"train": {"text": TEXTS, "label": [float("nan"), 1.0] * 5}}, {}, "misses 5 of 10 labels, the first in row 0"),
        (
            {"train": RATED, "validation": {"text": ["a"], "label": [7]}},
            {},
            r"'label' of split 'validation' has \[7\], train only \[0, 1\]",
        ),
        ({"train": RATED, "validation": {"sentence": TEXTS}}, {}, "column 'text' is not in split 'validation'"),
        ({"train": {"text": TEXTS, "label": [1] * 10}}, {}, r"classes must be at least two, .* only \[1\]"),
        ({"train": {"text": TEXTS, "label": TEXTS}}, {"problem_type": "regression"}, "regression, it holds 'text 0'"),
        ({"train": {"text": TEXTS, "label": ["3.4", "2"] * 5}}, {}, "2 different numbers as text, such as '2': give"),
        (
            {"train": {"text": TEXTS * 3, "label": [str(number) for number in range(30)]}},
            {},
            "30 different numbers as text, such as '0': give `problem_type` regression where they are values",
        ),
        (
            {"train": {"text": TEXTS, "label": ["1", "0", "NA", "2", "1"] * 2}},
            {},
            "holds numbers and 'NA': remove the rows",
        ),
        ({"train": RATED}, {"problem_type": "multi_label_classification"}, "cannot be multi_label_classification"),
        ({"train": RATED}, {"problem_type": "ranking"}, "`problem_type` must be one of .* got 'ranking'"),
        (
            {"train": {"text": TEXTS, "label": [0.5, 1.0] * 5}},
            {"problem_type": "single_label_classification"},
            "classes must be whole numbers or names, got 0.5",
        ),
        ({"train": {"text": TEXTS, "label": [[0.5, 1.0]] * 10}}, {}, "must be 0-1 rows of one length"),
        ({"train": {"text": ["a", "b"], "label": ["x", "y"]}}, {}, r"too few rows \(2\) to carve a test split"),
        ({"train": RATED}, {"metric_name": "spearmanr"}, "'spearmanr' cannot score single_label_classification"),
        ({"train": RATED}, {"metric_name": "bleu"}, "unknown metric 'bleu'"),
        ({"train": RATED}, {"validation_fraction": 1.5}, "`validation_fraction` is a share .* got 1.5"),
        ({"train": RATED}, {"max_train_samples": 0}, "`max_train_samples` must be at least 1, got 0"),
        (
            {"train": {"tweet": TEXTS, "author": ["ann", "bob"] * 4 + ["bob", "ann"], "label": LABELS}},
            {},
            "one of tweet, author may be; name it by `text_column`",
        ),
        (
            {"train": {"id": list("abcdefghij"), "kind": ["x", "y"] * 5, "label": LABELS}},
            {},
            r"id is not taken unasked \(an identifier\); kind is not taken unasked \(names the label\)",
        ),
        ({"train": RATED}, {"text_pair_column": "text"}, "name the first by `text_column`"),
    ],
)
def test_refused_data(tmp_path, splits, arguments, message):
    with pytest.raises(ValueError, match=message):
        load(write(tmp_path, **splits), **arguments)


def test_two_files_for_one_split(tmp_path):
    write(tmp_path, ".csv", train=RATED)
    with pytest.raises(ValueError, match=r"from one file or from its shards, found \['train.csv', 'train.parquet'\]"):
        load(write(tmp_path, train=RATED))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("reviews.txt", "text,label\na,1\n", "must end in one of .* got reviews.txt"),
        ("reviews.parquet", "text,label\na,1\n", "could not read reviews.parquet .* check that it is a parquet file"),
        ("reviews.csv", "", "could not read reviews.csv"),
    ],
)
def test_refused_files(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(tmp_path / name)


@pytest.mark.parametrize("name", ["./nowhere", "nowhere.csv"])
def test_a_path_that_is_not_there(name):
    with pytest.raises(ValueError, match=f"there is no file or folder {name}; check the path"):
        load(name)


def test_a_hub_out_of_reach(monkeypatch):
    def load_dataset(*names):
        raise ConnectionError("Couldn't reach it\nmuch more")

    monkeypatch.setattr(sources, "load_dataset", load_dataset)
    with pytest.raises(
        ValueError, match=r"could not load 'nyu-mll/glue' \(rte\) from the Hub.* give a local folder"
    ) as info:
        load_task(TaskArguments(dataset_name="rte"))
    assert "\n" not in str(info.value)


def test_an_empty_split_on_the_hub(monkeypatch):
    splits = DatasetDict(train=Dataset.from_dict(RATED), validation=Dataset.from_dict(part(RATED, 0, 0)))
    monkeypatch.setattr(sources, "load_dataset", lambda *names: splits)
    with pytest.raises(ValueError, match="split 'validation' of someone/reviews is empty; remove it"):
        load("someone/reviews")


@pytest.mark.parametrize("max_length", [2, 33])
def test_max_length_must_suit_the_tokenizer(tmp_path, bert_tokenizer, max_length):
    task = load(write(tmp_path, train=RATED))
    with pytest.raises(ValueError, match=f"above the 2 special tokens and at most .* of 32, got {max_length}"):
        tokenize(task, bert_tokenizer, max_length)


def test_left_padding_is_refused(tmp_path, bert_tokenizer):
    bert_tokenizer.padding_side = "left"
    with pytest.raises(ValueError, match='the tokenizer must pad right, got `padding_side` "left"'):
        tokenize(load(write(tmp_path, train=RATED)), bert_tokenizer, 16)


def test_a_task_is_tokenized_once(tmp_path, bert_tokenizer):
    task = tokenize(load(write(tmp_path, train=RATED)), bert_tokenizer, 16)
    with pytest.raises(ValueError, match=r"text columns \['text'\] are not in the task"):
        tokenize(task, bert_tokenizer, 16)
