"""What is wrong with a folder, and what of it must not be published."""

import re

import pytest
import torch
from safetensors.torch import save_file

from redundancy_hf.folders import GOLDEN, find_load_defects, list_files
from redundancy_hf.hub import find_leaks
from tests.redundancy.damage import (
    SOMEBODY,
    append,
    change_config,
    lose_a_shard,
    remove,
    scramble_header,
    spoil_weights,
    truncate_weights,
    use_pickle,
    write,
)

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


def test_pickles_and_leavings_stay_here(finished):
    names, left_out = list_files(finished)
    assert left_out == ["checkpoints/checkpoint-1/model.safetensors", "training_args.bin"]
    assert GOLDEN in names and "model.safetensors" in names
