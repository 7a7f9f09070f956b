"""Bare git repositories, written without a work tree."""

import hashlib
import os
import re
import subprocess
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

# as on the public Hub, what ends so is stored as a pointer, whatever its size
LARGE_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".pkl", ".npy", ".npz", ".onnx", ".parquet", ".arrow", ".gz")
LARGE_BYTES = 10 << 20
POINTER = re.compile(rb"version https://git-lfs.github.com/spec/v1\noid sha256:([0-9a-f]{64})\nsize (\d+)\n")
ENVIRONMENT = {
    "PATH": os.environ["PATH"],
    "GIT_CONFIG_NOSYSTEM": "1",
    "GIT_CONFIG_GLOBAL": os.devnull,
    "LC_ALL": "C",
}


class HubError(Exception):
    """What a request is answered with when it fails; clients tell errors apart by `code`."""

    def __init__(self, status: int, message: str, code: str | None = None, headers: dict | None = None, **body):
        super().__init__(message)
        self.status, self.body = status, {"error": message, **body}
        self.headers = {"X-Error-Message": message, **(headers or {})} | ({"X-Error-Code": code} if code else {})


def is_large(path: str, size: int) -> bool:
    """Say whether a file is stored beside the repository, with a pointer in it."""
    return path.endswith(LARGE_SUFFIXES) or size > LARGE_BYTES


def format_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z")


def write_pointer(sha256: str, size: int) -> bytes:
    return f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {size}\n".encode()


def blob_id(content: bytes) -> str:
    """Give the name that git has for a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file or folder of a commit; of a pointer `size` is the size of what it points to."""

    path: str
    kind: str  # blob or tree
    oid: str
    size: int
    sha256: str | None = None
    pointer_size: int = 0


@dataclass
class Repository:
    """One repository of the Hub."""

    folder: Path
    kind: str  # model or dataset
    name: str  # namespace/name
    is_private: bool = False
    pull_requests: list[dict] = field(default_factory=list)

    def git(self, *arguments: str, content: bytes | None = None) -> bytes:
        command = ["git", "-c", "core.quotePath=false", "--git-dir", str(self.folder), *arguments]
        return subprocess.run(command, input=content, capture_output=True, check=True, env=ENVIRONMENT).stdout

    def create(self, author: str):
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(self.folder)], check=True, env=ENVIRONMENT)
        attributes = "".join(f"*{suffix} filter=lfs diff=lfs merge=lfs -text\n" for suffix in LARGE_SUFFIXES)
        self.commit("refs/heads/main", None, {".gitattributes": attributes.encode()}, "initial commit", author)

    def references(self) -> dict[str, str]:
        """Give commits by the full names of branches, tags and pull requests."""
        lines = self.git("for-each-ref", "--format=%(refname) %(objectname)").decode().splitlines()
        return dict(line.split() for line in lines)

    def resolve(self, revision: str) -> str:
        """Give the commit of a branch, tag, pull request or commit.

        Raises:
            HubError: There is none.
        """
        references = self.references()
        for name in (f"refs/heads/{revision}", f"refs/tags/{revision}", revision):
            if name in references:
                return references[name]
        if re.fullmatch("[0-9a-f]{40}", revision):
            try:
                return self.git("rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}").decode().strip()
            except subprocess.CalledProcessError:
                pass
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def entries(self, commit: str) -> list[Entry]:
        """List all files and folders of a commit."""
        rows = []
        for line in self.git("ls-tree", "-r", "-t", "-l", "-z", commit).decode().split("\0")[:-1]:
            facts, _, path = line.partition("\t")
            _, kind, oid, size = facts.split()
            rows.append(Entry(path, kind, oid, 0 if size == "-" else int(size)))
        return [self._follow(row) for row in rows]

    def _follow(self, entry: Entry) -> Entry:
        if entry.kind == "tree" or entry.size > 200:
            return entry
        match = POINTER.fullmatch(self.read(entry.oid))
        if match is None:
            return entry
        return Entry(entry.path, entry.kind, entry.oid, int(match[2]), match[1].decode(), entry.size)

    def find(self, commit: str, path: str) -> Entry:
        """Give a file.

        Raises:
            HubError: There is none.
        """
        for entry in self.entries(commit):
            if entry.path == path and entry.kind == "blob":
                return entry
        raise HubError(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": commit})

    def read(self, oid: str) -> bytes:
        return self.git("cat-file", "blob", oid)

    def commit(self, reference: str, parent: str | None, changes: dict[str, bytes | None], message: str, author: str):
        """Write files, or delete those whose content is `None`, in one commit; give its name.

        Raises:
            HubError: Somebody else has moved the reference meanwhile.
        """
        before = {entry.path: entry.oid for entry in self.entries(parent)} if parent else {}
        changes = {
            path: content
            for path, content in changes.items()
            if (path in before if content is None else before.get(path) != blob_id(content))
        }
        if parent and not changes:
            return parent
        lines = [f"commit {reference}\ncommitter {author} <{author}@hub.test> now\n".encode()]
        lines.append(b"data %d\n%s\n" % (len(message.encode()), message.encode()))
        if parent:
            lines.append(f"from {parent}\n".encode())
        for path, content in changes.items():
            if content is None:
                lines.append(f"D {path}\n".encode())
            else:
                lines.append(f"M 100644 inline {path}\ndata {len(content)}\n".encode() + content + b"\n")
        try:
            self.git("fast-import", "--quiet", "--date-format=now", content=b"".join(lines))
        except subprocess.CalledProcessError as error:
            raise HubError(412, "A commit has happened since. Please refresh and try again.") from error
        return self.references()[reference]

    def history(self, commit: str) -> list[dict]:
        """List commits, the newest first."""
        lines = self.git("log", "--format=%H%x00%ct%x00%an%x00%s", commit).decode().splitlines()
        rows = [line.split("\0") for line in lines]
        return [
            {"id": oid, "date": format_time(int(seconds)), "authors": [{"user": author}], "title": title, "message": ""}
            for oid, seconds, author, title in rows
        ]
