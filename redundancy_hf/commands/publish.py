"""Publish a saved folder of any of the three packages on the Hugging Face Hub, and read it back.

    redundancy-hf publish runs/mrpc/best --repo_id your-name/roberta-mrpc-fast --license mit
    redundancy-hf publish runs/mrpc/best --repo_id your-name/roberta-mrpc-fast --license mit --dry_run

First a copy is verified: it loads in a fresh process without this project, gives the output that was stored with it,
has its weights in safetensors, all code that its configuration names, and no path of this machine or token in any file.
Then it is pushed in one commit, downloaded by that commit's hash, compared byte by byte and verified again. Your folder
is only read; after a failure the same command goes on, and does not upload again what has arrived.
"""

import shlex
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id
from transformers.utils import logging as transformers_logging

from ..cards import complete_card
from ..command import parse_arguments
from ..failures import find_status
from ..folders import find_load_defects, find_notes, is_export, list_files
from ..hub import push_folder, read_back, stage_folder, verify_folder


@dataclass
class PublishArguments:
    folder: str = field(metadata={"help": "Saved model folder; also as the first argument, without the flag."})
    repo_id: str = field(metadata={"help": "Name on the Hub, as your-name/model."})
    private: bool = field(default=False, metadata={"help": "Make the repository private, if it is new."})
    revision: str | None = field(default=None, metadata={"help": "Branch to push to, made if it is new."})
    create_pr: bool = field(default=False, metadata={"help": "Open a pull request instead of pushing to the branch."})
    license: str | None = field(
        default=None, metadata={"help": "For the model card, as apache-2.0; the base model's licence binds you."}
    )
    base_model: str | None = field(default=None, metadata={"help": "For the model card: name of the checkpoint."})
    commit_message: str = field(default="Add model", metadata={"help": "Of the commit."})
    dry_run: bool = field(default=False, metadata={"help": "Verify, list what would be pushed, and stop."})


def format_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def print_files(folder: Path, staged: Path):
    """List what goes to the Hub, with sizes, and what stays here."""
    names, _ = list_files(staged)
    for name in names:
        print(f"  {format_size((staged / name).stat().st_size):>8}  {name}")
    print(f"  {format_size(sum((staged / name).stat().st_size for name in names)):>8}  in {len(names)} files")
    left_out = list_files(folder)[1]
    if left_out:
        print(f"not pushed (pickles, and what a training leaves): {', '.join(left_out)}")


def publish(arguments: PublishArguments, staged: Path):
    """Push a verified copy and read it back."""
    command = shlex.join([*sys.argv[0].split(), *sys.argv[1:]])
    print(f"pushing to {arguments.repo_id} ...")
    try:
        info, is_new = push_folder(
            staged,
            arguments.repo_id,
            arguments.private,
            arguments.revision,
            arguments.create_pr,
            arguments.commit_message,
        )
        print(f"{'commit' if is_new else 'nothing has changed since'} {info.oid}: {info.pr_url or info.commit_url}")
        print(f"read back: {read_back(staged, arguments.repo_id, info.oid)}")
    except ValueError:
        raise
    except KeyboardInterrupt:
        print(f"{arguments.folder} is unchanged. To go on: {command}", file=sys.stderr)
        raise
    except Exception as error:  # of the network, in as many kinds as there are transports
        reason = " ".join((str(error) or type(error).__name__).split())
        if find_status(error) in (401, 403):
            raise ValueError(
                f"the Hub refuses ({reason}): run `hf auth login` with a token that may write to {arguments.repo_id}."
            ) from error
        raise ValueError(
            f"the push stopped ({reason}); {arguments.folder} is unchanged. To go on: {command}"
        ) from error


def main():
    (arguments,) = parse_arguments((PublishArguments,), __doc__, positional="folder")
    transformers_logging.set_verbosity_error()
    if arguments.create_pr and arguments.revision:
        raise ValueError("--create_pr opens a pull request to the main branch; leave --revision out.")
    try:
        if "/" not in arguments.repo_id:
            raise HFValidationError(f"{arguments.repo_id} has no owner.")
        validate_repo_id(arguments.repo_id)
    except HFValidationError as error:
        raise ValueError(f"--repo_id must be a name on the Hub, as your-name/model: {error}") from error
    folder = Path(arguments.folder)
    if not arguments.dry_run and get_token() is None:
        raise ValueError("the Hub needs a token to write: run `hf auth login`, or set HF_TOKEN, and try again.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that save_pretrained, a training or a search has written.")
    if is_export(folder):
        raise ValueError(
            f"{folder} is an export, which has no weights: publish the model's folder with the export in it."
        )
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary, folder.resolve().name)
        stage_folder(folder, staged)
        if defects := find_load_defects(staged):
            raise ValueError(f"{folder} is not fit for the Hub: {'; '.join(defects)}.")
        complete_card(staged, arguments.repo_id, license=arguments.license, base_model=arguments.base_model)
        for note in find_notes(folder):
            print(f"note: {note}")
        private = {"your token": get_token() or "", "the path of its own folder": str(folder.resolve().parent)}
        print(f"verified: {verify_folder(staged, private=private)}")
        print_files(folder, staged)
        if not arguments.dry_run:
            publish(arguments, staged)
