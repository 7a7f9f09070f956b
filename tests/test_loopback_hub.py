"""The stock clients against the loopback Hub: what the other tests of publishing and loading stand on."""

import importlib.metadata
import json
import re
import time
from pathlib import Path

import pytest

from tests.conftest import run_client
from tests.loopback_hub import Hub

PINNED_XET = "1.8.0"


def skip_without_xet():
    version = importlib.metadata.version("hf-xet")
    if version != PINNED_XET:
        pytest.skip(f"`local://` storage of hf-xet is not documented; it was tried with {PINNED_XET}, not {version}")


@pytest.fixture(params=["lfs", pytest.param("xet", marks=pytest.mark.slow)])
def any_hub(request, tmp_path):
    """A Hub that stores large files as LFS or by Xet."""
    if request.param == "xet":
        skip_without_xet()
    users = {name: f"hf_{name}" for name in ("alice", "bob", "rita")}
    hub = Hub(tmp_path / "hub", users, readers=("rita",), with_xet=request.param == "xet").start()
    yield hub
    hub.stop()


SESSION = """
import json, sys
from pathlib import Path
import torch
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download, snapshot_download
from safetensors.torch import save_file

folder, found, api = Path(sys.argv[1]), {}, HfApi()
(folder / "sub").mkdir(parents=True)
save_file({"w": torch.randn(300_000)}, folder / "model.safetensors")
(folder / "config.json").write_text("{}")
(folder / "sub" / "a b é.txt").write_text("hi")


def refused(function, *arguments, **keywords):
    try:
        function(*arguments, **keywords)
    except Exception as error:
        return type(error).__name__
    return "not refused"


name = "alice/demo"
found["user"] = api.whoami()["name"]
api.create_repo(name)
found["again"] = api.create_repo(name, exist_ok=True).repo_id
first = api.upload_folder(repo_id=name, folder_path=folder)
found["unchanged"] = api.upload_folder(repo_id=name, folder_path=folder).oid == first.oid
found["files"] = api.list_repo_files(name)
copy = Path(snapshot_download(name))
found["same"] = [(copy / f).read_bytes() == (folder / f).read_bytes() for f in ("model.safetensors", "sub/a b é.txt")]
second = api.create_commit(
    name, [CommitOperationAdd("new.txt", b"1"), CommitOperationDelete("sub/")], commit_message="second",
    parent_commit=first.oid,
)
found["files after"] = api.list_repo_files(name)
found["history"] = [commit.title for commit in api.list_repo_commits(name)][::2]
found["old revision"] = Path(hf_hub_download(name, "sub/a b é.txt", revision=first.oid)).read_text()
api.create_branch(name, branch="feat/x", revision=first.oid)
api.create_tag(name, tag="v1", revision=first.oid)
references = api.list_repo_refs(name)
found["references"] = sorted(r.name for r in references.branches + references.tags)
found["on a branch"] = api.file_exists(name, "sub/a b é.txt", revision="feat/x")
found["sizes"] = {s.rfilename: s.size for s in api.model_info(name, files_metadata=True).siblings}
found["paths"] = [p.path for p in api.get_paths_info(name, ["config.json", "nothing"])]
bob, rita, nobody = (HfApi(token=token) for token in ("hf_bob", "hf_rita", False))
add = lambda: [CommitOperationAdd("pr.txt", b"1")]  # an operation serves once
pull = bob.create_commit(name, add(), commit_message="mine", create_pr=True)
found["pull request"] = [pull.pr_revision, api.file_exists(name, "pr.txt", revision=pull.pr_revision)]
api.create_repo("alice/secret", private=True)
api.upload_file(path_or_fileobj=folder / "model.safetensors", path_in_repo="model.safetensors", repo_id="alice/secret")
found["refused"] = {
    "stale parent": refused(api.create_commit, name, add(), commit_message="x", parent_commit=first.oid),
    "another's repository": refused(bob.create_commit, name, add(), commit_message="x"),
    "reader creates": refused(rita.create_repo, "rita/x"),
    "missing file": refused(hf_hub_download, name, "nothing"),
    "missing revision": refused(hf_hub_download, name, "new.txt", revision="zz"),
    "private, another": refused(bob.model_info, "alice/secret"),
    "private, nobody": refused(nobody.model_info, "alice/secret"),
    "private file, nobody": refused(hf_hub_download, "alice/secret", "model.safetensors", token=False),
    "broken card": refused(api.upload_file, path_or_fileobj=b"---\\nlicense: [\\n---\\n", path_in_repo="README.md",
                           repo_id=name),
    "wrong token": refused(HfApi(token="hf_wrong").whoami),
}
print(json.dumps(found))
"""


def test_stock_client_finds_a_hub(any_hub, tmp_path):
    found = json.loads(run_client(any_hub, tmp_path, SESSION, tmp_path / "folder").splitlines()[-1])
    sizes = found.pop("sizes")
    assert sizes["config.json"] == 2 and sizes["model.safetensors"] == 1_200_080
    assert found == {
        "user": "alice",
        "again": "alice/demo",
        "unchanged": True,
        "files": [".gitattributes", "config.json", "model.safetensors", "sub/a b é.txt"],
        "same": [True, True],
        "files after": [".gitattributes", "config.json", "model.safetensors", "new.txt"],
        "history": ["second", "initial commit"],
        "old revision": "hi",
        "references": ["feat/x", "main", "v1"],
        "on a branch": True,
        "paths": ["config.json"],
        "pull request": ["refs/pr/1", True],
        "refused": {
            "stale parent": "HfHubHTTPError",
            "another's repository": "HfHubHTTPError",
            "reader creates": "HfHubHTTPError",
            "missing file": "RemoteEntryNotFoundError",
            "missing revision": "RevisionNotFoundError",
            "private, another": "RepositoryNotFoundError",
            "private, nobody": "RepositoryNotFoundError",
            "private file, nobody": "RepositoryNotFoundError",
            "broken card": "ValueError",
            "wrong token": "HfHubHTTPError",
        },
    }
    paths = [path for _, _, path, _, _ in any_hub.requests]
    with_xet = any_hub.store.with_xet
    assert any("xet-write-token" in path for path in paths) == with_xet
    assert any("/info/lfs/" in path for path in paths) != with_xet
    assert not any(has_token for origin, *_, has_token in any_hub.requests if origin == "store")
    any_hub.repositories["model", "alice/demo"].git("fsck", "--strict")


UPLOAD = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo("alice/demo", exist_ok=True)
print(HfApi().upload_folder(repo_id="alice/demo", folder_path=sys.argv[1]).oid)
"""
DOWNLOAD = """
from huggingface_hub import snapshot_download

print(snapshot_download("alice/demo"))
"""


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for name in ("one", "two"):
        (folder / f"{name}.bin").write_bytes(name.encode() * 100_000)
    (folder / "config.json").write_text("{}")
    return folder


def test_upload_goes_on_after_the_server_died(any_hub, tmp_path, folder):
    # when the large files have arrived, and their commit has not
    any_hub.fail("POST .*/commit/main", status=None)
    process = run_client(any_hub, tmp_path, UPLOAD, folder, check=False)
    assert process.returncode != 0
    any_hub.start()
    oid = run_client(any_hub, tmp_path, UPLOAD, folder, home="another").strip()
    repository = any_hub.repositories["model", "alice/demo"]
    assert repository.resolve("main") == oid
    assert {entry.path for entry in repository.entries(oid)} >= {"one.bin", "two.bin", "config.json"}
    if not any_hub.store.with_xet:
        puts = [path for _, method, path, status, _ in any_hub.requests if method == "PUT" and status == 200]
        assert len(puts) == 2, "what had arrived was uploaded again"


@pytest.mark.slow
def test_upload_goes_on_after_the_server_died_within_a_file(hub, client, folder):
    hub.fail("PUT ", status=None)
    assert client(UPLOAD, folder, check=False).returncode != 0
    assert not list(hub.store.folder.iterdir()) or len(list(hub.store.folder.iterdir())) == 1
    hub.start()
    oid = client(UPLOAD, folder, home="another").strip()
    entries = {entry.path: entry for entry in hub.repositories["model", "alice/demo"].entries(oid)}
    for name in ("one.bin", "two.bin"):
        assert hub.store.read(entries[name].sha256) == (folder / name).read_bytes()


@pytest.mark.slow
def test_xet_upload_goes_on_after_the_hub_died_before_a_file(tmp_path, folder):
    skip_without_xet()
    hub = Hub(tmp_path / "hub", {"alice": "hf_alice"}, with_xet=True).start()
    try:
        hub.fail("GET .*/xet-write-token/.*", status=None)
        assert run_client(hub, tmp_path, UPLOAD, folder, check=False).returncode != 0
        hub.start()
        oid = run_client(hub, tmp_path, UPLOAD, folder, home="another").strip()
        entries = {entry.path: entry for entry in hub.repositories["model", "alice/demo"].entries(oid)}
        assert {"one.bin", "two.bin"} <= set(entries)
        copy = Path(run_client(hub, tmp_path, DOWNLOAD, home="reader").strip().splitlines()[-1])
        for name in ("one.bin", "two.bin"):
            assert (copy / name).read_bytes() == (folder / name).read_bytes()
    finally:
        hub.stop()


@pytest.mark.parametrize("status", [429, 503])
def test_busy_server_is_tried_again_and_said(hub, client, folder, status):
    client(UPLOAD, folder)
    # the client says nothing of a file's first failure
    hub.fail("HEAD .*/resolve/.*/one.bin", status, times=2, headers={"Retry-After": "0"})
    process = client(DOWNLOAD, home="another", check=False)
    assert process.returncode == 0, process.stderr
    assert [status for *_, status, _ in hub.requests].count(status) == 2
    assert re.search(rf"HTTP Error {status} thrown.*\n.*\[Retry 1/5\]", process.stderr), process.stderr


def test_unknown_route_is_refused_at_once(hub, client):
    started = time.monotonic()
    process = client("from huggingface_hub import HfApi; HfApi().list_models(author='x').__next__()", check=False)
    assert process.returncode != 0 and time.monotonic() - started < 20
