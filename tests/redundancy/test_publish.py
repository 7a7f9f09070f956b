"""What a folder must be to be published, and the way to the Hub and back."""

import ast
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
from huggingface_hub import EvalResult, ModelCard
from safetensors.torch import load_file, save_file

from redundancy_hf.cards import add_results, complete_card, latency_results, name_dataset, write_section
from redundancy_hf.folders import GOLDEN, find_load_defects, list_files, write_golden_output
from redundancy_hf.hub import verify_folder
from redundancy_hf.leaks import find_leaks
from tests.test_hub_contract import BACKBONES, CONTRACTS

ROOT = Path(__file__).parents[2]
# in pieces, for a test of the documents refuses such paths
SOMEBODY = "/".join(["", "home", "somebody"])


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny_classifier_folder):
    """A classifier's folder as a training leaves it."""
    from classformer_hf import ClassformerForSequenceClassification

    folder = shutil.copytree(tiny_classifier_folder, tmp_path_factory.mktemp("finished") / "model")
    write_golden_output(ClassformerForSequenceClassification.from_pretrained(folder), folder)
    (folder / "training_args.bin").write_bytes(b"a pickle")
    (folder / "checkpoints" / "checkpoint-1").mkdir(parents=True)
    (folder / "checkpoints" / "checkpoint-1" / "model.safetensors").write_bytes(b"of a training")
    return folder


@pytest.fixture
def folder(finished, tmp_path):
    return shutil.copytree(finished, tmp_path / "model")


def change_config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))

    return change


def write(name, text):
    return lambda folder: (folder / name).write_text(text)


def remove(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def append(name, text):
    return lambda folder: (folder / name).write_text((folder / name).read_text() + text)


def truncate_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def scramble_header(folder):
    path = folder / "model.safetensors"
    path.write_bytes(b"\xff" * 8 + path.read_bytes()[8:])


def spoil_weights(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["classifier.dense.bias"][0] = float("nan")
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def use_pickle(folder):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def lose_a_shard(folder):
    index = {"metadata": {}, "weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


DEFECTS = {
    "no config": (remove("config.json"), "has no config.json"),
    "config is no JSON": (write("config.json", "{"), "config.json cannot be read"),
    "config is a list": (write("config.json", "[]"), "config.json cannot be read"),
    "config without a type": (write("config.json", "{}"), "config.json cannot be read .KeyError"),
    "code file missing": (remove("modeling_classformer.py"), "there is no modeling_classformer.py"),
    "imported file missing": (remove("configuration_classformer.py"), "there is no configuration_classformer.py"),
    "class missing": (change_config(auto_map={"AutoModel": "modeling_classformer.Nothing"}), "defines no Nothing"),
    "code is no Python": (write("modeling_classformer.py", "class"), "is no Python"),
    "path outside": (change_config(auto_map={"AutoModel": "../evil.Model"}), "not file.Class of this folder"),
    "weights missing": (remove("model.safetensors"), "no weights in safetensors"),
    "weights are a pickle": (use_pickle, "no weights in safetensors"),
    "weights truncated": (truncate_weights, "model.safetensors is damaged"),
    "weights scrambled": (scramble_header, "model.safetensors is damaged"),
    "weights with NaN": (spoil_weights, "classifier.dense.bias is not finite"),
    "shard missing": (lose_a_shard, "model-00001-of-00002.safetensors, which is missing"),
    "token": (write("notes.md", "HF_TOKEN=hf_" + "a1B2" * 9), "notes.md holds something that looks like a token"),
    "address with a password": (write("notes.md", "https://me:secret@host/x"), "looks like a token"),
    "path after a colon": (write("notes.md", f"host:{SOMEBODY}/x"), f"the path {SOMEBODY}"),
    "address of a file": (write("notes.md", f"file://{SOMEBODY}/x"), f"the path {SOMEBODY}"),
    "tokenizer's code outside": (
        write("tokenizer_config.json", '{"auto_map": {"AutoTokenizer": ["../evil.Tokenizer", null]}}'),
        "tokenizer_config.json names the code ../evil.Tokenizer, which is not file.Class",
    ),
    "code of another repository": (
        change_config(auto_map={"AutoModel": "other/repository--modeling_x.Model"}),
        "which is not file.Class of this folder",
    ),
    "architectures are a number": (change_config(architectures=3), "must be a list of names"),
    "golden output without an output": (
        lambda folder: save_file({"x": torch.ones(1)}, folder / GOLDEN),
        "output.safetensors is damaged",
    ),
    "private key": (write("key.txt", "-----BEGIN RSA PRIVATE KEY-----"), "key.txt holds something that looks like"),
    "token in code": (append("modeling_classformer.py", "# ghp_" + "a1B2" * 9), "looks like a token"),
    "home in settings": (write("settings.json", f'{{"data": "{SOMEBODY}/data"}}'), f"the path {SOMEBODY}"),
    "folder on a disk": (change_config(data="/scratch/disk7/x"), "config.json holds the path /scratch/disk7"),
    "folder that is a setting": (change_config(data="/storage/checkpoints/secret"), "holds the path /storage/check"),
    "windows disk": (change_config(data="D:\\models\\x"), "config.json holds the path D:"),
    "labels with a gap": (change_config(id2label={"0": "a", "5": "b"}), "must name the labels 0 to 1"),
    "label that is a list": (change_config(id2label={"0": ["a"], "1": "b"}), "must name the labels 0 to 1"),
    "deep config": (write("config.json", "[" * 200_000), "config.json cannot be read"),
    "deep code": (write("modeling_classformer.py", "-" * 200_000), "modeling_classformer.py is no Python"),
    "index of numbers": (write("model.safetensors.index.json", '{"weight_map": {"a": 3, "b": "x"}}'), "names 3, which"),
    "digests are a list": (
        lambda folder: save_file({"output": torch.ones(1), "x": torch.ones(1)}, folder / GOLDEN, {"weights": "[1]"}),
        "output.safetensors is damaged",
    ),
    "golden output without inputs": (
        lambda folder: save_file({"output": torch.ones(1)}, folder / GOLDEN),
        "no inputs, or no output",
    ),
    "windows folder": (write("search.json", '"C:\\\\Users\\\\somebody"'), "search.json holds the path C:"),
    "broken card": (write("README.md", "---\nlicense: [\n---\n"), "README.md has unreadable metadata"),
    "no data set": (
        write("README.md", "---\nlicense: mit\ndatasets: [null]\n---\n"),
        "datasets must be texts, got None",
    ),
    "file for a data set": (
        write("README.md", "---\ndatasets: [my data.csv]\n---\n"),
        "datasets must name",
    ),
    "folder for a base model": (write("README.md", "---\nbase_model: runs/a/b\n---\n"), "base_model must name repos"),
    "licence of no list": (write("README.md", "---\nlicense: [mit, Apache-2.0]\n---\n"), "did you mean apache-2.0?"),
    "tags that are numbers": (
        write("README.md", "---\ntags: [fast, 3]\n---\n"),
        "tags must be texts, got 3",
    ),
    "language in capitals": (write("README.md", "---\nlanguage: [en, FR]\n---\n"), "language must be a code in lower"),
    "pipeline without a name": (write("README.md", "---\npipeline_tag: 3\n---\n"), "pipeline_tag must be a text"),
    "broken model-index": (write("README.md", "---\nmodel-index: 3\n---\n"), "README.md has unreadable metadata"),
}


@pytest.mark.parametrize("change, message", DEFECTS.values(), ids=DEFECTS.keys())
def test_defects_are_named_without_running_code(folder, change, message):
    change(folder)
    found = find_load_defects(folder) + find_leaks(folder, list_files(folder)[0])
    assert any(re.search(message, defect) for defect in found), found


def test_whole_folder_has_no_defects(folder):
    assert find_load_defects(folder) + find_leaks(folder, list_files(folder)[0]) == []


def test_addresses_and_vocabularies_are_no_paths(folder):
    (folder / "README.md").write_text("see https://host/home/page and path/to/data, a/data/b, <https://x.org/data/y>")
    (folder / "vocab.txt").write_text(f"{SOMEBODY}\n")
    assert find_leaks(folder, list_files(folder)[0]) == []


def test_own_path_and_token_are_named_where_they_really_stand(folder):
    (folder / "notes.md").write_text("see https://huggingface.co/models and /models-old")
    private = {"your token": "hf_short", "the path of its own folder": "/models"}
    assert find_leaks(folder, ["notes.md"], private) == []
    (folder / "notes.md").write_text("in /models/x, with hf_short")
    assert find_leaks(folder, ["notes.md"], private) == [
        "notes.md holds your token; remove it",
        "notes.md holds the path of its own folder; remove it",
    ]


def test_links_out_of_the_folder_are_named(run, folder, tmp_path):
    (folder / "model.safetensors").rename(tmp_path / "blob")
    (folder / "model.safetensors").symlink_to(tmp_path / "blob")
    code, _, words = run("publish", folder, "--repo_id", "alice/x", "--license", "mit", "--dry_run")
    assert code == 1 and "model.safetensors lead out of the folder" in words and "cp -rL" in words


def test_form_of_a_card_is_filled_in(folder):
    (folder / "README.md").write_text("---\ntags: []\n---\n\n# Model Card for Model ID\n\n[More Information Needed]\n")
    complete_card(folder, "somebody/a-name", license="mit")
    text = (folder / "README.md").read_text()
    assert "More Information" not in text and 'name = "somebody/a-name"' in text
    assert "`gamma = [1, 2, 1]`, `eta = 1`" in text


def test_only_a_data_set_on_the_hub_is_named_as_one(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("imdb", "mrpc", "squad"):
        (tmp_path / name).mkdir()
    fields = {
        "a folder": name_dataset("imdb", {"dataset_name": "imdb"}),
        "a folder like a task": name_dataset("mrpc", {"dataset_name": "./mrpc"}),
        "embedded": name_dataset("digits", {"dataset_name": "digits"}),
        "by default": name_dataset("standard_library", {"dataset_name": None}),
        "GLUE": name_dataset("mrpc", {"dataset_name": "mrpc", "dataset_config_name": None}),
        "the Hub": name_dataset("a/b", {"dataset_name": "a/b", "dataset_config_name": "small"}),
    }
    types = {what: (found["dataset_type"], found["dataset_config"]) for what, found in fields.items()}
    assert types == {
        "a folder": ("unknown", "imdb"),
        "a folder like a task": ("unknown", "mrpc"),
        "embedded": ("unknown", "digits"),
        "by default": ("unknown", "standard_library"),
        "GLUE": ("nyu-mll/glue", "mrpc"),
        "the Hub": ("a/b", "small"),
    }
    score = {"task_type": "text-classification", "metric_type": "accuracy", "metric_value": 0.5}
    add_results(folder, [EvalResult(**found, **score) for found in (fields["a folder"], fields["embedded"])])
    assert [one.dataset_name for one in ModelCard.load(folder / "README.md").data.eval_results] == ["imdb", "digits"]


def test_latencies_of_other_conditions_stand_beside_each_other(folder):
    for threads, value in ((1, 5.0), (4, 3.0), (1, 6.0)):
        hardware = {"device_name": "a processor", "dtype": "float32", "threads": threads}
        add_results(folder, latency_results("text-classification", "x, 8 tokens", {"p50": value}, hardware))
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert [(result.metric_value, result.metric_name[-11:]) for result in results] == [
        (3.0, "4 thread(s)"),
        (6.0, "1 thread(s)"),
    ]


def test_section_of_a_card_is_replaced(folder):
    complete_card(folder, "somebody/a-name", license="mit")
    write_section(folder, "Certificate", "first")
    write_section(folder, "Certificate", "second")
    text = (folder / "README.md").read_text()
    assert text.count("## Certificate") == 1 and text.endswith("second\n") and "## Schedule" in text


def test_card_tells_of_a_cascade(folder):
    complete_card(folder, "somebody/a-name", license="mit")
    assert "## Cascade" not in (folder / "README.md").read_text()
    change_config(cascade={"gamma": [4, 1], "eta": 2, "margin": 0.6})(folder)
    complete_card(folder, "somebody/a-name")
    text = (folder / "README.md").read_text()
    assert "`gamma = [4, 1]`, `eta = 2` first" in text and "less than 0.6" in text


def test_pickles_and_leavings_stay_here(finished):
    names, left_out = list_files(finished)
    assert left_out == ["checkpoints/checkpoint-1/model.safetensors", "training_args.bin"]
    assert GOLDEN in names and "model.safetensors" in names


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
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / GOLDEN).unlink()
    with pytest.raises(ValueError, match="do not fit the code.*classifier.out_proj.weight"):
        verify_folder(folder)


def test_incomplete_auto_map_is_noticed(folder):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    auto_map.pop("AutoModelForMaskedLM")
    change_config(auto_map=auto_map)(folder)
    with pytest.raises(ValueError, match="lacks .*AutoModelForMaskedLM"):
        verify_folder(folder)


def test_card_is_completed_and_kept(folder):
    with pytest.raises(ValueError, match="names no licence"):
        complete_card(folder, "somebody/a-name")
    complete_card(folder, "somebody/a-name", license="mit", base_model="somebody/base")
    card = ModelCard.load(folder / "README.md")
    assert card.data.license == "mit" and card.data.base_model == "somebody/base"
    assert card.data.pipeline_tag == "text-classification" and card.data.library_name == "transformers"
    assert "# a-name" in card.text and "trust_remote_code=True" in card.text and '"somebody/a-name"' in card.text
    (folder / "README.md").write_text("---\nlicense: apache-2.0\ntags: [own]\n---\n# My own words\n")
    complete_card(folder, "somebody/a-name")
    card = ModelCard.load(folder / "README.md")
    assert find_leaks(folder, ["README.md"]) == []
    assert card.data.license == "apache-2.0" and card.data.tags == ["own"] and "My own words" in card.text


def build(contract, tiny_settings, folder):
    """Save a model of the folder contract as a training does."""
    torch.manual_seed(0)
    model = contract.build(tiny_settings)
    model.save_pretrained(folder)
    write_golden_output(model, folder)
    return model


def contents(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


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
@pytest.mark.parametrize("contract", [*CONTRACTS, *BACKBONES], ids=lambda contract: contract.name)
def test_every_model_is_published(hub, client, tmp_path, tiny_settings, contract):
    model = build(contract, tiny_settings, tmp_path / "model")
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
        (change_config(hidden_size=64), (), "the weights do not fit the code.*mismatched"),
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


@pytest.mark.parametrize("contract", [CONTRACTS[1], BACKBONES[0], CONTRACTS[-1]], ids=lambda contract: contract.name)
def test_models_of_all_kinds_are_verified(tmp_path, tiny_settings, contract):
    model = build(contract, tiny_settings, tmp_path / "model")
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


DANGERS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "system",
    "popen",
    "getoutput",
    "getstatusoutput",
    "read_pickle",
    "joblib.load",
}
DANGERS |= {"spawnl", "execv", "execvp"}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve"}


def find_dangers(source):
    """Name what must not stand in our code, because model folders and data sets come from strangers."""
    dangers = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            # a method called eval puts a model in evaluation mode, re.compile makes a pattern
            called = ast.unparse(node.func)
            name = called.removeprefix("os.").removeprefix("subprocess.").removeprefix("builtins.").removeprefix("pd.")
            if name in DANGERS:
                dangers.append(called)
            words = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called == "torch.load" and words.get("weights_only") != "True":
                dangers.append(called)
            if called == "yaml.load" and "SafeLoader" not in ast.unparse(node):
                dangers.append(called)
            loaded = [argument.value for argument in node.args[:1] if isinstance(argument, ast.Constant)]
            if name in ("import_module", "importlib.import_module"):
                dangers += MODULES.intersection(loaded)
            dangers += [word for word, value in words.items() if word in ("shell", "allow_pickle") and value != "False"]
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            names = {alias.name for alias in node.names}
            origin = getattr(node, "module", None) or ""
            if origin in ("os", "subprocess", "builtins"):
                dangers += names & DANGERS
            if origin in ("torch", "joblib", "numpy") and "load" in names:
                dangers.append(f"{origin}.load")
            # an error that others raise can be caught without unpacking anything
            if (origin, names) != ("pickle", {"UnpicklingError"}):
                dangers += {name.partition(".")[0] for name in {*names, origin}} & MODULES
    return dangers


@pytest.mark.parametrize(
    "path", [*ROOT.glob("experiments/*.py"), *ROOT.glob("*_hf/**/*.py")], ids=lambda path: path.stem
)
def test_nothing_runs_a_shell_or_unpacks_code(path):
    assert find_dangers(path.read_text()) == []


@pytest.mark.parametrize(
    "source",
    [
        *("eval('1')", "builtins.exec('1')", "from os import system", "os.popen('ls')", "import pickle as p"),
        *("from pickle import loads", "joblib.load('x')", "subprocess.run('ls', shell=True)"),
        *("torch.load('x')", "torch.load('x', weights_only=False)", "np.load('x', allow_pickle=True)"),
        *("yaml.load(text)", "pd.read_pickle('x')", "run('ls', shell=is_short)"),
        *("from torch import load", "importlib.import_module('pickle')"),
    ],
)
def test_dangers_are_caught(source):
    assert find_dangers(source)


@pytest.mark.parametrize("source", ["model.eval()", "re.compile('x')", "np.load('x', allow_pickle=False)", "import os"])
def test_harmless_code_is_not(source):
    assert not find_dangers(source)
