"""Two listeners on two ports: the Hub, and the store of large files, which is another origin, as on the public Hub."""

import json
import re
import secrets
import socket
import threading
import traceback
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar
from urllib.parse import parse_qs, urlsplit

from .repositories import HubError, Repository
from .routes import answer_hub
from .storage import Store, answer_store


@dataclass
class Fault:
    """What goes wrong with the next requests whose "METHOD path" matches; without a status the server dies."""

    pattern: str
    status: int | None
    times: int
    headers: dict


class Hub:
    """A Hub with users, tokens and repositories.

    Args:
        folder: Where repositories and large files lie.
        users: Token by name; a name is a namespace.
        readers: Users whose tokens may only read.
        with_xet: Store large files by the Xet client, which then must run on this machine.
    """

    def __init__(self, folder: Path, users: dict[str, str], readers: tuple[str, ...] = (), with_xet: bool = False):
        self.folder, self.users, self.readers = folder, users, readers
        self.store = Store(folder, with_xet)
        self.repositories: dict[tuple[str, str], Repository] = {}
        self.lock = threading.RLock()
        self.requests: list[tuple[str, str, str, int, bool]] = []  # origin, method, path, status, with a token
        self.faults: list[Fault] = []
        self.ports, self._servers, self._connections = [0, 0], [], set()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[0]}"

    @property
    def store_endpoint(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self) -> "Hub":
        """Listen; a second time on the same ports as before."""
        handlers = [type("Handler", (kind,), {"hub": self}) for kind in (HubHandler, StoreHandler)]
        self._servers = [
            ThreadingHTTPServer(("127.0.0.1", port), handler)
            for port, handler in zip(self.ports, handlers, strict=True)
        ]
        self.ports = [server.server_address[1] for server in self._servers]
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def stop(self):
        """Stop listening and cut every connection, also in the middle of a request."""
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._servers = []
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass

    def fail(self, pattern: str, status: int | None, times: int = 1, headers: dict | None = None):
        """Let the next requests fail whose "METHOD path" matches; without a status the server dies in their middle."""
        self.faults.append(Fault(pattern, status, times, headers or {}))

    def take_fault(self, request: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    fault.times -= 1
                    return fault
        return None

    def environment(self, home: Path, token: str | None = None) -> dict[str, str]:
        """Give the variables of a client's process, which it reads at its start; its caches lie under `home`."""
        variables = {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_DATASETS_OFFLINE": "0",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_UPDATE_CHECK": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "HF_HUB_DISABLE_XET": "0" if self.store.with_xet else "1",
            # as many tries as ever, but a server that died is given up in seconds instead of minutes
            "HF_XET_CLIENT_RETRY_BASE_DELAY": "200ms",
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
        }
        return variables | ({"HF_TOKEN": token} if token else {})

    def user_of(self, authorization: str | None) -> str | None:
        """Give the user of a token, or `None` without one.

        Raises:
            HubError: The token is nobody's.
        """
        if not authorization:
            return None
        token = authorization.removeprefix("Bearer ").strip()
        for name, known in self.users.items():
            if secrets.compare_digest(known, token):
                return name
        raise HubError(401, "Invalid credentials in Authorization header")

    def may_write(self, user: str | None, namespace: str) -> bool:
        return user == namespace and user not in self.readers

    def repository(self, kind: str, name: str, user: str | None, to_write: bool = False) -> Repository:
        """Find a repository that the user may see.

        Raises:
            HubError: There is none that this user may see, or may write to.
        """
        found, namespace = self.repositories.get((kind, name)), name.partition("/")[0]
        if found is None or (found.is_private and user != namespace):
            # of https the client understands a bare 401; on http it needs the code
            message = "Repository not found" if user else "Invalid username or password."
            raise HubError(404 if user else 401, message, "RepoNotFound")
        if to_write and not self.may_write(user, namespace):
            raise HubError(403 if user else 401, "You don't have the required permissions to perform this action")
        return found


class Handler(BaseHTTPRequestHandler):
    """Read a request, let `answer` answer it, and log it."""

    hub: ClassVar[Hub]
    origin: ClassVar[str]
    protocol_version = "HTTP/1.1"

    def setup(self):
        super().setup()
        self.hub._connections.add(self.connection)

    def finish(self):
        self.hub._connections.discard(self.connection)
        super().finish()

    def log_message(self, *arguments):
        pass

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def respond(self):
        url = urlsplit(self.path)
        fault = self.hub.take_fault(f"{self.command} {url.path}")
        if fault is not None and fault.status is None:
            self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 0)))
            threading.Thread(target=self.hub.stop).start()
            self.close_connection = True
            return
        # an unread body would be taken for the next request
        self.body, self.query = self.read_body(), parse_qs(url.query, keep_blank_values=True)
        try:
            if fault is not None:
                raise HubError(fault.status, "the server is busy", headers=fault.headers)
            status, content, headers = self.answer(url.path)
        except HubError as error:
            status, content, headers = error.status, error.body, error.headers
        except Exception:
            traceback.print_exc()
            # 500 would be tried again, and look like a hang
            status, content, headers = 501, {"error": traceback.format_exc()}, {}
        self.write(status, content, headers)

    def write(self, status: int, content: bytes | dict | list, headers: dict):
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        has_token = bool(self.headers.get("Authorization"))
        self.hub.requests.append((self.origin, self.command, self.path, status, has_token))
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = respond


class HubHandler(Handler):
    origin = "hub"

    def answer(self, path: str):
        self.user = self.hub.user_of(self.headers.get("Authorization"))
        with self.hub.lock:
            return answer_hub(self, path)


class StoreHandler(Handler):
    origin = "store"

    def answer(self, path: str):
        return answer_store(self, path)
