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
from pathlib import Path
from typing import Any

from huggingface_hub import get_token
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..cards import complete_card
from ..command import parse_call
from ..failures import find_status
from ..folders import find_load_defects, find_notes, is_export, list_files
from ..hub import Verification, push_folder, read_back, stage_folder, verify_folder


def publish_folder(
    folder: str,
    repo_id: str,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    license: str | None = None,
    base_model: str | None = None,
    commit_message: str = "Add model",
    dry_run: bool = False,
) -> Verification:
    """Verify a copy of a saved folder, push it in one commit and read it back; the folder itself stays as it is.

    Args:
        folder: Saved model folder; also as the first argument, without the flag.
        repo_id: Name on the Hub, as your-name/model.
        private: Make the repository private, if it is new.
        revision: Branch to push to, made if it is new.
        create_pr: Open a pull request instead of pushing to the branch.
        license: For the model card, as apache-2.0; the base model's licence binds you.
        base_model: For the model card: name of the checkpoint.
        commit_message: First line of the commit on the Hub.
        dry_run: Verify, list what would be pushed, and stop.

    Returns:
        What a fresh process found in the folder, or in what the Hub gives back.

    Raises:
        ValueError: The folder is not fit for the Hub, or the Hub refuses it.
    """
    path = Path(folder)
    _check_request(path, repo_id, revision, create_pr, dry_run)
    with tempfile.TemporaryDirectory() as temporary:
        staged = Path(temporary, path.resolve().name)
        stage_folder(path, staged)
        if defects := find_load_defects(staged):
            raise ValueError(f"{folder} is not fit for the Hub: {'; '.join(defects)}.")
        complete_card(staged, repo_id, license=license, base_model=base_model)
        for note in find_notes(path):
            print(f"note: {note}")
        secrets = {"your token": get_token() or "", "the path of its own folder": str(path.resolve().parent)}
        found = verify_folder(staged, private=secrets)
        print(f"verified: {found}")
        _print_files(path, staged)
        return found if dry_run else _push(folder, staged, repo_id, private, revision, create_pr, commit_message)


def _check_request(folder: Path, repo_id: str, revision: str | None, create_pr: bool, dry_run: bool):
    if create_pr and revision:
        raise ValueError("--create_pr opens a pull request to the main branch; leave --revision out.")
    try:
        if "/" not in repo_id:
            raise HFValidationError(f"{repo_id} has no owner.")
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"--repo_id must be a name on the Hub, as your-name/model: {error}") from error
    if not dry_run and get_token() is None:
        raise ValueError("the Hub needs a token to write: run `hf auth login`, or set HF_TOKEN, and try again.")
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; give one that save_pretrained, a training or a search has written.")
    if is_export(folder):
        raise ValueError(
            f"{folder} is an export, which has no weights: publish the model's folder with the export in it."
        )


def _format_size(size: float) -> str:
    for unit in ("B", "kB", "MB"):
        if size < 1000:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def _print_files(folder: Path, staged: Path):
    """List what goes to the Hub, with sizes, and what stays here."""
    names, _ = list_files(staged)
    for name in names:
        print(f"  {_format_size((staged / name).stat().st_size):>8}  {name}")
    print(f"  {_format_size(sum((staged / name).stat().st_size for name in names)):>8}  in {len(names)} files")
    left_out = list_files(folder)[1]
    if left_out:
        print(f"not pushed (pickles, and what a training leaves): {', '.join(left_out)}")


def _push(folder: str, staged: Path, repo_id: str, *options: Any) -> Verification:
    """Push a verified copy and read it back; `options` as for [`push_folder`]."""
    print(f"pushing to {repo_id} ...")
    again = f"{folder} is unchanged. To go on: {shlex.join([*sys.argv[0].split(), *sys.argv[1:]])}"
    try:
        info, is_new = push_folder(staged, repo_id, *options)
        print(f"{'commit' if is_new else 'nothing has changed since'} {info.oid}: {info.pr_url or info.commit_url}")
        found = read_back(staged, repo_id, info.oid)
        print(f"read back: {found}")
        return found
    except ValueError:
        raise
    except KeyboardInterrupt:
        print(again, file=sys.stderr)
        raise
    except Exception as error:  # of the network, in as many kinds as there are transports
        reason = " ".join((str(error) or type(error).__name__).split())
        if find_status(error) in (401, 403):
            raise ValueError(
                f"the Hub refuses ({reason}): run `hf auth login` with a token that may write to {repo_id}."
            ) from error
        raise ValueError(f"the push stopped ({reason}); {again}") from error


def main():
    publish_folder(**parse_call(publish_folder, __doc__, positional="folder"))
