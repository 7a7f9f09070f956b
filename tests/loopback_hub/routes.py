"""The Hub's own routes. Every function answers with a status, a body and headers."""

import base64
import json
import re
import time
from urllib.parse import parse_qs, unquote

import yaml

from .repositories import Entry, HubError, Repository, format_time, is_large, write_pointer

ROUTES = []
KINDS = {"models": "model", "datasets": "dataset"}


def route(methods: str, pattern: str):
    """Register a function for a path; `{x}` is one part of it, still quoted, and `{x*}` is the rest."""
    expression = re.sub(r"\{(\w+)\*\}", r"(?P<\1>.+)", pattern)
    expression = re.compile(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", expression))

    def register(function):
        ROUTES.append((methods.split(), expression, function))
        return function

    return register


def answer_hub(request, path: str):
    """Find the function of a path and call it with the parts, unquoted only now: a branch may hold a slash.

    Raises:
        HubError: There is no such route, or the function refuses.
    """
    for methods, expression, function in ROUTES:
        match = expression.fullmatch(path)
        if match and request.command in methods:
            return function(request, **{name: unquote(part) for name, part in match.groupdict().items()})
    raise HubError(404, f"Not found: {request.command} {path}")


def read_json(request) -> dict:
    return json.loads(request.body or b"{}")


def find(request, kind: str, owner: str, name: str, to_write: bool = False) -> Repository:
    kind = KINDS.get(kind, kind)
    return request.hub.repository(kind, f"{owner}/{name}", request.user, to_write)


def need_user(request) -> str:
    if request.user is None:
        raise HubError(401, "Invalid username or password.")
    return request.user


def url_of(request, repository: Repository) -> str:
    return f"{request.hub.endpoint}/{'datasets/' if repository.kind == 'dataset' else ''}{repository.name}"


@route("GET", "/api/whoami-v2")
def whoami(request):
    user = need_user(request)
    role = "read" if user in request.hub.readers else "write"
    access = {"type": "access_token", "accessToken": {"role": role, "displayName": "test"}}
    return 200, {"type": "user", "name": user, "fullname": user, "orgs": [], "auth": access}, {}


@route("HEAD GET POST", "/api/telemetry/{rest*}")
def telemetry(request, rest):
    return 200, {}, {}


@route("POST", "/api/repos/create")
def create(request):
    wanted, user = read_json(request), need_user(request)
    owner, kind = wanted.get("organization") or user, wanted.get("type") or "model"
    if not re.fullmatch(r"(?!.*(\.\.|--))[\w.-]{1,96}", wanted["name"]):
        raise HubError(400, "Invalid repo name")
    if not request.hub.may_write(user, owner):
        raise HubError(403, f'You don\'t have the rights to create a {kind} under the namespace "{owner}"')
    name = f"{owner}/{wanted['name']}"
    folder = request.hub.folder / f"{kind}s" / f"{name}.git"
    repository = Repository(folder, kind, name, is_private=wanted.get("visibility", "public") != "public")
    if (kind, name) in request.hub.repositories:
        # the client reads the address from the refusal
        raise HubError(409, f"You already created this {kind} repo", url=url_of(request, repository))
    folder.parent.mkdir(parents=True, exist_ok=True)
    repository.create(user)
    request.hub.repositories[kind, name] = repository
    return 200, {"url": url_of(request, repository), "name": name}, {}


@route("DELETE", "/api/repos/delete")
def delete(request):
    wanted = read_json(request)
    kind, owner = wanted.get("type") or "model", wanted.get("organization") or need_user(request)
    find(request, kind, owner, wanted["name"], to_write=True)
    del request.hub.repositories[kind, f"{owner}/{wanted['name']}"]
    return 200, {}, {}


def read_front_matter(text: str) -> dict | None:
    match = re.match(r"---\s*\n(.*?)\n---\s*(\n|$)", text.replace("\r\n", "\n"), re.DOTALL)
    return None if match is None else yaml.safe_load(match[1])


def find_card_errors(card: dict) -> list[str]:
    """Name what a card's model-index lacks, and values of wrong types."""
    errors = []
    if not isinstance(card, dict):
        return ["metadata should be a mapping"]
    for model in card.get("model-index") or []:
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[].name" is required')
        for result in model.get("results") or []:
            for part, fields in {"task": ["type"], "dataset": ["type", "name"]}.items():
                missing = [name for name in fields if not (result.get(part) or {}).get(name)]
                errors += [f'"model-index[].results[].{part}.{name}" is required' for name in missing]
            for metric in result.get("metrics") or [{}]:
                errors += [f'"metrics[].{name}" is required' for name in ("type", "value") if name not in metric]
    for name in ("license", "library_name", "pipeline_tag"):
        if not isinstance(card.get(name, ""), str):
            errors.append(f'"{name}" must be a string')
    return errors


@route("POST", "/api/validate-yaml")
def validate(request):
    try:
        card = read_front_matter(read_json(request)["content"])
    except yaml.YAMLError as error:
        raise HubError(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
    warnings = [] if card else [{"message": "empty or missing yaml metadata in repo card"}]
    errors = [{"message": message} for message in find_card_errors(card or {})]
    if errors:
        raise HubError(400, "Invalid metadata", errors=errors, warnings=warnings)
    return 200, {"errors": [], "warnings": warnings}, {}


def describe_entry(request, entry: Entry) -> dict:
    row = {"type": "directory" if entry.kind == "tree" else "file", "path": entry.path, "size": entry.size}
    row["oid"] = entry.oid
    if entry.sha256:
        row["lfs"] = {"oid": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
        if xet_hash := request.hub.store.xet_hashes.get(entry.sha256):
            row["xetHash"] = xet_hash
    return row


def describe_file(entry: Entry, with_blobs: bool) -> dict:
    row = {"rfilename": entry.path}
    if with_blobs:
        row |= {"size": entry.size, "blobId": entry.oid}
        if entry.sha256:
            row["lfs"] = {"sha256": entry.sha256, "size": entry.size, "pointerSize": entry.pointer_size}
    return row


@route("GET", "/api/{kind}/{owner}/{name}")
@route("GET", "/api/{kind}/{owner}/{name}/revision/{revision}")
def describe(request, kind, owner, name, revision="main"):
    repository = find(request, kind, owner, name)
    commit = repository.resolve(revision)
    files = {entry.path: entry for entry in repository.entries(commit) if entry.kind == "blob"}
    card = read_front_matter(repository.read(files["README.md"].oid).decode()) if "README.md" in files else None
    latest = repository.history(commit)[0]["date"]
    facts = {
        "_id": repository.name,
        "id": repository.name,
        "author": owner,
        "sha": commit,
        "private": repository.is_private,
        "gated": False,
        "disabled": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": latest,
        "lastModified": latest,
        "tags": (card or {}).get("tags") or [],
        "siblings": [describe_file(entry, "blobs" in request.query) for entry in files.values()],
        "cardData": card or {},
    }
    facts |= {key: card[key] for key in ("library_name", "pipeline_tag", "model-index") if key in (card or {})}
    if "expand" in request.query:
        facts = {key: value for key, value in facts.items() if key in ("_id", "id", *request.query["expand"])}
    return 200, facts, {}


@route("GET", "/api/{kind}/{owner}/{name}/tree/{revision}")
@route("GET", "/api/{kind}/{owner}/{name}/tree/{revision}/{folder*}")
def list_tree(request, kind, owner, name, revision, folder=""):
    repository = find(request, kind, owner, name)
    commit, prefix = repository.resolve(revision), f"{folder}/" if folder else ""
    entries = [entry for entry in repository.entries(commit) if entry.path.startswith(prefix)]
    if folder and not entries:
        raise HubError(404, f"{folder} does not exist", "EntryNotFound", {"X-Repo-Commit": commit})
    if request.query.get("recursive", ["false"])[0].lower() != "true":
        entries = [entry for entry in entries if "/" not in entry.path.removeprefix(prefix)]
    return 200, [describe_entry(request, entry) for entry in entries], {}


@route("POST", "/api/{kind}/{owner}/{name}/paths-info/{revision}")
def list_paths(request, kind, owner, name, revision):
    repository = find(request, kind, owner, name)
    wanted = parse_qs(request.body.decode()).get("paths", [])
    entries = {entry.path: entry for entry in repository.entries(repository.resolve(revision))}
    return 200, [describe_entry(request, entries[path]) for path in wanted if path in entries], {}


@route("GET", "/api/{kind}/{owner}/{name}/refs")
def list_references(request, kind, owner, name):
    groups = {"branches": "refs/heads/", "tags": "refs/tags/", "pullRequests": "refs/pr/"}
    references = find(request, kind, owner, name).references()
    answer = {
        group: [
            {"name": reference.removeprefix(prefix), "ref": reference, "targetCommit": commit}
            for reference, commit in references.items()
            if reference.startswith(prefix)
        ]
        for group, prefix in groups.items()
    }
    return 200, {**answer, "converts": []}, {}


@route("GET", "/api/{kind}/{owner}/{name}/commits/{revision}")
def list_commits(request, kind, owner, name, revision):
    repository = find(request, kind, owner, name)
    return 200, repository.history(repository.resolve(revision)), {}


@route("POST", "/api/{kind}/{owner}/{name}/{what}/{reference}")
def create_reference(request, kind, owner, name, what, reference):
    if what == "preupload":
        return prepare_upload(request, kind, owner, name, reference)
    if what == "commit":
        return commit(request, kind, owner, name, reference)
    if what not in ("branch", "tag"):
        raise HubError(404, f"Not found: {what}")
    repository, wanted = find(request, kind, owner, name, to_write=True), read_json(request)
    # a branch is named by the address and a tag by the body
    full = f"refs/heads/{reference}" if what == "branch" else f"refs/tags/{wanted['tag']}"
    if full in repository.references():
        raise HubError(409, "Reference already exists")
    start = wanted.get("startingPoint") or "main" if what == "branch" else reference
    repository.git("update-ref", full, repository.resolve(start))
    return 200, {}, {}


def find_to_commit(request, kind: str, owner: str, name: str, revision: str) -> Repository:
    """A pull request may be opened by anyone, and gone on with by who opened it."""
    repository = find(request, kind, owner, name)
    own = [f"refs/pr/{pull['num']}" for pull in repository.pull_requests if pull["author"]["name"] == request.user]
    opens = request.query.get("create_pr") == ["1"]
    return find(request, kind, owner, name, to_write=not (opens or revision in own) or request.user is None)


def prepare_upload(request, kind, owner, name, revision):
    repository = find_to_commit(request, kind, owner, name, revision)
    entries = {entry.path: entry for entry in repository.entries(repository.resolve(revision))}
    files = []
    for wanted in read_json(request)["files"]:
        path = wanted["path"]
        row = {"path": path, "uploadMode": "lfs" if is_large(path, wanted["size"]) else "regular"}
        if path in entries:
            row["oid"] = entries[path].sha256 or entries[path].oid
        files.append({**row, "shouldIgnore": False})
    return 200, {"files": files}, {}


def read_changes(request, lines: list[dict], paths: set[str]) -> dict[str, bytes | None]:
    """Give the content of every path that a commit changes; `None` deletes.

    Raises:
        HubError: A path leaves the repository or is missing, or a large file has not been uploaded.
    """
    changes: dict[str, bytes | None] = {}
    for line in lines:
        value, path = line["value"], line["value"]["path"]
        if path.startswith(("/", '"')) or "\n" in path or {"..", ".git"} & set(path.split("/")):
            raise HubError(400, f"Invalid path {path}")
        if line["key"] == "file":
            changes[path] = base64.b64decode(value["content"])
        elif line["key"] == "lfsFile":
            size = request.hub.store.find(value["oid"])
            if size is None:
                raise HubError(400, "an LFS pointer points to a file that does not exist")
            changes[path] = write_pointer(value["oid"], size)
        elif line["key"] == "deletedFile" and path in paths:
            changes[path] = None
        elif line["key"] == "deletedFolder":
            changes |= {name: None for name in paths if name.startswith(f"{path.rstrip('/')}/")}
        else:
            raise HubError(404, "A file with this name doesn't exist", "EntryNotFound")
    return changes


def commit(request, kind, owner, name, revision):
    repository = find_to_commit(request, kind, owner, name, revision)
    user, parent = need_user(request), repository.resolve(revision)
    header, *lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if header["value"].get("parentCommit", parent) not in (parent, None):
        raise HubError(412, "A commit has happened since. Please refresh and try again.")
    changes = read_changes(request, lines, {entry.path for entry in repository.entries(parent)})
    readme = changes.get("README.md")
    if readme and (errors := find_card_errors(read_front_matter(readme.decode()) or {})):
        raise HubError(400, "; ".join(errors))
    title, answer = header["value"]["summary"], {}
    reference = revision if revision.startswith("refs/") else f"refs/heads/{revision}"
    if request.query.get("create_pr") == ["1"]:
        number = open_pull_request(request, repository, title, parent)["num"]
        reference = f"refs/pr/{number}"
        answer["pullRequestUrl"] = f"{url_of(request, repository)}/discussions/{number}"
    oid = repository.commit(reference, parent, changes, title, user)
    answer |= {"success": True, "commitOid": oid, "commitUrl": f"{url_of(request, repository)}/commit/{oid}"}
    return 200, answer, {}


def open_pull_request(request, repository: Repository, title: str, parent: str) -> dict:
    pull = {
        "num": len(repository.pull_requests) + 1,
        "title": title,
        "author": {"name": need_user(request)},
        "createdAt": format_time(time.time()),
        "status": "open",
        "repo": {"name": repository.name, "type": repository.kind},
        "isPullRequest": True,
        "changes": {"base": "refs/heads/main"},
        "filesWithConflicts": [],
        "events": [],
    }
    repository.pull_requests.append(pull)
    repository.git("update-ref", f"refs/pr/{pull['num']}", parent)
    return pull


@route("POST", "/api/{kind}/{owner}/{name}/discussions")
def open_discussion(request, kind, owner, name):
    wanted, repository = read_json(request), find(request, kind, owner, name)
    if not wanted.get("pullRequest"):
        raise HubError(404, "only pull requests are there")
    return 200, open_pull_request(request, repository, wanted["title"], repository.resolve("main")), {}


@route("GET", "/api/{kind}/{owner}/{name}/discussions/{number}")
def describe_discussion(request, kind, owner, name, number):
    repository = find(request, kind, owner, name)
    for pull in repository.pull_requests:
        if str(pull["num"]) == number:
            return 200, pull, {}
    raise HubError(404, "Discussion not found")


@route("GET", "/api/{kind}/{owner}/{name}/{access}-token/{revision}")
def give_xet_token(request, kind, owner, name, access, revision):
    if access == "xet-write":
        find_to_commit(request, kind, owner, name, revision)
    else:
        find(request, kind, owner, name)
    return request.hub.store.give_token()


@route("POST", "/{owner}/{name}.git/info/lfs/objects/batch")
def start_large_files(request, owner, name):
    find(request, "model", owner, name)
    need_user(request)
    rows, wanted = [], read_json(request)
    for item in wanted["objects"]:
        row = {"oid": item["oid"], "size": item["size"]}
        if request.hub.store.find(item["oid"]) is None:
            upload = request.hub.store.sign(request.hub.store_endpoint, "PUT", item["oid"])
            verify = f"{request.hub.endpoint}/{owner}/{name}.git/info/lfs/objects/verify"
            row["actions"] = {"upload": {"href": upload}, "verify": {"href": verify}}
        rows.append(row)
    return 200, {"transfer": "basic", "objects": rows}, {"Content-Type": "application/vnd.git-lfs+json"}


@route("POST", "/{owner}/{name}.git/info/lfs/objects/verify")
def verify_large_file(request, owner, name):
    find(request, "model", owner, name, to_write=True)
    wanted = read_json(request)
    if request.hub.store.find(wanted["oid"]) != wanted["size"]:
        raise HubError(404, "Object not found")
    return 200, {}, {}


@route("GET HEAD", "/datasets/{owner}/{name}/resolve/{revision}/{path*}")
def resolve_dataset_file(request, owner, name, revision, path):
    return resolve_file(request, owner, name, revision, path, "dataset")


@route("GET HEAD", "/{owner}/{name}/resolve/{revision}/{path*}")
def resolve_file(request, owner, name, revision, path, kind="model"):
    repository = find(request, kind, owner, name)
    commit = repository.resolve(revision)
    entry = repository.find(commit, path)
    headers = {"X-Repo-Commit": commit, "Content-Type": "text/plain; charset=utf-8"}
    if entry.sha256 is None:
        return 200, repository.read(entry.oid), {**headers, "ETag": f'"{entry.oid}"'}
    # to another origin: of one that stays on this one the client would not see the headers
    headers["Location"] = request.hub.store.sign(request.hub.store_endpoint, "GET", entry.sha256)
    headers |= {"X-Linked-ETag": f'"{entry.sha256}"', "X-Linked-Size": str(entry.size)}
    if xet_hash := request.hub.store.xet_hashes.get(entry.sha256):
        token = f"{request.hub.endpoint}/api/{kind}s/{repository.name}/xet-read-token/{commit}"
        headers |= {"X-Xet-Hash": xet_hash, "Link": f'<{token}>; rel="xet-auth"'}
    return 302, b"", headers
