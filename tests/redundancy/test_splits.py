"""Files as they come: separators, encodings, names, types, shards, folders, and what is said where it is guessed."""

import bz2
import gzip
import json
import logging

import pytest
from datasets import Dataset, DatasetDict

from classformer_hf.texts import TextArguments, load_texts
from redundancy_hf import splits as sources
from redundancy_hf.data import load_task
from redundancy_hf.evaluation import stream_examples
from redundancy_hf.task import TaskArguments

REVIEWS = ["a café, warm and clever", "null", "dull; slow", "NA", "good", 'a "new" film', "bad", "so so"] * 3
LABELS = ["good", "None"] * 12


def quote(text):
    return '"' + text.replace('"', '""') + '"'


def lines(separator=",", header=("review", "label"), labels=LABELS):
    rows = [separator.join((quote(review), str(label))) for review, label in zip(REVIEWS, labels, strict=True)]
    return "\n".join([*([separator.join(header)] if header else []), *rows]) + "\n"


def load(path, **arguments):
    return load_task(TaskArguments(dataset_name=str(path), **arguments))


def read_all(task):
    return sorted(text for split in task.splits.values() for text in split[task.text_columns[0]])


def said(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "screen"]


@pytest.fixture(autouse=True)
def listen(caplog):
    caplog.set_level(logging.INFO)


def test_words_for_missing_are_texts_and_classes_in_csv(tmp_path):
    (tmp_path / "reviews.csv").write_text(lines(), encoding="utf-8")
    task = load(tmp_path / "reviews.csv")
    assert task.label_names == ["None", "good"]
    assert read_all(task) == sorted(REVIEWS)


def test_an_empty_field_is_missing(tmp_path):
    (tmp_path / "reviews.csv").write_text(lines() + "fine,\n", encoding="utf-8")
    with pytest.raises(ValueError, match="misses 1 of 25 labels, the first in row 24"):
        load(tmp_path / "reviews.csv")
    (tmp_path / "reviews.csv").write_text(lines() + ",good\n", encoding="utf-8")
    with pytest.raises(ValueError, match="misses 1 of 25 texts, the first in row 24"):
        load(tmp_path / "reviews.csv", text_column="review")


@pytest.mark.parametrize(
    ("name", "separator", "encoding", "words"),
    [
        ("reviews[1].csv", ",", "utf-8", []),
        ("*.csv", ",", "utf-8-sig", []),
        ("reviews.CSV", ",", "utf-8", []),
        ("reviews.tsv", "\t", "utf-8", []),
        ("reviews.csv", ";", "utf-8", ["reviews.csv: fields are parted by semicolons."]),
        ("reviews.csv", "\t", "utf-8", ["reviews.csv: fields are parted by tabs."]),
        ("reviews.csv", ",", "latin-1", ["reviews.csv: not UTF-8, read as Windows-1252"]),
        ("reviews.csv", ",", "utf-16", []),
        ("reviews.csv.gz", ",", "utf-8", []),
        (
            "reviews.csv.bz2",
            ";",
            "cp1252",
            ["reviews.csv.bz2: not UTF-8", "reviews.csv.bz2: fields"],
        ),
    ],
)
def test_csv_of_any_kind_is_the_same_task(tmp_path, caplog, name, separator, encoding, words):
    pack = {"gz": gzip.compress, "bz2": bz2.compress}.get(name.rpartition(".")[2], bytes)
    (tmp_path / name).write_bytes(pack(lines(separator).encode(encoding)))
    task = load(tmp_path / name)
    assert (task.text_columns, task.label_names) == (("review",), ["None", "good"])
    assert read_all(task) == sorted(REVIEWS)
    messages = said(caplog)
    assert all(message.startswith(start) for message, start in zip(messages[:-2], words, strict=True))
    assert task.name == name.partition(".")[0] and f"{task.name}: text from review, labels from label" in messages[-2]
    _, read = stream_examples(TaskArguments(dataset_name=str(tmp_path / name)), "train")
    assert [(row["text"], label) for row, label in read()] == list(zip(REVIEWS, LABELS, strict=True))


@pytest.mark.parametrize("name", ["reviews.jsonl.gz", "reviews[*].JSON"])
def test_json_is_read_packed_and_under_any_name(tmp_path, name):
    rows = [json.dumps({"review": review, "label": label}) for review, label in zip(REVIEWS, LABELS, strict=True)]
    content = "\n".join(rows).encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read_all(load(tmp_path / name)) == sorted(REVIEWS)


def test_json_of_two_types_is_said(tmp_path):
    rows = [json.dumps({"text": "a film " * 40 + str(n), "label": n % 2 if n < 39_000 else "x"}) for n in range(40_000)]
    (tmp_path / "reviews.jsonl").write_text("\n".join(rows))
    with pytest.raises(ValueError, match="Failed to parse string.*values of one type in every column"):
        load(tmp_path / "reviews.jsonl")


def test_an_encoding_that_cannot_be_guessed_is_refused(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\nочень хороший фильм,да\nплохой фильм,нет\n", encoding="cp1251")
    with pytest.raises(ValueError, match="is not UTF-8, and which encoding it has cannot be guessed; save it as UTF-8"):
        load(tmp_path / "reviews.csv")


@pytest.mark.parametrize("labels", [LABELS, [0, 1] * 12, [0.5, 1.25] * 12], ids=["names", "numbers", "values"])
def test_a_csv_without_a_line_of_names_is_read_and_that_is_said(tmp_path, caplog, labels):
    (tmp_path / "reviews.csv").write_text(lines(header=None, labels=labels), encoding="utf-8")
    task = load(tmp_path / "reviews.csv")
    assert said(caplog)[0] == "reviews.csv: no line of names; its columns are read as text, label."
    assert read_all(task) == sorted(REVIEWS)
    assert task.label_names == {float: ["label"], int: ["0", "1"], str: ["None", "good"]}[type(labels[0])]


def test_a_csv_without_a_line_of_names_is_refused_where_columns_cannot_be_told(tmp_path):
    rows = [f"{number},a film {number},{number % 2}" for number in range(20)]
    (tmp_path / "reviews.csv").write_text("\n".join(rows) + "\n")
    with pytest.raises(ValueError, match="first line, 0, a film 0, 0, does not seem to name .* such as text,label"):
        load(tmp_path / "reviews.csv")


@pytest.mark.parametrize("header", [("0", "1"), ("comment", "good or bad")], ids=["numbers", "words"])
def test_a_line_of_unusual_names_is_one(tmp_path, header):
    (tmp_path / "reviews.csv").write_text(lines(header=header), encoding="utf-8")
    task = load(tmp_path / "reviews.csv", text_column=header[0], label_column=header[1])
    assert read_all(task) == sorted(REVIEWS)


def test_texts_with_separators_must_be_quoted(tmp_path):
    (tmp_path / "reviews.csv").write_text("text,label\ngood, and short,1\nbad,0\n")
    with pytest.raises(ValueError, match="Expected 2 fields in line 2, saw 3; a text that holds commas"):
        load(tmp_path / "reviews.csv")


def test_a_column_of_numbers_may_end_in_words(tmp_path):
    rows = [f"text {number},{number % 2 if number < 10_500 else 'other'}" for number in range(11_000)]
    (tmp_path / "reviews.csv").write_text("text,label\n" + "\n".join(rows) + "\n")
    assert load(tmp_path / "reviews.csv").label_names == ["0", "1", "other"]


def test_a_column_has_one_type_in_all_splits(tmp_path):
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a{n},{('1', 'x')[n % 2]}\n" for n in range(20)))
    (tmp_path / "test.csv").write_text("text,label\na,1\nb,1\n")
    task = load(tmp_path)
    assert task.label_names == ["1", "x"] and task.splits["test"]["labels"][:] == [0, 0]
    (tmp_path / "train.csv").write_text("text,label\n" + "".join(f"a{n},{n % 3 + 9}\n" for n in range(30)))
    (tmp_path / "test.csv").write_text("text,label\na,10\nb,9\n")
    task = load(tmp_path)
    assert task.label_names == ["9", "10", "11"] and task.splits["test"]["labels"][:] == [1, 0]


def test_texts_that_are_numbers_stay_texts(tmp_path):
    (tmp_path / "years.csv").write_text("text,label\n" + "".join(f"{1900 + n % 50},{n % 2}\n" for n in range(200)))
    assert read_all(load(tmp_path / "years.csv"))[0] == "1900"


@pytest.mark.parametrize("is_whole", [False, True])
def test_a_saved_data_set_is_read(tmp_path, is_whole):
    rows = Dataset.from_dict({"review": REVIEWS, "label": LABELS})
    (DatasetDict(train=rows, dev=rows) if is_whole else rows).save_to_disk(tmp_path / "saved")
    task = load(tmp_path / "saved")
    assert len(task.splits["test"]) == (24 if is_whole else 2)
    _, read = stream_examples(TaskArguments(dataset_name=str(tmp_path / "saved")), "train")
    assert len(list(read())) == 24


def test_a_clone_of_the_hub_is_read(tmp_path):
    (tmp_path / "clone[1]" / "data").mkdir(parents=True)
    (tmp_path / "clone[1]" / "README.md").write_text("")
    for split in ("train", "test"):
        for shard in range(2):
            rows = Dataset.from_dict({"review": REVIEWS, "label": LABELS})
            rows.to_parquet(tmp_path / "clone[1]" / "data" / f"{split}-0000{shard}-of-00002-0a1b2c.parquet")
    task = load(tmp_path / "clone[1]")
    assert len(task.splits["test"]) == 48 and task.name == "clone[1]"
    _, read = stream_examples(TaskArguments(dataset_name=str(tmp_path / "clone[1]")), "test")
    assert len(list(read())) == 48


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (("train", "eval"), {"train": "train", "eval": "validation"}),
        (("train", "eval", "test"), {"train": "train", "eval": "validation", "test": "test"}),
        (("train", "dev", "eval"), {"train": "train", "dev": "validation", "eval": "test"}),
        (("train", "valid", "test", "eval"), {"train": "train", "valid": "validation", "test": "test"}),
        (("Train", "VAL", "extra"), {"Train": "train", "VAL": "validation"}),
    ],
)
def test_splits_have_usual_names(names, expected):
    assert sources.name_splits(names) == expected


@pytest.mark.parametrize("name", ["eval", "dev", "valid", "Val"])
def test_the_only_other_split_is_the_test_split(tmp_path, name):
    (tmp_path / "train.csv").write_text(lines(), encoding="utf-8")
    (tmp_path / f"{name}.csv").write_text("review,label\nfine,good\n")
    assert load(tmp_path).splits["test"]["review"][:] == ["fine"]


@pytest.mark.parametrize("streaming", [False, True])
def test_texts_to_pretrain_on_are_read_likewise(tmp_path, monkeypatch, streaming):
    monkeypatch.setattr("classformer_hf.texts.NUM_STREAMED_FOR_VALIDATION", 4)
    folder = tmp_path / "corpora[1]"
    folder.mkdir()
    content = "\n".join(REVIEWS)
    (folder / "corpus.txt").write_text(content, encoding="latin-1")
    (folder / "corpus.txt.gz").write_bytes(gzip.compress(content.encode()))
    for name in ("corpus.txt", "corpus.txt.gz"):
        texts = load_texts(TextArguments(dataset_name=str(folder / name), streaming=streaming))
        assert "a café, warm and clever" in {row["text"] for row, _ in zip(texts.train, range(24), strict=False)}
    (folder / "corpus.txt.gz").write_bytes(gzip.compress(content.encode("latin-1")))
    with pytest.raises(ValueError, match="reads compressed texts in UTF-8 only; unpack it"):
        load_texts(TextArguments(dataset_name=str(folder / "corpus.txt.gz"), streaming=streaming))
    (folder / "corpus[1].txt.gz").write_bytes((folder / "corpus.txt.gz").read_bytes())
    with pytest.raises(ValueError, match=r"no compressed file with a \[ in its name; rename corpus\[1\].txt.gz"):
        load_texts(TextArguments(dataset_name=str(folder / "corpus[1].txt.gz"), streaming=streaming))
