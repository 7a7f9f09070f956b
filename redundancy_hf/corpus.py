"""The embedded demo task: tell from the text of a function which package of the standard library it comes from.

Every Python carries this text, so the task needs no download. It is lexical: names and idioms give a package away, and
a bag of words (`tfidf_score`) does well or even better than a small network. It shows that the machinery works, not
what a shortened sequence is worth; and its texts depend on the Python that runs it, so compare scores within one only.

Deterministic for one Python: paths are sorted and every draw is seeded.
"""

import ast
import itertools
import json
import random
import re
import sysconfig
import tokenize
import warnings
from collections.abc import Iterator
from operator import attrgetter
from pathlib import Path
from typing import NamedTuple

from datasets import ClassLabel, Dataset, DatasetDict, Features, Value
from tokenizers import ByteLevelBPETokenizer
from transformers import RobertaTokenizer

from .task import Task

NUM_PACKAGES = 6
MIN_FILES = 15
# below this a package holds tables or snippets; from MANY_FUNCTIONS on it does not shrink the others much
MIN_FUNCTIONS = 200
MANY_FUNCTIONS = 300
# a token of the corpus is a word or a punctuation mark, which costs nothing to find
WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")
MIN_TOKENS = 40
# most examples per class; the smallest class decides
SPLIT_SIZES = {"train": 217, "validation": 79, "test": 76}
# tests speak of the code they test, in the words of every package
SKIPPED_FOLDERS = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})


class Function(NamedTuple):
    """One example: the dedented source of a function and the file it comes from, relative to the library."""

    text: str
    file: str


def load_standard_library_task(library: Path | None = None, seed: int = 42) -> Task:
    """Build the demo task from the standard library of the running Python; takes a few seconds.

    The classes are up to six packages with the most source files, found at run time because distributions leave
    packages out. Examples are functions of at least 40 words and punctuation marks. No file lies in two splits, no two
    examples open with the same 40 of these, and in every split all classes are of equal size. The task has raw text in
    the column "text", and "file" beside it.

    Raises:
        ValueError: Fewer than two packages have enough source files and functions.
    """
    library = Path(sysconfig.get_path("stdlib")) if library is None else Path(library)
    packages = select_packages(collect_functions(library))
    if len(packages) < 2:
        raise ValueError(
            f"the demo task needs two packages with >= {MIN_FILES} source files and >= {MIN_FUNCTIONS} functions, got "
            f"{sorted(packages) or 'none'} in {library}; use a Python that ships the source of its library or name a "
            "dataset."
        )
    parts = {name: split_by_file(functions, seed=f"{seed} {name}") for name, functions in packages.items()}
    label_names = sorted(packages)
    features = Features({"text": Value("string"), "file": Value("string"), "labels": ClassLabel(names=label_names)})
    splits = DatasetDict()
    for split, largest in SPLIT_SIZES.items():
        size = min(largest, *(len(part[split]) for part in parts.values()))
        generator = random.Random(f"{seed} {split}")
        rows = [
            {**function._asdict(), "labels": label}
            for label, name in enumerate(label_names)
            for function in generator.sample(parts[name][split], size)
        ]
        generator.shuffle(rows)
        splits[split] = Dataset.from_list(rows, features=features)
    return Task(
        name="standard_library",
        splits=splits,
        text_columns=("text",),
        problem_type="single_label_classification",
        label_names=label_names,
        metric_name="accuracy",
    )


def collect_functions(library: Path) -> dict[str, list[Function]]:
    """Read the functions of every package with enough files, in the order of sorted paths.

    Those that open like an earlier one are left out.
    """
    packages, seen = {}, set()
    for initial in sorted(library.glob("*/__init__.py")):
        package = initial.parent
        if package.name in SKIPPED_FOLDERS:
            continue
        files = [
            file
            for file in sorted(package.rglob("*.py"))
            if SKIPPED_FOLDERS.isdisjoint(file.relative_to(library).parts)
        ]
        if len(files) < MIN_FILES:
            continue
        functions = []
        for file in files:
            for text in read_functions(file):
                words = WORD_OR_MARK.findall(text)
                # a model that cuts its input sees little more than these
                opening = tuple(words[:MIN_TOKENS])
                if len(words) >= MIN_TOKENS and opening not in seen:
                    seen.add(opening)
                    functions.append(Function(text, file.relative_to(library).as_posix()))
        packages[package.name] = functions
    return packages


def read_functions(file: Path) -> Iterator[str]:
    """Yield the dedented source of every outermost function of a file; nothing where it is not Python 3."""
    try:
        with tokenize.open(file) as stream, warnings.catch_warnings():
            # old escapes in other people's strings are not ours to report
            warnings.simplefilter("ignore")
            source = stream.read()
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError):
        return
    # ast counts lines by "\n" alone, str.splitlines also by form feeds; get_source_segment takes minutes
    lines = source.split("\n")
    for node in _find_outermost(tree):
        # not textwrap.dedent: a string inside may start further left than the function
        indent = lines[node.lineno - 1][: node.col_offset]
        yield "\n".join(line.removeprefix(indent) for line in lines[node.lineno - 1 : node.end_lineno])


def _find_outermost(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Find functions and methods, but not those inside another one: no text is then part of a second example."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
            yield child
        else:
            yield from _find_outermost(child)


def select_packages(packages: dict[str, list[Function]]) -> dict[str, list[Function]]:
    """Choose at most six packages with the most files that hold a function, those with many functions first."""
    num_files = {name: len({function.file for function in functions}) for name, functions in packages.items()}
    ranked = sorted(
        (len(functions) < MANY_FUNCTIONS, -num_files[name], name)
        for name, functions in packages.items()
        if num_files[name] >= MIN_FILES and len(functions) >= MIN_FUNCTIONS
    )
    return {name: packages[name] for *_, name in ranked[:NUM_PACKAGES]}


def split_by_file(functions: list[Function], seed: str) -> dict[str, list[Function]]:
    """Divide the functions of one package so that all of a file are in one split.

    Proportions are as near to `SPLIT_SIZES` as whole files allow; the seed orders files of equal size.
    """
    by_file = sorted(functions, key=attrgetter("file"))
    files = {name: list(group) for name, group in itertools.groupby(by_file, attrgetter("file"))}
    names = sorted(files)
    random.Random(seed).shuffle(names)
    # the largest first, each to the split that lacks most
    names.sort(key=lambda name: -len(files[name]))
    lacking = {split: len(functions) * size / sum(SPLIT_SIZES.values()) for split, size in SPLIT_SIZES.items()}
    parts: dict[str, list[Function]] = {split: [] for split in SPLIT_SIZES}
    for name in names:
        split = max(lacking, key=lambda split: lacking[split])
        parts[split].extend(files[name])
        lacking[split] -= len(files[name])
    return parts


def joined_texts(task: Task, split: str) -> list[str]:
    """Return the raw texts of a split, a pair of columns joined by a space."""
    rows = task.splits[split]
    missing = [column for column in task.text_columns if column not in rows.column_names]
    if missing:
        raise ValueError(
            f"raw text is needed, but {split!r} has no column {missing[0]!r}; call this before `tokenize`."
        )
    return [" ".join(texts) for texts in zip(*(rows[column] for column in task.text_columns), strict=True)]


def train_tokenizer(task: Task, vocab_size: int = 2000, max_length: int = 128) -> RobertaTokenizer:
    """Train a byte-level BPE with RoBERTa's special tokens and ids on the train split; it pads on the right.

    Raises:
        ValueError: `vocab_size` does not hold the 256 bytes and 5 special tokens, or the task is tokenised already.
    """
    # RoBERTa's order, which its config counts on: padding is 1
    special_tokens = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    smallest = 256 + len(special_tokens)
    if vocab_size < smallest:
        raise ValueError(f"`vocab_size` must be >= {smallest}, for bytes and special tokens, got {vocab_size}.")
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(
        joined_texts(task, "train"), vocab_size, min_frequency=0, show_progress=False, special_tokens=special_tokens
    )
    trained = json.loads(tokenizer.to_str())["model"]
    return RobertaTokenizer(
        vocab=trained["vocab"],
        # annotated as strings, but the backend takes pairs
        merges=[tuple(pair) for pair in trained["merges"]],  # type: ignore[misc]
        model_max_length=max_length,
        padding_side="right",
    )


def tfidf_score(task: Task) -> float:
    """Score a logistic regression on TF-IDF of words, the floor that any network should be seen against.

    It is fitted on the train split, and reads whole texts, so it may see more than a model that cuts them.

    Raises:
        ValueError: The task is not single-label, or tokenised already.
    """
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    if task.problem_type != "single_label_classification":
        raise ValueError(f"`tfidf_score` compares single-label classifiers, got a task of type {task.problem_type!r}.")
    classifier = make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=10.0, max_iter=1000))
    classifier.fit(joined_texts(task, "train"), task.splits["train"]["labels"])
    return float(classifier.score(joined_texts(task, "validation"), task.splits["validation"]["labels"]))
