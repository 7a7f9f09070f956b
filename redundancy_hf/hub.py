"""The way of a saved folder, of any package, to the Hub and back: stage, verify, push in one commit, read back."""

import filecmp
import json
import logging
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from huggingface_hub import CommitInfo, CommitOperationAdd, CommitOperationDelete, HfApi, snapshot_download

from .cards import find_card_defects
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
from .record import TASK_FILE, read_record

logger = logging.getLogger(__name__)

# at the top of a repository, of an earlier push: what a folder no longer has must not be loaded with it
REPLACED = ("model*.safetensors", "model.safetensors.index.json", *(f"{prefix}*.py" for prefix in CODE_PREFIXES))
SECRETS = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|api_org_[A-Za-z0-9]{20,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{15,}"
    r"|sk-[A-Za-z0-9_-]{20,}|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,})"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY|https?://[^\s/@:]+:[^\s/@]+@"
)
ROOTS = "home|root|Users|tmp|var|mnt|opt|srv|work|data|workspace|content|private|scratch|nfs|gpfs|lustre|media|Volumes"
ABSOLUTE_PATH = re.compile(
    rf"(?:file://|(?<![\w./~<>@-]))(/(?:{ROOTS})/[\w.@+-]+)|\b([A-Za-z]:[\\/]+(?:Users|home)\b)"
    # a setting that is nothing but a path
    r'|"(/[\w.@+-]+(?:/[\w.@+ -]+)+|[A-Za-z]:(?:\\\\|/)[^"\n]+)"'
)
# of exports, into which nobody writes by hand
GRAPHS = (".onnx", ".pt2", ".xml")
# their words may look like anything
VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model")


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


def find_leaks(folder: Path, names: Sequence[str], private: Mapping[str, str] | None = None) -> list[str]:
    """Name what must not be published: tokens, keys, paths of this machine; and a damaged card.

    `private` are more strings that no file may hold, by what they are: "your token".
    """
    defects, private = [], private or {}
    for name in names:
        text = _read_text(folder / name)
        if SECRETS.search(text):
            defects.append(f"{name} holds something that looks like a token or key; remove it, and revoke it")
        for what, word in private.items():
            # a path that goes on with another letter is another path, and so is one behind a host
            boundary = r"(?<![\w.-])" if word.startswith("/") else ""
            if len(word) > 5 and re.search(rf"{boundary}{re.escape(word)}(?![\w-])", text):
                defects.append(f"{name} holds {what}; remove it")
        if any(fnmatch(name, pattern) for pattern in VOCABULARIES):
            continue
        if found := ABSOLUTE_PATH.search(text):
            path = found[1] or found[2] or found[3]
            mend = "export the model again" if name.endswith(GRAPHS) else "replace it by a name"
            defects.append(f"{name} holds the path {path} of one machine; {mend}")
    if "README.md" in names:
        defects += find_card_defects(folder / "README.md")
    return defects


def _read_text(path: Path) -> str:
    """Read a file for words; of tensors only the metadata, of archives the JSON, of other binary files nothing."""
    try:
        if path.suffix == ".safetensors":
            with safetensors.safe_open(path, framework="pt") as tensors:
                return json.dumps(tensors.metadata() or {})
        if path.suffix == ".pt2":
            with zipfile.ZipFile(path) as archive:
                names = [name for name in archive.namelist() if name.endswith(".json")]
                return "\n".join(archive.read(name).decode(errors="ignore") for name in names)
    except (safetensors.SafetensorError, zipfile.BadZipFile):
        return ""
    content = path.read_bytes()
    if content[:2] in (b"\xff\xfe", b"\xfe\xff"):
        return content.decode("utf-16", errors="ignore")
    return "" if b"\0" in content[:1024] else content.decode(errors="ignore")


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
