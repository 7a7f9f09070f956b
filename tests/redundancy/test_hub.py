"""What a folder must be to be published, and the way to the Hub and back."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from redundancy_hf.folders import GOLDEN, list_files, write_golden_output
from redundancy_hf.hub import verify_folder
from tests.redundancy.damage import change_config, remove, write
from tests.test_hub_contract import BACKBONES, CONTRACTS

ROOT = Path(__file__).parents[2]


def test_links_out_of_the_folder_are_named(run, folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    code, _, words = run("publish", folder, "--repo_id", "alice/x", "--license", "mit", "--dry_run")
    assert code == 1 and "model.safetensors lead out of the folder" in words and "cp -rL" in words


def test_changed_weights_are_noticed(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.out_proj.weight"] *= 1.1
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="model.safetensors is not the file that was saved"):
        verify_folder(folder)


def test_changed_code_is_noticed(folder):
    path = folder / "modeling_classformer.py"
    changed = path.read_text().replace("logits=logits", "logits=1.1 * logits")
    assert "1.1 * logits" in changed
    path.write_text(changed)
    with pytest.raises(ValueError, match="gives another output than was stored with it"):
        verify_folder(folder)


def test_weights_that_do_not_fit_are_noticed(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop("classifier.out_proj.weight")
    tensors["classifier.dense.weight"] = tensors["classifier.dense.weight"][1:]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / GOLDEN).unlink()
    with pytest.raises(ValueError, match="do not fit the code") as error:
        verify_folder(folder)
    assert "'missing_keys': ['classifier.out_proj.weight']" in str(error.value)
    assert "'mismatched_keys': [\"('classifier.dense.weight'," in str(error.value)


def test_incomplete_auto_map_is_noticed(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    auto_map.pop("AutoModelForMaskedLM")
    change_config(auto_map=auto_map)(folder)
    with pytest.raises(ValueError, match="lacks .*AutoModelForMaskedLM"):
        verify_folder(folder)


def build(contract, tiny_settings, folder):
    """Save a model of the folder contract as a training does."""
    torch.manual_seed(0)
    model = contract.build(tiny_settings)
    model.save_pretrained(folder)
    write_golden_output(model, folder)
    return model


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.slow
def test_text_model_is_published(hub, client, folder, tmp_path):
    before = contents(folder)
    dry = client("publish", folder, "--repo_id", "alice/text", "--license", "mit", "--dry_run", token=None)
    assert "verified: ClassformerForSequenceClassification" in dry and "output within" in dry
    assert "model.safetensors" in dry and "not pushed" in dry and "training_args.bin" in dry
    assert hub.requests == []
    printed = client("publish", folder, "--repo_id", "alice/text", "--license", "mit")
    assert "read back: ClassformerForSequenceClassification" in printed
    assert contents(folder) == before
    repository = hub.repositories["model", "alice/text"]
    assert [commit["title"] for commit in repository.history("main")] == ["Add model", "initial commit"]
    assert repository.resolve("main") in printed and "hf_alice" not in printed


@pytest.mark.slow
def test_encoder_of_several_tasks_is_published(run, hub, client, tmp_path, tiny_roberta_folder, tiny_text_file):
    other = tmp_path / "other.csv"
    other.write_text("sentence,label\n" + "".join(f"film number {n} is a film,{n % 3}\n" for n in range(60)))
    code, _, words = run(
        *("train_multitask", "--model_name_or_path", tiny_roberta_folder, "--gamma", 1, 2, 1, "--max_length", 32),
        *("--dataset_names", tiny_text_file, other, "--max_steps", 2, "--use_cpu", "--save_strategy", "no"),
        *("--disable_tqdm", "True", "--output_dir", tmp_path / "several"),
    )
    assert code == 0, words
    printed = client("publish", tmp_path / "several", "--repo_id", "alice/several", "--license", "mit")
    assert "read back: ClassformerModel" in printed and "output within" in printed


@pytest.mark.slow
def test_second_push_replaces_the_first(hub, client, folder):
    # a busy Hub is tried again, and that is said
    hub.fail("POST .*/commit/main", status=503, times=1)
    process = client("publish", folder, "--repo_id", "alice/text", "--license", "mit", check=False)
    assert process.returncode == 0 and "the Hub answers 503; trying again in 1 s" in process.stderr, process.stderr
    process = client("publish", folder, "--repo_id", "alice/text", "--license", "mit", "--private", check=False)
    assert process.returncode == 1 and "alice/text is public" in process.stderr
    printed = client("publish", folder, "--repo_id", "alice/text", "--license", "mit")
    assert "nothing has changed since" in printed
    repository = hub.repositories["model", "alice/text"]
    # what a second push no longer has must not be loaded with it; what others have added stays
    others = {"handler.py": b"1", "LICENSE": b"2", "onnx/model.safetensors": b"3", "data/arrays.npz": b"4"}
    changes = {**others, "layers_old.py": b"5", "model-00001-of-00002.safetensors": b"6"}
    repository.commit("refs/heads/main", repository.resolve("main"), changes, "x", "alice")
    client("publish", folder, "--repo_id", "alice/text", "--license", "mit", "--create_pr")
    process = client("publish", folder, "--repo_id", "alice/text", "--license", "mit", "--revision", "v2", check=False)
    assert process.returncode == 0
    assert "no longer has them: layers_old.py, model-00001-of-00002.safetensors" in process.stderr
    names = {reference: {entry.path for entry in repository.entries(reference)} for reference in ("main", "v2")}
    assert names["main"] - names["v2"] == {"layers_old.py", "model-00001-of-00002.safetensors"}
    assert set(others) <= names["v2"]
    assert "refs/pr/1" in repository.references()


@pytest.mark.slow
def test_backbone_is_published(hub, client, tmp_path, tiny_settings):
    model = build(BACKBONES[0], tiny_settings, tmp_path / "model")
    printed = client("publish", "--folder", tmp_path / "model", "--repo_id", "alice/x", "--license", "mit", "--private")
    assert f"read back: {type(model).__name__}" in printed and "output within" in printed
    assert hub.repositories["model", "alice/x"].is_private


@pytest.mark.parametrize(
    "change, flags, message",
    [
        (write("config.json", "[]"), (), "its config.json cannot be read"),
        (write("config.json", "{}"), (), "its config.json cannot be read"),
        (change_config(architectures=3), (), "must be a list of names"),
        (write("README.md", "---\nlicense: [\n---\n"), (), "README.md has unreadable metadata"),
        (lambda folder: None, ("--create_pr", "--revision", "x"), "leave --revision out"),
        (shutil.rmtree, (), "is no folder"),
        (lambda folder: None, ("--repo_id", "a b/c/d"), "--repo_id must be a name on the Hub"),
        (lambda folder: None, ("--repo_id", "model"), "model has no owner"),
        (remove("tokenizer.json"), (), "a file of the tokenizer is missing"),
        (lambda folder: None, ("--license", "gibberish !!"), "--license must be an identifier that the Hub lists"),
        (lambda folder: None, ("--license", "apache"), "did you mean apache-2.0"),
        (lambda folder: None, ("--license", "bert"), "for one that it does not list, write other"),
        (write("README.md", "---\nbase_model: a/b/c\n---\n"), (), "base_model must name repositories on the Hub"),
        (write("README.md", "---\nlicense: mit\ndatasets: [null]\n---\n"), (), "datasets must be texts"),
    ],
)
def test_bad_folders_and_flags_end_with_one_sentence(run, folder, change, flags, message):
    change(folder)
    code, _, words = run("publish", folder, "--repo_id", "alice/x", "--license", "mit", "--dry_run", *flags)
    assert code == 1 and re.search(message, words), words


KINDS = {contract.name: contract for contract in [*CONTRACTS, *BACKBONES]}
# a classifier of texts is, above
QUICK = (BACKBONES[0].name, "avae_3d")


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in KINDS])
def test_models_of_all_kinds_are_verified(tmp_path, tiny_settings, name):
    model = build(KINDS[name], tiny_settings, tmp_path / "model")
    assert verify_folder(tmp_path / "model").model_class == type(model).__name__


def test_missing_token_says_how_to_log_in(hub, client, folder):
    process = client("publish", folder, "--repo_id", "alice/x", "--license", "mit", token=None, check=False)
    assert process.returncode == 1 and "run `hf auth login`, or set HF_TOKEN" in process.stderr
    assert hub.repositories == {}


@pytest.mark.slow
def test_wrong_token_is_no_reason_to_go_on(hub, client, folder):
    for token, name in (("hf_wrong", "alice/x"), ("hf_bob", "alice/x")):
        process = client("publish", folder, "--repo_id", name, "--license", "mit", token=token, check=False)
        assert process.returncode == 1 and "the Hub refuses" in process.stderr, process.stderr
        assert "`hf auth login` with a token that may write to alice/x" in process.stderr
        assert "To go on" not in process.stderr


@pytest.mark.slow
def test_interrupted_push_goes_on(hub, client, folder, tmp_path):
    before = contents(folder)
    hub.fail("POST .*/commit/main", status=None)
    command = ("publish", folder, "--repo_id", "alice/text", "--license", "mit")
    process = client(*command, check=False)
    assert process.returncode == 1
    assert "the push stopped" in process.stderr and "is unchanged. To go on: " in process.stderr
    assert "--repo_id alice/text --license mit" in process.stderr and "Traceback" not in process.stderr
    assert contents(folder) == before
    hub.start()
    assert "read back" in client(*command, home="another")
    puts = [path for _, method, path, status, _ in hub.requests if method == "PUT" and status == 200]
    assert len(puts) == 2, "what had arrived was uploaded again"


@pytest.mark.slow
def test_stopped_by_hand_says_how_to_go_on(hub, folder, tmp_path):
    hub.fail("POST .*/preupload/main", status=503, times=100)
    environment = {**os.environ, **hub.environment(tmp_path / "home", "hf_alice")}
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts" / "publish.py", folder, "--repo_id", "alice/text", "--license", "mit"],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not any("preupload" in path for _, _, path, _, _ in hub.requests) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    words = process.communicate(timeout=60)[1]
    assert "is unchanged. To go on: " in words and "stopped by hand" in words and "Traceback" not in words
    assert process.returncode == 130


PUSH = """
import sys
from transformers import AutoModelForSequenceClassification, AutoTokenizer, Trainer, TrainingArguments
import avae_hf, classformer_hf, vision_hf

def train(name, model, example, **parts):
    arguments = TrainingArguments(
        name, max_steps=1, report_to="none", use_cpu=True, hub_model_id=f"alice/{name}-by-trainer"
    )
    trainer = Trainer(model, arguments, train_dataset=[example] * 4, **parts)
    trainer.train()
    trainer.push_to_hub()

text, image, shape = sys.argv[1:]
model = AutoModelForSequenceClassification.from_pretrained(text)
tokenizer = AutoTokenizer.from_pretrained(text)
model.push_to_hub("alice/text-by-model", commit_message="by the model")
model.push_to_hub("alice/text-sharded", max_shard_size="20KB")
train("text", model, {**tokenizer("a film"), "labels": 1}, processing_class=tokenizer)
import torch
model = vision_hf.SharedXceptionForImageClassification.from_pretrained(image)
model.push_to_hub("alice/image-by-model")
train("image", model, {"pixel_values": torch.rand(3, 16, 16), "labels": 1})
model = avae_hf.AVAEModel.from_pretrained(shape)
model.push_to_hub("alice/shape-by-model")
train("shape", model, {"pixel_values": torch.rand(1, 16, 16)})
"""


PULL = """
import sys
from huggingface_hub import snapshot_download

for name in sys.argv[2:]:
    snapshot_download(f"alice/{name}", local_dir=f"{sys.argv[1]}/{name}")
"""


PUSHED = {
    "text-by-model": "ClassformerForSequenceClassification",
    "text-sharded": "ClassformerForSequenceClassification",
    "text-by-trainer": "ClassformerForSequenceClassification",
    "image-by-model": "SharedXceptionForImageClassification",
    "image-by-trainer": "SharedXceptionForImageClassification",
    "shape-by-model": "AVAEModel",
    "shape-by-trainer": "AVAEModel",
}


@pytest.mark.slow
def test_push_to_hub_gives_what_passes_too(hub, client, folder, tmp_path, tiny_settings):
    by_name = {contract.name: contract for contract in CONTRACTS}
    for name in ("shared_xception_classifier", "avae"):
        build(by_name[name], tiny_settings, tmp_path / name)
    client(PUSH, folder, tmp_path / "shared_xception_classifier", tmp_path / "avae")
    client(PULL, tmp_path / "pulled", *PUSHED)
    for name, model_class in PUSHED.items():
        found = verify_folder(tmp_path / "pulled" / name)
        assert found.model_class == model_class and found.difference is None
    assert (tmp_path / "pulled" / "text-by-trainer" / "training_args.bin").is_file()
    assert "training_args.bin" in list_files(tmp_path / "pulled" / "text-by-trainer")[1]
