"""A command line is a function's signature, its help the docstring; old names are refused with the new one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from redundancy_hf.command import parse_call


@dataclass
class Data:
    dataset_name: str = "embedded"


def measure(
    folder: str,
    data: Data,
    runtime: Literal["torch", "onnx"] = "torch",
    strategy: Annotated[str, {"choices": ["gp", "tpe"]}] = "gp",
    lengths: Sequence[int] = (16, 32),
    rounds: int = 20,
    is_quiet: bool = False,
    time_budget: float | None = None,
    order: Literal["first", "last"] | None = None,
    results_file: str | None = None,
):
    """Time a model.

    Args:
        folder: Of the model;
            a saved one.
        data: Texts.
        runtime: Where it runs: here.
        strategy: How.
        lengths: In tokens.
        rounds: Of timing.
        is_quiet: Say nothing.
        time_budget: In minutes.
        order: Of layers.
        results_file: For the record.

    Returns:
        Nothing.
    """


def parse(*arguments):
    return parse_call(measure, "Time.", [*map(str, arguments)], positional="folder")


def test_defaults_are_those_of_the_signature():
    expected = {"folder": "runs/best", "runtime": "torch", "strategy": "gp", "lengths": [16, 32], "rounds": 20}
    expected |= {"is_quiet": False, "time_budget": None, "order": None, "results_file": None, "data": Data()}
    assert parse("runs/best") == expected


def test_flags_are_read_by_the_types_of_the_signature():
    flags = ("--lengths", 8, "--is_quiet", "--time_budget", 2, "--order", "last", "--dataset_name", "mrpc")
    found = parse("runs/best", *flags, "--runtime", "onnx", "--strategy", "tpe")
    assert (found["lengths"], found["is_quiet"], found["time_budget"], found["order"]) == ([8], True, 2.0, "last")
    assert (found["runtime"], found["strategy"], found["data"]) == ("onnx", "tpe", Data("mrpc"))


@pytest.mark.parametrize("flags", [("--runtime", "tvm"), ("--strategy", "grid"), ("--order", "middle"), ()])
def test_what_the_signature_excludes_is_refused(flags, capsys):
    with pytest.raises(SystemExit):
        parse_call(measure, "Time.", [*(["--folder", "a"] if flags else []), *flags])
    assert "invalid choice" in (words := capsys.readouterr().err) or "--folder" in words


def test_help_is_the_docstring(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    words = " ".join(capsys.readouterr().out.split())
    assert "Of the model; a saved one." in words and "Where it runs: here. (default: torch)" in words
    assert "Nothing." not in words


@pytest.mark.parametrize(
    ("old", "new"), [("latency_rounds", "rounds"), ("output", "results_file"), ("latency_rounds=3", "rounds")]
)
def test_old_name_of_a_flag_is_refused_with_the_new_one(old, new, capsys):
    with pytest.raises(SystemExit):
        parse("runs/best", f"--{old}", "3")
    assert f"--{old.partition('=')[0]} is called --{new} now" in capsys.readouterr().err


def test_old_name_in_a_recipe_is_refused_with_the_new_one(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"folder": "a", "latency_rounds": 3}))
    with pytest.raises(ValueError, match="latency_rounds is called rounds now"):
        parse(tmp_path / "recipe.json")


def test_recipe_sets_defaults(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"folder": "a", "rounds": 3, "dataset_name": "rte"}))
    found = parse(tmp_path / "recipe.json", "--rounds", 4)
    assert (found["folder"], found["rounds"], found["data"]) == ("a", 4, Data("rte"))
