"""What every command line of the project shares: recipes, and errors in one sentence."""

import argparse
import dataclasses
import difflib
import errno
import io
import json
import logging
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser

# the logger of what a command says on standard output
SCREEN = "screen"
# a disk or a quota that is full, as the system and as the libraries that write models say it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
FULL_WORDS = ("Error while serializing", "PytorchStreamWriter", "inline_container")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description and show the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_arguments(
    dataclass_types: Sequence[Any],
    description: str,
    arguments: list[str] | None = None,
    positional: str | None = None,
) -> tuple:
    """Parse flags into dataclasses; a first argument `recipe.json` sets defaults that flags override.

    Args:
        dataclass_types: As for [`HfArgumentParser`].
        description: Shown by `--help`.
        arguments: The command line; `sys.argv` by default.
        positional: The argument whose values may also stand first, without its flag.

    Returns:
        One instance per dataclass.

    Raises:
        ValueError: The recipe cannot be read or names an unknown argument, or `results_file` is a folder.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    parser = HfArgumentParser(dataclass_types, description=description, formatter_class=HelpFormatter)
    # without the usage of a hundred flags
    parser.usage = f"%(prog)s [recipe.json] {'[' + positional.upper() + '] ' if positional else ''}[--flag value ...]"
    parser.error = lambda message: parser.exit(2, f"error: {message}; --help explains the flags.\n")  # type: ignore
    if arguments and arguments[0].endswith(".json"):
        path, *arguments = arguments
        try:
            recipe = json.loads(Path(path).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"the recipe {path} cannot be read: {error}.") from error
        known = {field.name for kind in dataclass_types for field in dataclasses.fields(kind) if field.init}
        unknown = sorted(set(recipe) - known)
        if unknown:
            raise ValueError(f"the recipe {path} has unknown arguments {unknown}; --help lists the known ones.")
        parser.set_defaults(**recipe)
        for action in parser._actions:
            action.required = action.required and action.dest not in recipe
    if positional is not None and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{positional}", *arguments]
    *parsed, unused = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unused:
        flags = [option for action in parser._actions for option in action.option_strings]
        similar = difflib.get_close_matches(unused[0].partition("=")[0], flags, n=1)
        parser.error(f"unknown {' '.join(unused)}" + (f"; did you mean {similar[0]}?" if similar else ""))
    for values in parsed:
        record = getattr(values, "results_file", None)
        if record is not None and Path(record).is_dir():  # which would only show after all work
            raise ValueError(f"--results_file is a file to write, and {record} is a folder.")
    return tuple(parsed)


def describe_command() -> str:
    """Give the running command for a record; of a path outside the project only its name, not where it lies here."""

    def shorten(argument: str) -> str:
        return f"path/to/{Path(argument).name}" if argument.startswith(("/", "..", "~")) else argument

    script = "/".join(Path(sys.argv[0]).parts[-2:])
    return shlex.join(["python", script, *(shorten(argument) for argument in sys.argv[1:])])


def write_record(path: str | None, **content: Any):
    """Write what a script found, after its command, as JSON; nothing where no path is given."""
    if path is None:
        return
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text(json.dumps({"command": describe_command(), **content}, indent=2) + "\n")


def check_settings(path: Path, settings: dict, is_writer: bool):
    """Refuse to go on with what other settings have begun; where they left nothing, the running command takes over.

    Args:
        path: Record of the settings, in the folder that is theirs; written if there is none.
        settings: Those of the running command.
        is_writer: Whether this process, of several, writes.

    Raises:
        ValueError: The record names other settings, and there are files beside it.
    """
    # by the stem, since another process may be writing
    has_begun = any(file.is_file() for file in path.parent.rglob("*") if file.stem != path.stem)
    if has_begun and path.exists():
        found = json.loads(path.read_text())
        changed = [
            describe_change(name, found.get(name), value)
            for name, value in settings.items()
            if found.get(name) != value
        ]
        if changed:
            raise ValueError(
                f"{path.parent} holds a training with another {' and '.join(changed)}; use another --output_dir, or "
                "the old settings to resume."
            )
    elif is_writer:
        path.parent.mkdir(parents=True, exist_ok=True)
        # at once, since the other processes may be reading
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(settings, indent=2) + "\n")
        unfinished.replace(path)


def describe_change(name: str, old: Any, new: Any) -> str:
    """Name a setting that changed, with what of it if it has parts."""
    if not isinstance(old, dict) or not isinstance(new, dict):
        return name
    parts = [f"{key} {old.get(key)}, now {new.get(key)}" for key in old | new if old.get(key) != new.get(key)]
    return f"{name} ({'; '.join(parts)})"


def leave_process_group():
    """End together, of several processes: one that is torn down while others still talk to it may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


class Screen(logging.StreamHandler):
    """Writes on standard output what a package logs as `SCREEN`, which a user must see; the rest is on the error's."""

    def __init__(self):
        logging.Handler.__init__(self)

    @property
    def stream(self):
        return sys.stdout


def open_screen():
    """Show what is logged as `SCREEN` on standard output, once, of several processes by the first one."""
    for handler in logging.getLogger().handlers:
        # not those of a test that reads the log
        if type(handler) is logging.StreamHandler:
            handler.addFilter(lambda record: record.name != SCREEN)
    is_first = os.environ.get("RANK", "0") == "0"
    screen = logging.getLogger(SCREEN)
    screen.setLevel(logging.INFO)
    screen.handlers = [Screen()] if is_first else []


FULL_SENTENCE = "a file could not be written ({}); free some space and run the same command again, which goes on."


def is_disk_full(error: Exception) -> bool:
    """Say whether an error, of whatever library, means that a file could not be written to its end."""
    if isinstance(error, OSError):
        return error.errno in FULL
    return isinstance(error, (SafetensorError, RuntimeError)) and any(word in str(error) for word in FULL_WORDS)


def run_command(main: Callable[[], int | None]):
    """Run a script's main function; what a user can mend is said in one sentence, with exit code 1.

    Args:
        main: Returns an exit code, or `None` for success.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    open_screen()
    if isinstance(sys.stdout, io.TextIOWrapper):
        # a line that is written to a file must not wait for the others
        sys.stdout.reconfigure(line_buffering=True)
    # libraries that report every request or file
    for name in ("httpx", "httpx2", "datasets", "fsspec", "filelock", "absl", "matplotlib"):
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        code = main()
        leave_process_group()
        sys.exit(code)
    except KeyboardInterrupt as stop:
        # a stage says what becomes of it
        sys.stderr.write(": ".join(["stopped by hand", *map(str, stop.args)]) + "\n")
        sys.exit(130)
    except StrictDataclassError as error:
        # of a configuration; the cause says it without the name of the validator
        sys.exit(f"error: {' '.join(str(error.__cause__ or error).split())}")
    except (ValueError, OSError, FloatingPointError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_disk_full(error):
            raise
        # some libraries explain over several lines
        text = " ".join(str(error).split())
        sys.exit(f"error: {FULL_SENTENCE.format(text) if is_disk_full(error) else text}")
