"""The commands of documents, records and helps: found by a shell, and read by the parser of the script they name.

Bash runs what is printed, with programs that only write down what they are asked, so that its quotes, functions,
variables and braces mean here what they mean to a reader.
"""

import contextlib
import importlib.util
import io
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import patch

from redundancy_hf.__main__ import VERBS

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("scripts", "experiments")
SHELLS, PROSE = ("bash", "sh"), ("", "text", "json")
# what stands for something else in a printed command
PLACEHOLDERS = {
    "FOLDER": "runs/mrpc/best",
    "FULL": "runs/mrpc/full",
    "NAME": "mrpc",
    "OBJECTIVE": "funnel",
    "RATE": "1e-4",
}
ELIDED = "--model_name_or_path FacebookAI/roberta-base --dataset_name mrpc --output_dir runs/elided"
PROGRAMS = ("python", "make", "hf", "dask", "torchrun", "redundancy-hf")
OTHERS = ("accelerate", "basename", "cmp", "grep")
# in one write, since the programs of a pipeline run at once
RECORDER = '#!/bin/sh\nfor a; do f="$f%s\\0"; done; printf "%s\\0$f\\n" "${0##*/}" "$@" >> "$RECORD"\n'
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
RENDERED = re.compile(r"<!-- results: .*?<!-- end -->", re.DOTALL)
SCRIPT = re.compile(r"(?:scripts|experiments)/(\w+)\.py")
VERB = re.compile(r"redundancy[-_]hf ([a-z][a-z-]*)")


@dataclass(frozen=True)
class Snippet:
    """A piece of a document that somebody would run.

    Args:
        kind: "shell" or "python".
        code: What to run.
        output: What the document shows of its answer.
    """

    kind: str
    code: str
    output: str = ""


def find_snippets(text: str) -> list[Snippet]:
    """List the blocks, console samples and commands within sentences of a document, in its order.

    Commands of rendered results are left out; the records hold them.

    Raises:
        ValueError: A script is named in a block whose language nobody here runs.
    """
    found, end, text = [], 0, RENDERED.sub("", text)
    for match in BLOCK.finditer(text):
        found += _find_in_prose(text[end : match.start()])
        language, code = match.groups()
        if language in SHELLS:
            found.append(Snippet("shell", code))
        elif language == "python":
            found.append(Snippet("python", code))
        elif re.search(r"^\$ ", code, re.MULTILINE):
            found += _read_console(code)
        elif language in PROSE and not find_jobs(re.sub("`[^`]+`", "", code)):
            found += _find_in_prose(code)
        else:
            raise ValueError(f"a block of {language or 'no language'} names a script; mark it as bash, sh or python.")
        end = match.end()
    return found + _find_in_prose(text[end:])


def _find_in_prose(text: str) -> list[Snippet]:
    """What stands in backticks and is more than a name."""
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", text)]
    script = r"(scripts|experiments)/"
    ours = rf"\S*python (-m|{script})|{script}\w+\.py |\S*redundancy-hf [a-z-]+ "
    starts = re.compile(rf"(\w+=\S+ )*({ours}|make [a-z]|hf [a-z]|torchrun |dask )")
    return [Snippet("shell", re.sub(f"^{script}", r"python \1/", span)) for span in spans if starts.match(span)]


def _read_console(code: str) -> list[Snippet]:
    """Split a console sample at its prompts; what follows a command is its output."""
    parts = re.split(r"^\$ ", code, flags=re.MULTILINE)[1:]
    return [Snippet("shell", *re.split(r"(?<!\\)\n", part, maxsplit=1)) for part in parts]


def find_examples(docstring: str) -> list[Snippet]:
    """List the commands of a script's help, which are indented."""
    lines = re.findall(r"^    \S*(?:python|torchrun|redundancy-hf) (?:.*\\\n)*.*$", docstring, re.MULTILINE)
    return [Snippet("shell", textwrap.dedent(line)) for line in lines]


def list_commands(shell_code: str, folder: Path) -> list[list[str]]:
    """Let bash say which commands it would run; each comes with its program, without that one's folder.

    Args:
        shell_code: What is printed.
        folder: An empty folder, in which the code runs.

    Raises:
        ValueError: Bash does not understand the code or meets a program that is not known here.
    """
    (folder / "runs").mkdir(parents=True, exist_ok=True)
    programs, record = folder / ".venv" / "bin", folder / "record"
    programs.mkdir(parents=True, exist_ok=True)
    for name in (*PROGRAMS, *OTHERS):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    for name in ("results", "recipes", *FOLDERS):
        if not (folder / name).exists():
            (folder / name).symlink_to(ROOT / name)
    record.write_text("")
    process = subprocess.run(
        ["/bin/bash", "-c", f"kill() {{ :; }}\nsleep() {{ wait; }}\n{shell_code}\nwait"],
        cwd=folder,
        env={"PATH": str(programs), "RECORD": str(record)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    if process.stderr:
        raise ValueError(f"bash does not understand {shell_code!r}: {process.stderr.strip()}")
    # a command in the background may come late
    return [line.split("\0") for line in record.read_text().split("\0\n")[:-1]]


def fill_in(arguments: list[str]) -> list[str]:
    """Replace the placeholders of a printed command."""
    words = re.compile(rf"\b({'|'.join(PLACEHOLDERS)})\b")
    filled = [words.sub(lambda match: PLACEHOLDERS[match[0]], argument) for argument in arguments]
    return [value for argument in filled for value in (ELIDED.split() if argument == "..." else [argument])]


def find_problem(command: list[str]) -> str:
    """Say what is wrong with a command: of a script what its parser says; empty if nothing is."""
    program, *arguments = command
    if program == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
        return "" if set(arguments) <= set(targets) else f"make has no target {' '.join(arguments)}"
    if program == "torchrun":
        script = next((n for n, one in enumerate(arguments) if one == "-m" or SCRIPT.fullmatch(one)), None)
        return "torchrun without a script" if script is None else find_problem(["python", *arguments[script:]])
    if program == "python" and arguments[:2] == ["-m", "redundancy_hf"]:
        program, arguments = "redundancy-hf", arguments[2:]
    if program == "redundancy-hf":
        verb = arguments[0] if arguments else "--help"
        return _find_problem_of_job(verb, arguments[1:]) if verb in VERBS else f"there is no verb {verb}"
    if program != "python":
        return ""
    if arguments[:1] == ["-m"]:
        return "" if importlib.util.find_spec(arguments[1]) else f"there is no module {arguments[1]}"
    name = SCRIPT.fullmatch(arguments[0]) if arguments else None
    if name is None or not (ROOT / name[0]).is_file():
        return f"there is no script {' '.join(arguments[:1])}"
    return _find_problem_of_job(name[1], arguments[1:])


def _find_problem_of_job(name: str, arguments: list[str]) -> str:
    try:
        parse(name, fill_in(arguments))
    except ValueError as error:
        return str(error)
    return ""


def find_jobs(text: str) -> set[str]:
    """Name the verbs and the files of scripts/ and experiments/ in a text; a file that runs a verb is that verb."""
    files = set(SCRIPT.findall(text))
    verbs = {find_verb(name) for name in files if (ROOT / "scripts" / f"{name}.py").is_file()}
    return {name for name in files if not (ROOT / "scripts" / f"{name}.py").is_file()} | verbs | {*VERB.findall(text)}


def find_verb(script: str) -> str:
    """Say which verb a file of scripts/ runs."""
    (verb,) = re.findall(r'run_verb\("([a-z-]+)"\)', (ROOT / "scripts" / f"{script}.py").read_text())
    return verb


class Parsed(BaseException):
    """Ends a script behind its parser."""


def parse(name: str, arguments: list[str]) -> dict[str, Any]:
    """Let a verb or an experiment read its arguments and do nothing else.

    Returns:
        All values.

    Raises:
        ValueError: It refuses them.
    """
    # needs torch, which the programs of the workbench do without
    from redundancy_hf import command

    module, words, values = load_job(name), io.StringIO(), {}
    is_script = name not in VERBS and find_script(name).parent.name == "scripts"
    verb = find_verb(name) if is_script else name
    program = f"redundancy-hf {verb}" if verb in VERBS else f"experiments/{name}.py"

    def stop(*function, **keywords):
        for key, value in command.parse_call(*function, **keywords).items():
            values.update(vars(value) if is_dataclass(value) else {key: value})
        raise Parsed

    with (
        patch.object(module if hasattr(module, "parse_call") else sys.modules["frame"], "parse_call", stop),
        patch.object(sys, "argv", [program, *arguments]),
        contextlib.redirect_stderr(words),
        contextlib.chdir(ROOT),
    ):
        try:
            module.main()
        except Parsed:
            return values
        except SystemExit as error:
            raise ValueError(words.getvalue().strip() or str(error)) from error
    raise ValueError(f"{name} did not read its arguments")


def find_script(name: str) -> Path:
    """Give the path of a user's job or of an experiment."""
    (path,) = [path for folder in FOLDERS for path in (ROOT / folder).glob(f"{name}.py")]
    return path


@cache
def load_job(name: str):
    """Import the module of a verb, also by its file in scripts/, or an experiment beside what lies in its folder."""
    if name in VERBS:
        return importlib.import_module(VERBS[name][0])
    path = find_script(name)
    if path.parent.name == "scripts":
        return load_job(find_verb(name))
    specification = importlib.util.spec_from_file_location(f"script_{name}", path)
    module = importlib.util.module_from_spec(specification)
    # a dataclass looks its module up
    sys.modules[specification.name] = module
    with patch.object(sys, "path", [str(path.parent), *sys.path]):
        specification.loader.exec_module(module)
    return module
