"""Checkpoints under Hub names: what every training starts from, resumes with, and says when it cannot be had."""

import json
import shutil
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.documents import find_script

NAME = "FacebookAI/roberta-base"

UPLOAD = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo("FacebookAI/roberta-base", exist_ok=True)
HfApi().upload_folder(repo_id="FacebookAI/roberta-base", folder_path=sys.argv[1], ignore_patterns="*.md")
"""
FINGERPRINTS = """
import json, sys
from huggingface_hub import HfApi, constants
from classformer_hf.checkpoints import checkpoint_fingerprint

name, found = "FacebookAI/roberta-base", []
HfApi().create_repo(name)
for file in ("config.json", "model.safetensors"):
    commit = HfApi().upload_file(repo_id=name, path_in_repo=file, path_or_fileobj=f"{sys.argv[1]}/{file}").oid
    found.append([f"{name}@{commit}", checkpoint_fingerprint(name), checkpoint_fingerprint(name)])
constants.HF_HUB_OFFLINE = True
found[-1].append(checkpoint_fingerprint(name))
print(json.dumps(found))
"""
CHANGE = """
from huggingface_hub import HfApi

HfApi().upload_file(repo_id="FacebookAI/roberta-base", path_in_repo="note.txt", path_or_fileobj=b"a new commit")
"""
REFUSED = """
import json, sys
from huggingface_hub import HfApi, constants
from classformer_hf.checkpoints import checkpoint_fingerprint, load_from_encoder
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.evaluation import resolve_folder


def ask(name):
    found = []
    for function in (checkpoint_fingerprint, load_from_encoder, load_tokenizer, resolve_folder):
        try:
            function(name)
            found.append("no error")
        except (OSError, ValueError) as error:
            found.append(str(error))
    return found


HfApi().create_repo("alice/empty")
HfApi().create_repo("alice/gated")
HfApi().create_repo("alice/damaged")
for file, content in (("config.json", b"{"), ("vocab.txt", b"")):
    HfApi().upload_file(repo_id="alice/damaged", path_in_repo=file, path_or_fileobj=content)
names = ("alice/missing", "alice/gated", "alice/damaged", "alice/empty", "two words")
found = {name: ask(name) for name in names}
constants.HF_HUB_OFFLINE = True
found["alice/offline"] = ask("alice/offline")
print(json.dumps(found))
"""
RUN = """
import json, os, runpy, sys

commands = json.loads(sys.argv[1])
found = []
for path, *flags in commands:
    sys.argv = [path, *flags]
    sys.path.insert(0, os.path.dirname(path))  # as Python does for a script
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except SystemExit as exit_:
        found.append(exit_.code or 0)
print(json.dumps(found))
"""


@pytest.fixture
def facebook(hub):
    """Let somebody else publish the checkpoint."""
    hub.users["FacebookAI"] = "hf_FacebookAI"
    return {"token": "hf_FacebookAI"}


@pytest.mark.slow
def test_fingerprint_of_a_hub_name_is_its_commit(client, facebook, tiny_roberta_folder):
    first, second = json.loads(client(FINGERPRINTS, tiny_roberta_folder, **facebook).splitlines()[-1])
    # asked twice, and from the cache
    assert len(set(first)) == len(set(second)) == 1 and first != second


@pytest.mark.slow
def test_why_a_name_cannot_be_had_is_told_apart(hub, client):
    hub.fail(
        "(HEAD|GET) /alice/gated/resolve|GET .*/alice/gated/(revision|tree)", 403, 99, {"X-Error-Code": "GatedRepo"}
    )
    found = json.loads(client(REFUSED).splitlines()[-1])
    for name, words in {
        "alice/missing": "there is no folder `alice/missing`, and on the Hub no such model, or it is private",
        "alice/gated": "`alice/gated` is gated: accept its terms on its page on the Hub",
        "two words": "there is no folder `two words`, and it is no name on the Hub, which is OWNER/MODEL",
        "alice/offline": "no such model in the cache, while HF_HUB_OFFLINE forbids to ask the Hub",
    }.items():
        assert all(words in message for message in found[name]), found[name]
    for message, words in zip(
        found["alice/damaged"] + found["alice/empty"],
        [*["a JSON file of `alice/damaged` is damaged"] * 3, "its config.json cannot be read"]
        + [*["`alice/empty` on the Hub has no config.json"] * 2, "holds no tokenizer", "it has no config.json"],
        strict=True,
    ):
        assert words in message, (words, message)


def list_commands(output: Path, data: Path, other: Path, text: Path) -> list[list[str]]:
    """Give every training, from a checkpoint under a Hub name, with the folder it fills."""
    common = ("--model_name_or_path", NAME, "--use_cpu", "--disable_tqdm", "True", "--save_strategy", "no")
    common += ("--load_best_model_at_end", "False", "--eval_strategy", "no", "--max_steps", 2)
    task = ("--dataset_name", data, "--max_length", 32)
    gamma = ("--gamma", 1, 2, 1)
    search = ("--max_trials", 2, "--rounds", 1, "--strategy", "thesis", "--force")
    commands = [
        ["search_classformer", *task, *search],
        ["train_classformer", *task, *gamma],
        ["pretrain_classformer", "--dataset_name", text, *gamma, "--block_size", 16, "--max_validation_blocks", 4],
        ["train_multitask", "--dataset_names", data, other, "--max_length", 32, *gamma, "--logging_steps", 1],
        ["peers", *task, "--schedules", "1-2-1_eta0", "--rounds", 1, "--num_inputs", 2],
    ]
    for command in commands:
        command += [*common, "--output_dir", output / command[0]]
    return [list(map(str, command)) for command in commands]


@pytest.mark.slow
def test_every_training_starts_and_resumes_from_a_hub_name(
    hub, client, facebook, tmp_path, tiny_roberta_two_labels, tiny_text_file
):
    other, text = tmp_path / "other.csv", tmp_path / "text.txt"
    other.write_text("sentence,label\n" + "".join(f"film number {n} is a film,{n % 3}\n" for n in range(60)))
    text.write_text("a warm and clever film that works in every scene\n" * 60)
    commands = list_commands(tmp_path / "runs", tiny_text_file, other, text)

    def run_all(**environment):
        paths = [[str(find_script(name)), *flags] for name, *flags in commands]
        return json.loads(client(RUN, json.dumps(paths), **environment).splitlines()[-1])

    checkpoint = shutil.copytree(tiny_roberta_two_labels, tmp_path / "checkpoint")
    settings = json.loads((checkpoint / "tokenizer_config.json").read_text())
    # as old checkpoints have it: nobody says how long an input may be
    del settings["model_max_length"]
    (checkpoint / "tokenizer_config.json").write_text(json.dumps(settings))
    client(UPLOAD, checkpoint, **facebook)
    assert run_all() == [0] * len(commands)
    folders = {path.parent for path in (tmp_path / "runs").rglob("tokenizer_config.json")}
    assert {folder.relative_to(tmp_path / "runs").parts[0] for folder in folders} == {name for name, *_ in commands}
    for folder in folders:
        assert AutoTokenizer.from_pretrained(folder).model_max_length == 64, folder
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.safetensors")}
    assert {path.relative_to(tmp_path / "runs").parts[0] for path in written} == {name for name, *_ in commands}
    # nothing is trained again; of the Hub the cache is left
    assert run_all(HF_HUB_OFFLINE="1") == [0] * len(commands)
    assert {path: path.stat().st_mtime_ns for path in written} == written
    client(CHANGE, **facebook)
    for (name, *_), code in zip(commands, run_all(), strict=True):
        assert "--model_name_or_path" in str(code) and "use another --output_dir" in str(code), (name, code)
