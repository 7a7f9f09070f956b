"""A command line is a function's signature, its help the docstring; old names are refused with the new one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import pytest

from redundancy_hf.command import describe_command, describe_run, parse_call, run_command


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
    ("old", "new"),
    [
        ("latency_rounds", "rounds"),
        ("output", "results_file"),
        ("latency_rounds=3", "rounds"),
        ("latency-rounds", "rounds"),
    ],
)
def test_old_name_of_a_flag_is_refused_with_the_new_one(old, new, capsys):
    with pytest.raises(SystemExit):
        # a missing folder is the second fault
        parse_call(measure, "Time.", [f"--{old}", "3"])
    assert f"--{old.partition('=')[0]} is called --{new} now" in capsys.readouterr().err


def test_old_name_in_a_recipe_is_refused_with_the_new_one(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"folder": "a", "latency_rounds": 3}))
    with pytest.raises(ValueError, match="latency_rounds is called rounds now"):
        parse(tmp_path / "recipe.json")


def test_recipe_sets_defaults(tmp_path):
    (tmp_path / "recipe.json").write_text(json.dumps({"folder": "a", "rounds": 3, "dataset_name": "rte"}))
    found = parse(tmp_path / "recipe.json", "--rounds", 4)
    assert (found["folder"], found["rounds"], found["data"]) == ("a", 4, Data("rte"))


def test_record_without_arguments_is_refused(tmp_path):
    (tmp_path / "record.json").write_text(json.dumps({"program": "redundancy-hf evaluate"}))
    with pytest.raises(ValueError, match="is a record without `arguments`"):
        parse(tmp_path / "record.json")


def export(folder: str, output_dir: str | None = None, output_size: int = 1):
    """Export.

    Args:
        folder: Of the model.
        output_dir: Of the graph.
        output_size: In bytes.
    """


def test_old_name_is_no_abbreviation(capsys):
    with pytest.raises(SystemExit):
        parse_call(export, "Export.", ["--folder", "a", "--output", "b"])
    assert "--output is called --output_dir now" in capsys.readouterr().err


def test_only_a_command_is_a_recipe(monkeypatch):
    """What a call from Python writes does not repeat the command before it."""
    found = []

    def main():
        parse("runs/best", "--rounds", 3)
        found.append(describe_run())

    monkeypatch.setattr("sys.argv", ["redundancy-hf measure"])
    with pytest.raises(SystemExit):
        run_command(main)
    assert found == [{"program": "redundancy-hf measure", "arguments": {"folder": "runs/best", "rounds": 3}}]
    assert describe_run() == {} and describe_command() == "a call from Python"
