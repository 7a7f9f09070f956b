"""Large files: uploaded to and downloaded from signed addresses, or by the Xet client.

The Xet client of the pinned version takes `local://FOLDER` for a server and does all its chunking there; that is not
documented. A commit names a file by its SHA-256, so the client's shards are read to find what Xet calls it.
"""

import hashlib
import hmac
import re
import secrets
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from .repositories import HubError

HEADER_BYTES = 48
HAS_VERIFICATION, HAS_SHA256 = 1 << 31, 1 << 30

FETCH = """
import sys, hf_xet

folder, xet_hash, size, path = sys.argv[1:]
endpoint = f"local://{folder}"
group = hf_xet.XetSession().new_file_download_group(endpoint=endpoint, token="t", token_expiry_unix_secs=1 << 40)
with group:
    group.start_download_file(hf_xet.XetFileInfo(xet_hash, int(size)), path)
"""


def read_shard(data: bytes) -> Iterator[tuple[str, str, int]]:
    """Yield SHA-256, Xet's hash and size of every file of a shard (xet-core's metadata format)."""

    def hash_at(position: int) -> str:
        return "".join(f"{word:016x}" for word in struct.unpack_from("<4Q", data, position))

    position = HEADER_BYTES
    while data[position : position + 32] != b"\xff" * 32:
        xet_hash = hash_at(position)
        flags, count = struct.unpack_from("<II", data, position + 32)
        first = position + HEADER_BYTES
        size = sum(struct.unpack_from("<I", data, first + HEADER_BYTES * index + 36)[0] for index in range(count))
        position = first + HEADER_BYTES * count * (2 if flags & HAS_VERIFICATION else 1)
        if flags & HAS_SHA256:
            yield hash_at(position), xet_hash, size
            position += HEADER_BYTES


class Store:
    """Files by their SHA-256, in a folder."""

    def __init__(self, folder: Path, with_xet: bool):
        self.folder, self.with_xet = folder / "large", with_xet
        self.folder.mkdir(parents=True, exist_ok=True)
        self.xet_folder = folder / "xet"
        self.xet_hashes: dict[str, str] = {}
        self._secret = secrets.token_bytes(16)

    def find(self, sha256: str) -> int | None:
        """Give the size of a file, or `None` if it is not there."""
        path = self.folder / sha256
        if path.exists():
            return path.stat().st_size
        return next((size for found, _, size in self._list_xet() if found == sha256), None)

    def _list_xet(self) -> Iterator[tuple[str, str, int]]:
        for shard in self.xet_folder.glob("xet/xorbs/shards/*.mdb"):
            for sha256, xet_hash, size in read_shard(shard.read_bytes()):
                self.xet_hashes[sha256] = xet_hash
                yield sha256, xet_hash, size

    def read(self, sha256: str) -> bytes | None:
        """Give a file, also one that a client of Xet has uploaded to one that has no Xet."""
        path = self.folder / sha256
        if not path.exists() and (size := self.find(sha256)) is not None:
            # in a process of its own, for the folder is locked as long as a session lives
            arguments = [str(self.xet_folder), self.xet_hashes[sha256], str(size), str(path)]
            subprocess.run([sys.executable, "-c", FETCH, *arguments], check=True)
        return path.read_bytes() if path.exists() else None

    def give_token(self):
        if not self.with_xet:
            raise HubError(501, "this server has no Xet storage: set HF_HUB_DISABLE_XET=1")
        self.xet_folder.mkdir(exist_ok=True)
        expires, address = int(time.time()) + 3600, f"local://{self.xet_folder}"
        headers = {
            "X-Xet-Cas-Url": address,
            "X-Xet-Access-Token": "xet-test",
            "X-Xet-Token-Expiration": str(expires),
        }
        return 200, {"casUrl": address, "exp": expires, "accessToken": "xet-test"}, headers

    def _signature(self, method: str, sha256: str, expires: str) -> str:
        return hmac.new(self._secret, f"{method} {sha256} {expires}".encode(), "sha256").hexdigest()

    def sign(self, endpoint: str, method: str, sha256: str) -> str:
        """Give an address that serves one file for an hour to whoever has it."""
        expires = str(int(time.time()) + 3600)
        return f"{endpoint}/{sha256}?expires={expires}&signature={self._signature(method, sha256, expires)}"

    def is_signed(self, method: str, sha256: str, query: dict[str, list[str]]) -> bool:
        expires, signature = query.get("expires", ["0"])[0], query.get("signature", [""])[0]
        right = self._signature(method, sha256, expires)
        return secrets.compare_digest(signature, right) and int(expires) > time.time()


def answer_store(request, path: str):
    """Take or give a large file.

    Raises:
        HubError: The address is not signed, the content is not what it says, or there is no such file.
    """
    store, sha256 = request.hub.store, path.strip("/")
    method = "PUT" if request.command == "PUT" else "GET"
    if not re.fullmatch("[0-9a-f]{64}", sha256) or not store.is_signed(method, sha256, request.query):
        raise HubError(403, "Request signature does not match or has expired")
    if method == "PUT":
        if hashlib.sha256(request.body).hexdigest() != sha256:
            raise HubError(400, "BadDigest")
        part = store.folder / f"{sha256}.{secrets.token_hex(4)}"
        part.write_bytes(request.body)
        part.replace(store.folder / sha256)
        return 200, b"", {}
    content = store.read(sha256)
    if content is None:
        raise HubError(404, "NoSuchKey")
    headers = {"ETag": f'"{sha256}"', "Accept-Ranges": "bytes"}
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", request.headers.get("Range") or "")
    if wanted is None:
        return 200, content, headers
    first, last = int(wanted[1]), min(int(wanted[2] or len(content) - 1), len(content) - 1)
    if first > last:
        raise HubError(416, "range not satisfiable", headers={"Content-Range": f"bytes */{len(content)}"})
    return 206, content[first : last + 1], {**headers, "Content-Range": f"bytes {first}-{last}/{len(content)}"}
