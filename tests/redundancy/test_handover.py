"""What a training read goes with its model, and no certificate rests on rows that were read before."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from classformer_hf.commands import benchmark
from redundancy_hf import data
from redundancy_hf.data import load_task
from redundancy_hf.folders import list_files
from redundancy_hf.hub import stage_folder
from redundancy_hf.readings import find_readings
from redundancy_hf.record import TASK_FILE, TASK_ROWS, hash_arrays, hash_texts, make_flags, read_record
from redundancy_hf.task import TaskArguments

ROWS_IN_TEST = 24
CERTIFY = ("--required_performance", 0.9, "--device", "cpu")


def write_reviews(path: Path, numbers) -> Path:
    """Write numbered reviews whose labels are noise."""
    path.parent.mkdir(exist_ok=True)
    labels = np.random.default_rng(0).integers(0, 2, 1000)
    rows = [f'"film {number} is number {number}",{("negative", "positive")[labels[number]]}' for number in numbers]
    path.write_text("\n".join(["review,verdict", *rows]) + "\n")
    return path


@pytest.fixture
def reviews(tmp_path):
    return write_reviews(tmp_path / "data" / "reviews.csv", range(240))


@pytest.fixture
def leave_model(tmp_path, tiny_roberta_two_labels, reviews):
    """Leave a folder as a training does that read the reviews by the seed 7."""

    def leave(name: str, checkpoint: Path | None = None, **changes) -> Path:
        settings = {"text_column": "review", "label_column": "verdict", "split_seed": 7, "max_length": 64, **changes}
        task = load_task(TaskArguments(dataset_name=str(reviews), **settings))
        folder = shutil.copytree(tiny_roberta_two_labels, tmp_path / "runs" / name)
        record = task.record.after(checkpoint, folder.parent)
        record.write(folder)
        record.write(folder.parent)
        return folder

    return leave


@pytest.fixture
def pair(leave_model):
    """The full model and a candidate of one search."""
    return leave_model("full"), leave_model("best")


def read_certificate(folder: Path) -> dict:
    return json.loads((folder / "certificate.json").read_text())


def test_spelling_makes_no_other_row():
    first, second, third = hash_texts([["A  good\tfilm", "a good ﬁlm", "a good movie"]])
    assert first == second != third
    assert hash_texts([["a"], ["b c"]]) != hash_texts([["a b"], ["c"]])
    assert hash_texts([["a"]]).dtype == np.uint64
    assert hash_arrays([np.zeros((2, 3))]) != hash_arrays([np.zeros((3, 2))])


def test_task_is_written_and_read(leave_model, reviews):
    folder = leave_model("best")
    content = json.loads((folder / TASK_FILE).read_text())
    assert content["dataset"] == "reviews" and content["label_names"] == ["negative", "positive"]
    assert content["arguments"]["split_seed"] == 7 and content["arguments"]["metric_name"] == "accuracy"
    assert {name: split["rows"] for name, split in content["splits"].items()} == {
        "train": 194,
        "validation": 22,
        "test": ROWS_IN_TEST,
    }
    assert content["studies"] == [".."]
    record = read_record(folder)
    assert len(record.seen) == 216 and not np.isin(record.rows["test"], record.seen).any()
    # the label is no part of it
    assert record.rows["test"][0] in hash_texts([[f"FILM {n} is  number {n}" for n in range(240)]])


def test_no_flag_is_typed_again(run, pair):
    code, printed, words = run("evaluate_model", *pair, *CERTIFY)
    assert code == 0, words
    assert f"reviews test: {ROWS_IN_TEST} examples" in printed
    certificate = read_certificate(pair[1])
    assert certificate["num_examples"] == ROWS_IN_TEST and certificate["num_examples_left_out"] == 0
    assert certificate["reading"] == 1 and certificate["unseen_by_word"] == []


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--split_seed", 42], "was trained with split_seed 7 (its task.json), and --split_seed says 42"),
        (["--validation_fraction", 0.3], "was trained with validation_fraction 0.1 (its task.json)"),
        (["--text_column", "verdict"], "was trained with text_column review (its task.json)"),
    ],
)
def test_flags_that_contradict_are_refused(run, pair, flags, message):
    code, _, words = run("evaluate_model", pair[1], "--device", "cpu", *flags)
    assert code == 1 and message in words


@pytest.mark.parametrize("split, count", [("train", "194 of 194"), ("validation", "22 of 22"), ("all", "216 of 240")])
def test_no_certificate_on_what_was_trained_or_chosen_on(run, pair, split, count):
    code, _, words = run("evaluate_model", *pair, *CERTIFY, "--split", split)
    assert code == 1 and f"{count} rows of the {split} split had been read by the training of {pair[0]}" in words
    assert not (pair[1] / "certificate.json").exists()
    # nothing was read for it
    assert not (pair[1] / "test_readings.jsonl").exists()


def test_no_certificate_on_another_split_of_the_same_rows(run, pair, reviews, tmp_path):
    copy = shutil.copy(reviews, tmp_path / "copy.csv")
    code, _, words = run("evaluate_model", *pair, *CERTIFY, "--dataset_name", copy, "--split_seed", 42)
    assert code == 1 and "of 24 rows of the test split had been read by the training of" in words
    # one of the two models is enough
    code, _, words = run("evaluate_model", *pair, *CERTIFY, "--dataset_name", copy, "--split_seed", 42, "--unseen")
    assert code == 1 and "had been read by the training" in words


def test_no_certificate_where_one_of_two_models_has_seen_the_rows(run, leave_model):
    first, second = leave_model("full"), leave_model("best", split_seed=8)
    code, _, words = run("evaluate_model", first, second, *CERTIFY)
    assert code == 1 and f"had been read by the training of {second}" in words


def test_appended_rows_are_noticed(run, pair, reviews):
    write_reviews(reviews, range(290))
    code, _, words = run("evaluate_model", *pair, *CERTIFY)
    assert code == 1 and "of 29 rows of the test split had been read by the training of" in words
    # scored all the same
    code, printed, words = run("evaluate_model", pair[1], "--device", "cpu")
    assert code == 0, words
    assert "of 29 rows had been read by the training of" in printed and "flatter its score" in printed


def test_moved_data_are_the_same_data(run, pair, reviews, tmp_path):
    moved = reviews.rename(tmp_path / "moved.csv")
    code, _, words = run("evaluate_model", *pair, *CERTIFY)
    assert code == 1 and "trained on the local data set reviews" in words and "--dataset_name" in words
    # columns, seed and fraction are still those of the record
    code, printed, words = run("evaluate_model", *pair, *CERTIFY, "--dataset_name", moved)
    assert code == 0, words
    assert f"moved test: {ROWS_IN_TEST} examples" in printed and (pair[1] / "certificate.json").exists()


def test_other_data_certify(run, pair, tmp_path):
    other = write_reviews(tmp_path / "other.csv", range(500, 600))
    flags = ("--dataset_name", other, "--split", "all")
    code, printed, words = run("evaluate_model", *pair, *CERTIFY, *flags)
    assert code == 0, words
    assert "other all: 100 examples" in printed
    # the test split of its own data has not been read by that
    assert run("evaluate_model", *pair, *CERTIFY)[0] == 0
    assert "--read_again" in run("evaluate_model", *pair, *CERTIFY, *flags)[2]


def test_texts_that_occur_twice_are_left_out_and_counted(run, pair, tmp_path):
    # one of 30, and then two
    other = write_reviews(tmp_path / "other.csv", [*range(500, 529), 3])
    known = read_record(pair[0])
    assert hash_texts([["film 3 is number 3"]])[0] in known.seen
    flags = ("--dataset_name", other, "--split", "all")
    code, printed, words = run("evaluate_model", *pair, *CERTIFY, *flags)
    assert code == 0, words
    assert "1 more examples were left out, which a training or a choice had read" in printed
    assert read_certificate(pair[1])["num_examples"] == 29
    write_reviews(other, [*range(500, 528), 3, 4])
    code, _, words = run("evaluate_model", *pair, *CERTIFY, *flags)
    assert code == 1 and "2 of 30 rows of the all split had been read" in words


def test_every_reading_counts_over_all_folders_of_a_search(run, pair, leave_model):
    full, best = pair
    winner = leave_model("winner")
    assert run("evaluate_model", winner, "--device", "cpu")[0] == 0
    (line,) = (best.parent / "test_readings.jsonl").read_text().splitlines()
    assert json.loads(line)["models"] == ["runs/winner"] and json.loads(line)["num_examples"] == ROWS_IN_TEST
    code, _, words = run("evaluate_model", full, best, *CERTIFY)
    assert code == 1 and "have been read once before, last for runs/winner" in words and "--read_again" in words
    for reading in (2, 3):
        code, printed, words = run("evaluate_model", full, best, *CERTIFY, "--read_again")
        assert code == 0, words
        certificate = read_certificate(best)
        assert certificate["reading"] == reading and certificate["num_candidates"] == 2 ** (reading - 1)
        assert f"This was reading {reading} of these examples" in certificate["sentence"]
        assert certificate["sentence"] in printed
    # a folder that was moved away knows its own
    (best.parent.parent / "elsewhere").mkdir()
    moved = shutil.move(best, best.parent.parent / "elsewhere" / "best")
    assert len(find_readings([Path(moved)], read_record(Path(moved)).rows["test"])) == 2


def test_many_readings_have_resamples_enough(run, pair):
    for _ in range(6):
        assert run("evaluate_model", pair[1], "--device", "cpu")[0] == 0
    code, _, words = run("evaluate_model", *pair, *CERTIFY, "--read_again")
    assert code == 0, words
    assert read_certificate(pair[1])["num_candidates"] == 64


def test_what_is_known_to_be_seen_is_no_reading(run, pair):
    for split in ("train", "validation"):
        code, printed, words = run("evaluate_model", pair[1], "--device", "cpu", "--split", split)
        assert code == 0, words
        assert "flatter" not in printed
    assert not (pair[1] / "test_readings.jsonl").exists()


def test_damaged_records_are_one_sentence(run, pair):
    (pair[1] / "test_readings.jsonl").write_text("{\n")
    code, _, words = run("evaluate_model", *pair, *CERTIFY)
    assert code == 1 and "test_readings.jsonl is damaged" in words
    (pair[1] / TASK_FILE).write_text("[]")
    code, _, words = run("evaluate_model", *pair, *CERTIFY)
    assert code == 1 and "task.json or task_rows.npz beside it is damaged" in words
    content = json.loads((pair[0] / TASK_FILE).read_text())
    content["arguments"]["split_seed"] = "seven"
    (pair[0] / TASK_FILE).write_text(json.dumps(content))
    code, _, words = run("evaluate_model", pair[0])
    assert code == 1 and "has split_seed 'seven', which is of another type" in words


def test_without_a_record_only_the_users_word_certifies(run, pair, reviews):
    for folder in pair:
        (folder / TASK_FILE).unlink()
        (folder / TASK_ROWS).unlink()
    flags = ["--dataset_name", reviews, "--text_column", "review", "--label_column", "verdict", "--max_length", 64]
    code, printed, words = run("evaluate_model", *pair, "--device", "cpu", *flags)
    assert code == 0, words
    code, _, words = run("evaluate_model", *pair, *CERTIFY, *flags)
    assert code == 1 and "no task.json with hashes" in words and "--unseen" in words
    code, printed, words = run("evaluate_model", *pair, *CERTIFY, *flags, "--unseen")
    assert code == 0, words
    certificate = read_certificate(pair[1])
    # where the folders lie is nobody's business
    assert certificate["unseen_by_word"] == ["full", "best"] and str(pair[0].parent) not in certificate["sentence"]
    assert "is the user's own word (--unseen)." in certificate["sentence"]
    assert "--read_again" in run("evaluate_model", *pair, *CERTIFY, *flags, "--unseen")[2]


def test_published_folder_tells_a_stranger_no_text_and_no_path(run, pair, reviews, tmp_path):
    run("evaluate_model", *pair, "--device", "cpu")
    staged = tmp_path / "staged"
    staged.mkdir()
    stage_folder(pair[1], staged)
    names = {path.name for path in staged.rglob("*")}
    assert TASK_FILE in names and not {TASK_ROWS, "test_readings.jsonl", "test_readings"} & names
    text = (staged / TASK_FILE).read_text()
    assert str(reviews) not in text and "reviews.csv" not in text and "studies" not in text
    content = json.loads(text)
    assert content["splits"]["test"]["rows"] == ROWS_IN_TEST and content["arguments"]["split_seed"] == 7
    assert content["arguments"]["dataset_name"] is None and content["dataset"] == "reviews"
    assert list_files(staged)[1] == []
    # the data set has to be named, and nothing else
    code, _, words = run("evaluate_model", staged, "--device", "cpu")
    assert code == 1 and "trained on the local data set reviews, which is not here" in words
    code, _, words = run("evaluate_model", pair[0], staged, *CERTIFY, "--dataset_name", reviews, "--read_again")
    # the same splits tell which rows it has read
    assert code == 0, words
    write_reviews(reviews, range(300, 540))
    code, _, words = run("evaluate_model", staged, staged, *CERTIFY, "--dataset_name", reviews)
    assert code == 1 and "--unseen" in words


def test_a_classifier_without_a_record_leaves_it_open(leave_model, tiny_roberta_two_labels):
    record = read_record(leave_model("best"))
    assert record.after(tiny_roberta_two_labels, is_trained=True).seen is None
    assert record.after(tiny_roberta_two_labels).seen is not None
    known = leave_model("known")
    assert len(record.after(known, is_trained=True).seen) == len(record.seen)


def test_rows_of_the_checkpoint_count(leave_model, run):
    first = leave_model("first", split_seed=8)
    second = leave_model("second", first)
    assert json.loads((second / TASK_FILE).read_text())["rows_read_before"] > 0
    code, _, words = run("evaluate_model", second, second, *CERTIFY)
    assert code == 1 and "had been read by the training of" in words


def test_rows_that_chose_the_schedule_count(leave_model, reviews):
    search, other = leave_model("best", split_seed=8), read_record(leave_model("final"))
    record = other.by_choice_of(search / "config.json")
    assert len(record.seen) > len(other.seen) and record.studies == other.studies
    assert other.by_choice_of(None) is other and other.by_choice_of("a/name") is other
    # nothing is known of the checkpoint of the search, but it did not choose
    unknown = read_record(search).after("nobody/knows", is_trained=True)
    unknown.write(search)
    assert read_record(search).seen is None and other.by_choice_of(search).seen is not None


def test_a_folder_that_leaves_its_search_takes_no_other_for_it(leave_model, tmp_path):
    folder = leave_model("best")
    (tmp_path / "elsewhere").mkdir()
    moved = shutil.move(folder, tmp_path / "elsewhere" / "best")
    assert read_record(moved).studies == ()


def test_texts_are_cut_as_in_training(run, leave_model, reviews, monkeypatch):
    folder, lengths, options = leave_model("best", max_length=16), [], []
    tokenize = data.tokenize

    def note(task, tokenizer, max_length):
        lengths.append(max_length)
        return tokenize(task, tokenizer, max_length)

    def classify(job, folder, inputs, **task):
        options.append(task["options"])
        return [{"label": "positive", "score": 1.0} for _ in inputs]

    monkeypatch.setattr(benchmark, "tokenize", note)
    monkeypatch.setattr("redundancy_hf.commands.classify.run_elsewhere", classify)
    columns = ("--dataset_name", reviews, "--text_column", "review", "--label_column", "verdict", "--rounds", 1)
    for more, expected in (((), 16), (("--max_length", 12), 12)):
        code, _, words = run("benchmark_latency", folder, *columns, "--num_inputs", 2, *more)
        assert code == 0 and lengths.pop() == expected, words
    monkeypatch.setattr(data, "tokenize", note)
    run("throughput", "--models", folder, "--num_inputs", 2, "--rounds", 1)
    assert lengths == [16]
    assert run("classify_elsewhere", folder)[0] == 0
    (folder / TASK_FILE).unlink()
    assert run("classify_elsewhere", folder)[0] == 0
    assert options == [{"truncation": True, "max_length": 16}, {"truncation": True}]


def test_flags_are_arguments_without_defaults():
    flags = make_flags(TaskArguments)()
    assert set(vars(flags)) == set(vars(TaskArguments())) and set(vars(flags).values()) == {None}
