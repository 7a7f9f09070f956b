"""What every command line of the project shares: recipes, and errors in one sentence."""

import argparse
import dataclasses
import difflib
import errno
import inspect
import io
import itertools
import json
import logging
import math
import os
import re
import shlex
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Union, get_args, get_origin

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import HfArgumentParser, TrainingArguments
from transformers.utils import logging as transformers_logging
from transformers.utils.chat_template_utils import parse_google_format_docstring

# by an old name of a flag, what it is called now; of several, the one that the command has
RENAMED = {
    "latency_rounds": ("rounds",),
    "latency_threads": ("threads",),
    "num_threads": ("threads",),
    "num_seeds": ("seeds",),
    "num_texts": ("num_inputs",),
    "study": ("question", "family"),
    "peers": ("architectures",),
    "required": ("required_performance",),
    "peer_config": ("architecture_config",),
    "output": ("output_dir", "latency_table", "results_file"),
    "plot": ("figure",),
}
# the logger of what a command says on standard output
SCREEN = "screen"
# of the running command; packages name arguments in backticks, as a caller in Python knows them
KNOWN_FLAGS: set[str] = set()
# program and arguments, beside defaults, of the running command; empty in a call from Python, which no file repeats
RUN: dict[str, Any] = {}
# a disk or a quota that is full, as the system and as the libraries that write models say it
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# entry of a record of settings that says what is behind its fingerprints, and what those are of
FLAGS = "flags"
FINGERPRINTS = {
    "checkpoint": "--model_name_or_path",
    "model": "--model_name_or_path",
    "dataset": "--dataset_name",
    "tasks": "--dataset_names",
}
# what settings are called that no flag of that name gives
NOT_FLAGS = {
    "world_size": "the number of processes",
    "is_best_by_score": "choosing the best epoch by score (--metric_for_best_model)",
    "mean_tokens": "the mean length of the timed texts in tokens (--target_lengths)",
    "max_tokens": "the longest input in tokens (--max_length)",
    "num_layers": "the checkpoint's number of layers",
    "first_token_gamma": "the checkpoint's number of positions",
    "text": "the text or its blocks (--dataset_name, --dataset_config_name, --streaming, --block_size, ...)",
    "objective": "--objectives, --mlm_probability, --whole_word_mask or --from_scratch",
    "schedule": "--gamma and --eta",
}
# follow from other settings, mostly
EFFECTS = ("mean_tokens", "max_tokens")
# of a record, in characters
LONGEST_ROW = 2000
FULL_WORDS = ("Error while serializing", "PytorchStreamWriter", "inline_container")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Keep the lines of the description and show the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default is None else super()._get_help_string(action)


def parse_call(
    function: Callable,
    description: str,
    arguments: list[str] | None = None,
    positional: str | None = None,
) -> dict[str, Any]:
    """Parse flags into the arguments of a function: its signature is the command line, its docstring the help.

    A first argument `recipe.json`, or a record, sets defaults that flags override.

    Args:
        function: Each parameter is a flag; one that is annotated with a dataclass brings the flags of its fields,
            which have the defaults of the parameter's, if it has one.
            `Literal`, or `Annotated[str, {"choices": [...]}]`, gives choices.
        description: Shown by `--help`.
        arguments: The command line; `sys.argv` by default.
        positional: The argument whose values may also stand first, without its flag.

    Raises:
        ValueError: The recipe cannot be read or names an unknown argument; or `results_file` is a folder, `output_dir`
            a file, or a number of a training out of range.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    kinds, defaults = _list_kinds(function)
    parser = HfArgumentParser(
        list(kinds.values()), description=description, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.set_defaults(**defaults)
    KNOWN_FLAGS.clear()
    KNOWN_FLAGS.update(option.removeprefix("--") for action in parser._actions for option in action.option_strings)
    # without the usage of a hundred flags
    parser.usage = f"%(prog)s [recipe.json] {'[' + positional.upper() + '] ' if positional else ''}[--flag value ...]"
    parser.error = lambda message: parser.exit(2, f"error: {message}; --help explains the flags.\n")  # type: ignore
    usual = {action.dest: _read_default(parser, action) for action in reversed(parser._actions)}
    if arguments and arguments[0].endswith(".json"):
        path, *arguments = arguments
        fields = itertools.chain.from_iterable(map(dataclasses.fields, kinds.values()))
        _set_recipe(parser, path, {field.name for field in fields if field.init})
    if positional is not None and arguments and not arguments[0].startswith("-"):
        arguments = [f"--{positional}", *arguments]
    _refuse_renamed(parser, arguments)
    *parsed, unused = parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True)
    if unused:
        similar = difflib.get_close_matches(unused[0].partition("=")[0], [f"--{name}" for name in KNOWN_FLAGS], n=1)
        parser.error(f"unknown {' '.join(unused)}" + (f"; did you mean {similar[0]}?" if similar else ""))
    given = vars(parser.parse_known_args(arguments)[0])
    # where a record is written does not say what is in it
    asked = (key for key, value in given.items() if value != usual[key] and key != "results_file")
    RUN.update(program=name_program(), arguments={key: _shorten(given[key]) for key in asked})
    for values in parsed:
        _check_values(values)
    own, *groups = parsed
    return {**vars(own), **dict(zip(list(kinds)[1:], groups, strict=True))}


def _list_kinds(function: Callable) -> tuple[dict[str, Any], dict[str, Any]]:
    """Give the dataclasses whose fields are the flags of a function, its own first, and other defaults of theirs."""
    _, helps, _ = parse_google_format_docstring(inspect.cleandoc(function.__doc__ or ""))
    own, groups, defaults = [], dict[str, Any](), dict[str, Any]()
    for name, parameter in inspect.signature(function, eval_str=True).parameters.items():
        if dataclasses.is_dataclass(parameter.annotation):
            groups[name] = parameter.annotation
            defaults |= {} if parameter.default is parameter.empty else vars(parameter.default)
        else:
            own.append(_describe_flag(parameter, helps[name] if helps else ""))
    # a hundred flags of a training stand behind the command's own
    groups = dict(sorted(groups.items(), key=lambda group: issubclass(group[1], TrainingArguments)))
    return {"": dataclasses.make_dataclass(function.__name__, own, kw_only=True), **groups}, defaults


def _describe_flag(parameter: inspect.Parameter, text: str) -> tuple[str, Any, Any]:
    """Give name, type and field of a flag, as a dataclass for `HfArgumentParser` takes them."""
    kind, metadata = parameter.annotation, {"help": text}
    if get_origin(kind) is Annotated:
        kind, choices = get_args(kind)
        metadata |= choices
    is_optional = get_origin(kind) in (Union, UnionType)
    if is_optional:
        kind = get_args(kind)[0]
    if get_origin(kind) is Sequence:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    if is_optional:
        kind = kind | None
    default = parameter.default
    if default is parameter.empty and is_optional:
        default = None
    if default is parameter.empty:
        return parameter.name, kind, dataclasses.field(metadata=metadata)
    if isinstance(default, tuple | list):
        return parameter.name, kind, dataclasses.field(default_factory=lambda: list(default), metadata=metadata)
    return parameter.name, kind, dataclasses.field(default=default, metadata=metadata)


def _refuse_renamed(parser: argparse.ArgumentParser, arguments: list[str]):
    """End with the name that a flag has now, before one that is missing is asked for."""
    for flag in (argument.partition("=")[0] for argument in arguments if argument.startswith("--")):
        # which the parser takes, too
        old = flag.removeprefix("--").replace("-", "_")
        if old not in KNOWN_FLAGS and (new := _find_new_name(old, KNOWN_FLAGS)):
            parser.error(f"{flag} is called --{new} now")


def _find_new_name(old: str, known: Collection[str]) -> str | None:
    return next((new for new in RENAMED.get(old, ()) if new in known), None)


def _check_values(values: Any):
    """Refuse what would only show after all work.

    Raises:
        ValueError: As of [`parse_call`].
    """
    record = getattr(values, "results_file", None)
    if record is not None and Path(record).is_dir():
        raise ValueError(f"--results_file is a file to write, and {record} is a folder.")
    output = getattr(values, "output_dir", None)
    if output is not None and any(path.is_file() for path in (Path(output), *Path(output).parents)):
        raise ValueError(f"--output_dir is a folder to write to, and {output} is, or lies in, a file.")
    for name in ("learning_rate", "num_train_epochs"):
        value = getattr(values, name, 0.0)
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"--{name} must be a number that is not negative, got {value:g}.")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"):
        if getattr(values, name, 1) < 1:
            raise ValueError(f"--{name} must be at least 1, got {getattr(values, name)}.")


def _set_recipe(parser: argparse.ArgumentParser, path: str, known: Collection[str]):
    """Let a file set defaults.

    Raises:
        ValueError: It cannot be read or names an unknown argument.
    """
    recipe = read_recipe(path)
    if "results_file" not in known:
        recipe.pop("results_file", None)
    if unknown := sorted(set(recipe) - set(known)):
        new_names = {old: _find_new_name(old, known) for old in unknown}
        renamed = [f"{old} is called {new} now" for old, new in new_names.items() if new]
        way_out = "; ".join(renamed) or "--help lists the known ones"
        raise ValueError(f"the recipe {path} has unknown arguments {unknown}; {way_out}.")
    parser.set_defaults(**recipe)
    for action in parser._actions:
        action.required = action.required and action.dest not in recipe


def _read_default(parser: argparse.ArgumentParser, action: argparse.Action) -> Any:
    """Give a default as it is parsed, where it stands as text."""
    return parser._get_value(action, action.default) if isinstance(action.default, str) else action.default


def read_recipe(path: str) -> dict[str, Any]:
    """Read the arguments that a file holds: a recipe, or a record of an earlier run of the same program.

    A record that is repeated is left as it is: the new one is written into `runs/`, if nothing else is said.

    Raises:
        ValueError: It cannot be read, or another program wrote it.
    """
    try:
        content = json.loads(Path(path).read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"the recipe {path} cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise ValueError(f"the recipe {path} must be an object of arguments by name, got a {type(content).__name__}.")
    if "program" not in content:
        return content
    if not isinstance(content.get("arguments"), dict):
        raise ValueError(f"{path} is a record without `arguments`, so it does not say how to repeat its run.")
    program, here = (Path(name.split()[-1]).stem for name in (content["program"], name_program()))
    if program != here:
        raise ValueError(f"{path} is a record of `{content['program']}`, which takes other arguments.")
    return {"results_file": f"runs/{Path(path).name}", **content["arguments"]}


def name_program() -> str:
    """Name the running program as somebody types it."""
    is_verb = sys.argv[0].startswith("redundancy-hf ")
    return sys.argv[0] if is_verb else f"python {'/'.join(Path(sys.argv[0]).parts[-2:])}"


def _shorten(value: Any) -> Any:
    """Of a path outside the project give only its name, not where it lies here."""
    if isinstance(value, list):
        return [_shorten(one) for one in value]
    is_outside = isinstance(value, str) and value.startswith(("/", "..", "~"))
    return f"path/to/{Path(value).name}" if is_outside else value


def describe_command() -> str:
    """Give the running command for a card."""
    return f"{name_program()} {shlex.join(map(_shorten, sys.argv[1:]))}".strip() if RUN else "a call from Python"


def describe_run() -> dict[str, Any]:
    """Give what a record begins with, so that its file repeats the run: the program, and its arguments.

    Where the record was written is not among them, nor is what has its default.
    """
    return dict(RUN)


def format_record(content: Any, depth: int = 0) -> str:
    """Write a record as JSON with a line per row, where rows are the entries of a list of objects."""
    line = json.dumps(content)
    is_open = isinstance(content, dict) and (depth == 0 or len(line) > LONGEST_ROW)
    if not is_open and not _has_rows(content):
        return line
    indent = " " * (depth + 1)
    if isinstance(content, dict):
        entries = [f"{json.dumps(key)}: {format_record(value, depth + 1)}" for key, value in content.items()]
    else:
        # an entry that has rows of its own may be long
        lines = ((json.dumps(entry), entry) for entry in content)
        entries = [line if len(line) <= LONGEST_ROW else format_record(entry, depth + 1) for line, entry in lines]
    first, last = "{}" if isinstance(content, dict) else "[]"
    return f"{first}\n" + ",\n".join(indent + entry for entry in entries) + f"\n{' ' * depth}{last}"


def _has_rows(content: Any) -> bool:
    if isinstance(content, list):
        return any(isinstance(entry, (dict, list)) for entry in content)
    return isinstance(content, dict) and any(map(_has_rows, content.values()))


def write_record(path: str | None, **content: Any) -> dict[str, Any]:
    """Give what a command found, after its recipe, and write it as JSON where a path is given."""
    record = {**describe_run(), **content}
    if path is not None:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).write_text(format_record(record) + "\n")
    return record


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
        if changed := describe_changes(found, json.loads(json.dumps(settings))):
            raise ValueError(
                f"{path.parent} holds another training: {', '.join(changed)}; use another --output_dir, or the old "
                "settings to resume."
            )
    elif is_writer:
        path.parent.mkdir(parents=True, exist_ok=True)
        # at once, since the other processes may be reading
        unfinished = path.with_suffix(".tmp")
        unfinished.write_text(json.dumps(settings, indent=2) + "\n")
        unfinished.replace(path)


def describe_changes(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Name what changed between two records of settings, by the flags where there are any.

    Args:
        found: Of an earlier command.
        wanted: Of the running one; only what it names is compared. Its entry `flags`, if there is one, is not: it says
            what lies behind a fingerprint.
    """
    changed: list[str] = []
    effects: list[str] = []
    for name, new in wanted.items():
        old = found.get(name)
        if name == FLAGS or old == new:
            continue
        if isinstance(old, dict) and isinstance(new, dict):
            for key in _find_different(old, new):
                said = _say_change(_name_flag(key), old.get(key), new.get(key))
                (effects if key in EFFECTS else changed).append(said)
        elif name in FINGERPRINTS:
            changed += _explain_fingerprint(name, found, wanted)
        else:
            changed.append(_say_change(_name_flag(name), old, new))
    return changed or effects


def _find_different(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [key for key in {**old, **new} if old.get(key) != new.get(key)]


def _name_flag(key: str) -> str:
    return NOT_FLAGS.get(key, f"--{key}" if key.isidentifier() else key)


def _say_change(name: str, old: Any, new: Any) -> str:
    said = ["not given" if value is None else str(value) for value in (old, new)]
    return f"{name} ({said[0]}, now {said[1]})"


def _explain_fingerprint(name: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Say which flags are behind another fingerprint, or that a content has changed."""
    old, new = found.get(FLAGS), wanted.get(FLAGS, {})
    if old is None:
        return [f"{FINGERPRINTS[name]}, or how that is read (fingerprint {found.get(name)}, now {wanted[name]})"]
    is_checkpoint = name in ("checkpoint", "model")
    keys = [key for key in _find_different(old, new) if (key == "model_name_or_path") == is_checkpoint]
    if keys:
        return [_say_change(_name_flag(key), old.get(key), new.get(key)) for key in keys]
    return [f"the content of {FINGERPRINTS[name]}, which has changed"]


def describe_flags(**flags: Any) -> dict[str, Any]:
    """Give flags for a record of settings; of a path only its last part, since the record may be published."""

    def shorten(value: Any) -> Any:
        if isinstance(value, list):
            return [shorten(one) for one in value]
        return Path(value).name if isinstance(value, str) and Path(value).exists() else value

    return {name: shorten(value) for name, value in flags.items()}


def leave_process_group():
    """End together, of several processes: one that is torn down while others still talk to it may abort."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def name_flags(message: str) -> str:
    """Write what a message names in backticks as the flag of the running command, where it has such a flag."""
    return re.sub(r"`(\w+)`", lambda found: f"--{found[1]}" if found[1] in KNOWN_FLAGS else found[0], message)


class CommandFormatter(logging.Formatter):
    """Names arguments as the user typed them."""

    def format(self, record: logging.LogRecord) -> str:
        return name_flags(super().format(record))


class Screen(logging.StreamHandler):
    """Writes on standard output what a package logs as `SCREEN`, which a user must see; the rest is on the error's."""

    def __init__(self):
        logging.Handler.__init__(self)
        self.setFormatter(CommandFormatter())

    @property
    def stream(self):
        return sys.stdout


def open_screen():
    """Show what is logged as `SCREEN` on standard output, once, of several processes by the first one."""
    for handler in logging.getLogger().handlers:
        # not those of a test that reads the log
        if type(handler) is logging.StreamHandler:
            handler.addFilter(lambda record: record.name != SCREEN)
            handler.setFormatter(CommandFormatter())
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
    """Run a command's main function; what a user can mend is said in one sentence, with exit code 1.

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
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # the error says which file cannot be read, and why
    logging.getLogger("datasets.packaged_modules").setLevel(logging.CRITICAL)
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
        sys.exit(f"error: {name_flags(' '.join(str(error.__cause__ or error).split()))}")
    except (ValueError, OSError, FloatingPointError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_disk_full(error):
            raise
        # some libraries explain over several lines
        text = name_flags(" ".join(str(error).split()))
        sys.exit(f"error: {FULL_SENTENCE.format(text) if is_disk_full(error) else text}")
    finally:
        # what is called from Python afterwards is no command
        RUN.clear()
        KNOWN_FLAGS.clear()
