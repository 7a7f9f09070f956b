"""What must not be published: tokens, keys and paths of this machine, found in any file of a saved folder."""

import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path

import safetensors

from .cards import find_card_defects

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
