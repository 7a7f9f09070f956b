"""The embedded demo task: read once from this Python's library, and its rules on small libraries made for them."""

import collections
import json
import os
import re
import subprocess
import sys

import pytest

from redundancy_hf.corpus import (
    MIN_FILES,
    MIN_FUNCTIONS,
    MIN_TOKENS,
    collect_functions,
    load_standard_library_task,
    read_functions,
    select_packages,
    split_by_file,
    tfidf_score,
    train_tokenizer,
)

SPLITS = ("train", "validation", "test")


@pytest.fixture(scope="module")
def task():
    return load_standard_library_task()


@pytest.fixture(scope="module")
def tokenizer(task):
    return train_tokenizer(task)


def function_source(name, num_words=MIN_TOKENS):
    """A function with at least `num_words` words and marks, alike but for its name."""
    return f"def {name}(value):\n    return [{', '.join(['value'] * (num_words // 2))}]\n"


def write_package(library, name, num_files=MIN_FILES, functions_per_file=MIN_FUNCTIONS // MIN_FILES + 1):
    folder = library / name
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    for file in range(num_files):
        functions = [function_source(f"{name}_{file}_{number}") for number in range(functions_per_file)]
        (folder / f"module_{file}.py").write_text("\n".join(functions))
    return folder


def test_task_has_the_promised_shape(task):
    assert set(task.splits) == set(SPLITS)
    assert task.text_columns == ("text",)
    assert (task.problem_type, task.metric_name) == ("single_label_classification", "accuracy")
    assert 2 <= len(task.label_names) <= 6
    assert task.label_names == task.splits["train"].features["labels"].names
    # a Python that leaves packages out still gives two thirds of the intended 1,300 / 475 / 457 examples
    if len(task.label_names) == 6:
        assert len(task.splits["train"]) >= 800
        assert min(len(task.splits["validation"]), len(task.splits["test"])) >= 280


@pytest.mark.parametrize("split", SPLITS)
def test_every_class_is_equally_often_in_every_split(task, split):
    counts = collections.Counter(task.splits[split]["labels"])
    assert set(counts) == set(range(len(task.label_names)))
    assert len(set(counts.values())) == 1


def test_examples_are_mixed_so_that_a_cut_split_has_every_class(task):
    assert len(set(task.splits["train"]["labels"][:60])) == len(task.label_names)


def test_no_file_is_in_two_splits_and_every_label_is_the_package_of_its_file(task):
    files = {split: set(task.splits[split]["file"]) for split in SPLITS}
    assert not files["train"] & files["validation"]
    assert not files["train"] & files["test"]
    assert not files["validation"] & files["test"]
    for split in SPLITS:
        packages = [file.split("/")[0] for file in task.splits[split]["file"]]
        assert packages == [task.label_names[label] for label in task.splits[split]["labels"]]


def test_no_text_occurs_twice_even_across_splits(task):
    texts = [" ".join(text.split()) for split in SPLITS for text in task.splits[split]["text"]]
    assert len(set(texts)) == len(texts)


@pytest.mark.filterwarnings("ignore::SyntaxWarning", "ignore::DeprecationWarning")
def test_texts_are_whole_functions_of_enough_words(task):
    for text in task.splits["train"]["text"]:
        assert text.startswith(("def ", "async def "))
        assert len(re.findall(r"\w+|[^\w\s]", text)) >= MIN_TOKENS
        compile(text, "example", "exec", dont_inherit=True)


def test_same_python_gives_the_same_task(task):
    again = load_standard_library_task()
    for split in SPLITS:
        assert again.splits[split].to_dict() == task.splits[split].to_dict()


def test_seed_decides_the_split(tmp_path):
    for name in ("alpha", "beta"):
        write_package(tmp_path, name)
    first, again, other = (load_standard_library_task(tmp_path, seed=seed).splits["test"] for seed in (1, 1, 2))
    assert first.to_dict() == again.to_dict()
    assert set(first["file"]) != set(other["file"])


def test_tokenizer_encodes_any_text_without_loss(task, tokenizer):
    assert len(tokenizer) == tokenizer.vocab_size == 2000
    for text in [*task.splits["test"]["text"][:50], "naïve → 漢字\t\x00", ""]:
        token_ids = tokenizer(text, truncation=False, verbose=False)["input_ids"]
        assert tokenizer.unk_token_id not in token_ids
        # between the first and the last one: a text may itself hold a word like "<s>"
        assert tokenizer.decode(token_ids[1:-1]) == text


def test_tokenizer_has_the_ids_and_the_padding_of_roberta(tokenizer):
    batch = tokenizer(["a", "def f(x): return x"], padding=True)
    assert (tokenizer.cls_token_id, tokenizer.pad_token_id, tokenizer.sep_token_id) == (0, 1, 2)
    assert batch["input_ids"][0][0] == 0 and batch["input_ids"][0][-1] == 1
    assert batch["attention_mask"][0][-1] == 0
    assert tokenizer.model_max_length == 128
    assert len(tokenizer("word " * 500, truncation=True)["input_ids"]) == 128


def test_tokenizer_sees_the_train_split_alone(task, tokenizer):
    splits = task.splits.copy()
    splits["validation"] = splits["validation"].map(lambda row: {"text": "zyzzyva " * 200})
    changed = type(task)(**{**vars(task), "splits": splits})
    assert train_tokenizer(changed).get_vocab() == tokenizer.get_vocab()
    splits["train"] = splits["train"].map(lambda row: {"text": "zyzzyva " * 20})
    assert "zyzzyva" in train_tokenizer(type(task)(**{**vars(task), "splits": splits}), vocab_size=300).get_vocab()


def test_saved_tokenizer_loads_in_a_process_without_this_project(tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    # a model folder whose own code is neither present nor allowed to run: the tokenizer needs none of it
    config = {"model_type": "classformer", "auto_map": {"AutoConfig": "configuration_classformer.ClassformerConfig"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    code = (
        "import json, sys; from transformers import AutoTokenizer; "
        "tokenizer = AutoTokenizer.from_pretrained('.', trust_remote_code=False); "
        "print(json.dumps([type(tokenizer).__name__, tokenizer.padding_side, tokenizer.model_max_length, "
        "tokenizer('def f(x): return x').input_ids, 'classformer_hf' in sys.modules]))"
    )
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    process = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    expected = ["RobertaTokenizer", "right", 128, tokenizer("def f(x): return x").input_ids, False]
    assert json.loads(process.stdout.splitlines()[-1]) == expected


def test_tfidf_is_far_above_the_majority(task):
    assert tfidf_score(task) > 2 / len(task.label_names)


def test_tfidf_refuses_a_regression(task):
    regression = type(task)(**{**vars(task), "problem_type": "regression"})
    with pytest.raises(ValueError, match="single-label classifiers, got a task of type 'regression'"):
        tfidf_score(regression)


def test_tokenised_task_is_refused(task):
    tokenised = type(task)(**{**vars(task), "splits": task.splits.remove_columns("text")})
    with pytest.raises(ValueError, match="raw text is needed, .* no column 'text'"):
        train_tokenizer(tokenised)


def test_vocabulary_below_the_bytes_is_refused(task):
    with pytest.raises(ValueError, match="`vocab_size` must be >= 261.*got 200"):
        train_tokenizer(task, vocab_size=200)


@pytest.mark.parametrize("names", [[], ["alpha"]])
def test_library_without_two_packages_is_refused(tmp_path, names):
    for name in names:
        write_package(tmp_path, name)
    with pytest.raises(ValueError, match=f"needs two packages .* got {re.escape(str(names or 'none'))} in"):
        load_standard_library_task(tmp_path)


def test_packages_with_few_files_or_few_functions_are_left_out(tmp_path):
    for name in ("alpha", "beta"):
        write_package(tmp_path, name)
    write_package(tmp_path, "few_files", num_files=MIN_FILES - 1, functions_per_file=30)
    write_package(tmp_path, "few_functions", functions_per_file=3)
    # files without functions do not count
    padded = write_package(tmp_path, "few_filled_files", num_files=3, functions_per_file=100)
    for number in range(MIN_FILES):
        (padded / f"empty_{number}.py").write_text("X = 1\n")
    task = load_standard_library_task(tmp_path)
    assert task.label_names == ["alpha", "beta"]


def test_packages_with_most_files_are_chosen(tmp_path):
    for number in range(7):
        write_package(tmp_path, f"package_{number}", num_files=MIN_FILES + number)
    assert list(select_packages(collect_functions(tmp_path))) == [f"package_{number}" for number in (6, 5, 4, 3, 2, 1)]


def test_tests_and_repeated_openings_are_not_collected(tmp_path):
    package = write_package(tmp_path, "alpha")
    write_package(package, "tests")
    write_package(tmp_path, "test")
    (package / "repeated.py").write_text(
        function_source("alpha_0_0") + "\n" + function_source("alpha_0_1", num_words=90)
    )
    functions = collect_functions(tmp_path)
    assert list(functions) == ["alpha"]
    files = {function.file for function in functions["alpha"]}
    assert not any("tests" in file or "repeated" in file for file in files)


def test_methods_are_dedented_and_inner_functions_belong_to_the_outer_one(tmp_path):
    file = tmp_path / "module.py"
    file.write_text(
        "class Reader:\n"
        "    PAGE = '''\n\x0c\n'''\n"
        "    @property\n"
        "    def page(self):\n"
        "        def inner():\n"
        "            return '''\n"
        "left'''\n"
        "        return inner\n"
        "\n"
        "if True:\n"
        "    async def later(): pass\n"
    )
    assert list(read_functions(file)) == [
        "def page(self):\n    def inner():\n        return '''\nleft'''\n    return inner",
        "async def later(): pass",
    ]


@pytest.mark.parametrize(
    "content", [b"print 'python 2'\n", b"# coding: latin-9000\n", b"x = '\xff'\n", b"x = '\x00'\n"]
)
def test_unreadable_file_is_passed_over(tmp_path, content):
    file = tmp_path / "old.py"
    file.write_bytes(content)
    assert list(read_functions(file)) == []


def test_split_by_file_keeps_files_whole_and_proportions_near(tmp_path):
    write_package(tmp_path, "alpha", num_files=40)
    functions = collect_functions(tmp_path)["alpha"]
    parts = split_by_file(functions, seed="0")
    assert sum(len(part) for part in parts.values()) == len(functions)
    files = [file for part in parts.values() for file in {function.file for function in part}]
    assert len(files) == len(set(files)) == 40
    assert len(parts["train"]) / len(functions) == pytest.approx(217 / 372, abs=0.05)
