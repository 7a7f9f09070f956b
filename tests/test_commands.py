"""Every printed or stored command is one that its script takes today."""

import ast
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from redundancy_hf.command import describe_run, parse_call, write_record
from tests.documents import ROOT, find_examples, find_jobs, find_problem, find_snippets, list_commands, parse

DOCUMENTS = ("README.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
FILES = sorted([*ROOT.glob("*_hf/commands/*.py"), *ROOT.glob("experiments/*.py")])


def find_problems(snippets, folder: Path) -> list[str]:
    """Name every command that its program would refuse, and every script that is named and never run."""
    found = []
    for snippet in snippets:
        if snippet.kind != "shell":
            continue
        try:
            commands = list_commands(snippet.code, folder)
        except ValueError as error:
            found.append(str(error))
            continue
        problems = {" ".join(command): find_problem(command) for command in commands}
        found += [f"{command}: {problem}" for command, problem in problems.items() if problem]
        ran = {name for command in commands for name in find_jobs(" ".join(command))}
        found += [f"{name} is named and not run" for name in sorted(find_jobs(snippet.code) - ran)]
    return found


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_of_documents_are_understood(document, tmp_path):
    assert find_problems(find_snippets((ROOT / document).read_text()), tmp_path) == []


def test_wrong_commands_are_caught(tmp_path):
    text = (
        "`scripts/publish.py` and `redundancy-hf publish FOLDER --repo_id a/b\n--licence mit` and `make nothing`\n"
        "```bash\nrun() { .venv/bin/redundancy-hf evaluate $1 --use_cpu; }  # a note\n"
        "for name in a b; do run $name; done | grep x\nfalse && redundancy-hf benchmark a\n"
        "python -m redundancy_hf evaluate FOLDER --dataset_name NAME --revision \\\n    v1\n```\n"
        "```\n$ python scripts/missing.py\nsome output\n$ redundancy-hf missing\n$ unheard-of\n```\n"
        "```json\n{}\n```\nnot a command: scripts/publish.py\n"
    )
    found = find_problems(find_snippets(text), tmp_path)
    expected = [
        *("unknown --licence mit; did you mean --license?", "make has no target nothing"),
        *("a --use_cpu: error: unknown --use_cpu", "b --use_cpu: error: unknown --use_cpu"),
        *("benchmark is named and not run", "there is no script scripts/missing.py", "there is no verb missing"),
        "unheard-of: command not found",
    ]
    assert len(found) == len(expected) and all(map(str.__contains__, found, expected)), found
    with pytest.raises(ValueError, match="a block of zsh names a script"):
        find_snippets("```zsh\npython scripts/publish.py a\n```\n")


def test_commands_of_the_makefile_are_understood(tmp_path):
    # without the installation; below another make, `make test` for one, it would name its directory
    command = ["make", "-n", "--no-print-directory", "-o", ".venv/.installed"]
    command += ["demo", "demo-vision", "demo-avae", "demo-pretrain", "results"]
    printed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert find_problems(find_snippets(f"```bash\n{printed}```\n"), tmp_path) == []
    assert len(re.findall(r"/redundancy-hf [a-z]", printed)) >= 11


def test_examples_of_helps_are_understood(tmp_path):
    helps = [ast.get_docstring(ast.parse(path.read_text())) or "" for path in FILES]
    snippets = [snippet for text in helps for snippet in find_examples(text)]
    assert find_problems(snippets, tmp_path) == []
    assert len(snippets) >= 40


def list_runs(record, program="") -> list[dict]:
    """Give what a record holds of the runs behind it: programs and arguments."""
    if isinstance(record, dict) and "closed" in record:
        return []
    if isinstance(record, dict):
        program = record.get("program", program)
        joined = [{"program": program, "arguments": arguments} for arguments in record.get("joined", [])]
        own = [{name: record[name] for name in ("program", "arguments")}] if "program" in record else []
        return own + joined + [run for value in record.values() for run in list_runs(value, program)]
    return [run for value in record for run in list_runs(value, program)] if isinstance(record, list) else []


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("*.json")), ids=lambda path: path.stem)
def test_record_is_a_recipe(path, tmp_path):
    """A record repeats its run: its program takes what the record holds."""
    record, recipe = json.loads(path.read_text()), tmp_path / "recipe.json"
    runs = list_runs(record)
    for run in runs:
        recipe.write_text(json.dumps(run))
        assert find_problem([*run["program"].split(), str(recipe)]) == ""
    # what somebody else has published, and experiments of which only the tables are left
    closed = {"architectures_published", "int8_batches", "latency_under_load", "roofline"}
    closed |= {"race_sst2", "race_imdb", "race_analytic12", "policy_imdb", "policy_imdb_3_buckets", "policy_sst2"}
    assert runs or path.stem in closed


def test_record_repeats_its_run(tmp_path, monkeypatch):
    def run(factors: Sequence[int] = (1, 2), name: str | None = None, wide: bool = True, results_file: str = ""):
        """Measure.

        Args:
            factors: Some.
            name: Another one.
            wide: Or not.
            results_file: Of the record.
        """

    record = tmp_path / "record.json"
    flags = ["--factors", "4", "--name", str(tmp_path / "model"), "--wide", "False", "--results_file", str(record)]
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "experiments" / "widths.py"), *flags])
    asked = parse_call(run, "")
    write_record(asked["results_file"], rows=[])
    content = json.loads(record.read_text())
    # neither what has its default nor where things lie here
    arguments = {"factors": [4], "name": "path/to/model", "wide": False}
    assert content == {"program": "python experiments/widths.py", "arguments": arguments, "rows": []}
    assert parse_call(run, "", [str(record)]) == {**arguments, "results_file": "runs/record.json"}
    again = parse_call(run, "", [str(record), "--factors", "1", "2", "--results_file", "x.json"])
    assert again == {**arguments, "factors": [1, 2], "results_file": "x.json"}
    assert "factors" not in describe_run()["arguments"]


def test_record_of_another_program_or_flag_is_caught(tmp_path):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(json.dumps({"program": "redundancy-hf search", "arguments": {"trials": 3}}))
    assert "unknown arguments ['trials']" in find_problem(["redundancy-hf", "search", str(recipe)])
    assert "is a record of `redundancy-hf search`" in find_problem(["redundancy-hf", "evaluate", str(recipe)])


def test_commands_of_searches_do_what_the_records_say():
    records = {path.name: json.loads(path.read_text()) for path in (ROOT / "results").glob("*.json")}
    searches = {name: record for name, record in records.items() if "strategy" in record.get("summary", {})}
    assert "mrpc_search.json" in searches and len(searches) >= 15
    for name, record in searches.items():
        values = parse("search", [f"results/{name}"])
        told = {key: record["summary"][key] for key in ("strategy", "required_performance")}
        assert {key: values[key] for key in told} == told, name
        assert values["results_file"] == f"runs/{name}", "a record that is repeated stays as it is"


TRAINERS = ("search_classformer", "pretrain_classformer", "train_avae", "train_image_classifier")


@pytest.mark.parametrize("recipe", sorted(path.name for path in (ROOT / "recipes").glob("*.json")))
def test_recipe_suits_a_script(recipe):
    command = [f"recipes/{recipe}", "--output_dir", "runs/x"]
    assert "" in [find_problem(["python", f"scripts/{name}.py", *command]) for name in TRAINERS]
