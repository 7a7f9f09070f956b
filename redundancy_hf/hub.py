"""The way of a saved folder, of any package, to the Hub and back: stage, verify, push in one commit, read back."""

import filecmp
import json
import logging
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors.torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from .failures import retry_if_busy
from .folders import (
    CODE_PREFIXES,
    GOLDEN,
    check_difference,
    find_load_defects,
    find_outside_links,
    list_files,
    store_golden_output,
)
from .isolation import run_elsewhere
from .leaks import find_leaks
from .record import TASK_FILE, read_record

logger = logging.getLogger(__name__)

# at the top of a repository, of an earlier push: what a folder no longer has must not be loaded with it
REPLACED = ("model*.safetensors", "model.safetensors.index.json", *(f"{prefix}*.py" for prefix in CODE_PREFIXES))


@dataclass(frozen=True)
class Verification:
    """What a fresh process found in a folder; `difference` is `None` where no output was stored to compare with."""

    model_class: str
    parameters: int
    difference: float | None

    def __str__(self) -> str:
        words = f"{self.model_class}, {self.parameters:,} parameters"
        if self.difference is None:
            return f"{words}; no output was stored with it to compare with"
        return f"{words}, output within {self.difference:.1e} of the stored one"


def verify_folder(
    folder: Path, names: list[str] | None = None, private: Mapping[str, str] | None = None
) -> Verification:
    """Check a folder's files, then load and run it in a fresh process without this project's packages.

    A stored output is compared; if there is none, the one computed is stored. `names` and `private` as for
    [`find_leaks`].

    Raises:
        ValueError: Says all that is wrong.
    """
    defects = find_load_defects(folder) + find_leaks(folder, names or list_files(folder)[0], private)
    if defects:
        raise ValueError(f"{folder.name} is not fit for the Hub: {'; '.join(defects)}.")
    golden = folder / GOLDEN
    with tempfile.TemporaryDirectory() as temporary:
        output = Path(temporary, "output.safetensors")
        stored = str(golden.resolve()) if golden.is_file() else None
        try:
            found = run_elsewhere("verify", folder, stored=stored, output=str(output))
        except RuntimeError as error:
            raise ValueError(f"{folder.name} does not load or run without this project: {error}") from error
        if stored is None:
            store_golden_output(safetensors.torch.load_file(output), folder)
    if found["difference"] is not None:
        check_difference(found["difference"], found["dtype"], folder.name)
    config = json.loads((folder / "config.json").read_text())
    missing = sorted(set(found["auto_map"].items()) - set((config.get("auto_map") or {}).items()))
    if missing:
        raise ValueError(f"{folder.name}: auto_map of config.json lacks {dict(missing)}; save the model again.")
    return Verification(found["class"], found["parameters"], found["difference"])


def stage_folder(folder: Path, staging: Path):
    """Copy what belongs on the Hub, so that the folder itself is never touched; `task.json` without what is private.

    Raises:
        ValueError: A file of the model is a link out of the folder, or `task.json` is damaged.
    """
    if outside := find_outside_links(folder):
        raise ValueError(
            f"in {folder} {', '.join(outside)} lead out of the folder, as in a cache; publish a copy made by `cp -rL`."
        )
    for name in list_files(folder)[0]:
        (staging / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(folder / name, staging / name)
    # of the model and of exports of it
    for path in staging.rglob(TASK_FILE):
        record = read_record(path.parent)
        if record is not None:
            record.write_public(path.parent)


def push_folder(
    folder: Path, repo_id: str, private: bool, revision: str | None, create_pr: bool, message: str
) -> tuple[CommitInfo, bool]:
    """Push all files of a folder in one commit; stale weights and code of an earlier push are deleted with it.

    Returns:
        `CommitInfo`: its `oid` and, with `create_pr`, its `pr_url`; and whether anything has changed.

    Raises:
        ValueError: The repository is public and should be private.
        HfHubHTTPError: The Hub refuses.
    """
    api = HfApi()
    retry_if_busy(lambda: api.create_repo(repo_id, private=private, exist_ok=True))
    if private and not retry_if_busy(lambda: api.repo_info(repo_id)).private:
        raise ValueError(f"{repo_id} is public; make it private in its settings first, or leave --private out.")
    if revision is not None:
        retry_if_busy(lambda: api.create_branch(repo_id, branch=revision, exist_ok=True))
    head = retry_if_busy(lambda: api.repo_info(repo_id, revision=revision)).sha
    names, _ = list_files(folder)
    gone = set(retry_if_busy(lambda: api.list_repo_files(repo_id, revision=revision))).difference(names)
    stale = sorted(name for name in gone if "/" not in name and any(fnmatch(name, pattern) for pattern in REPLACED))
    if stale:
        logger.warning(f"deleted there, because {folder.name} no longer has them: {', '.join(stale)}")

    def commit() -> CommitInfo:
        operations: list[Any] = [CommitOperationAdd(name, folder / name) for name in names]
        operations += map(CommitOperationDelete, stale)
        return api.create_commit(repo_id, operations, commit_message=message, revision=revision, create_pr=create_pr)

    info = retry_if_busy(commit)
    return info, info.oid != head


def read_back(folder: Path, repo_id: str, commit: str) -> Verification:
    """Download a commit into an empty cache, compare every file with the folder, and verify the copy.

    Raises:
        ValueError: A file differs, or the copy does not pass.
    """
    with tempfile.TemporaryDirectory() as cache:
        copy = Path(snapshot_download(repo_id, revision=commit, local_dir=Path(cache, Path(repo_id).name)))
        names, _ = list_files(folder)
        _, different, missing = filecmp.cmpfiles(copy, folder, names, shallow=False)
        if different or missing:
            raise ValueError(f"{repo_id} at {commit} differs from what was pushed in {', '.join(different + missing)}.")
        return verify_folder(copy, names)
