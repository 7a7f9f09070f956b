"""Folders and data from strangers: each gets one clear sentence or a documented behaviour, and nothing of theirs runs.

What publishing refuses besides is in test_leaks.py and test_hub.py.
"""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from avae_hf import AVAEConfig, AVAEImageProcessor, AVAEModel
from classformer_hf import ClassformerForSequenceClassification
from redundancy_hf.folders import GOLDEN, write_golden_output
from tests.redundancy.damage import change_config, remove, scramble_header, spoil_weights, truncate_weights, write

TINY_DATA = "sentence,label\na dull film,negative\na warm film,positive\n"


@pytest.fixture
def folder(tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {"0": "negative", "1": "positive", "2": "other"}}
    config |= {"label2id": {"negative": 0, "positive": 1, "other": 2}}
    (folder / "config.json").write_text(json.dumps(config))
    write_golden_output(ClassformerForSequenceClassification.from_pretrained(folder), folder)
    return folder


@pytest.fixture
def evaluate(run, folder, tmp_path):
    """Evaluate the folder on a few texts, streamed; gives the exit code, what was printed and the last words."""

    def call(data=TINY_DATA):
        path = tmp_path / "data.csv"
        path.write_text(data)
        flags = ("--dataset_name", path, "--streaming", "--split", "train", "--max_length", 64, "--device", "cpu")
        return run("evaluate_model", folder, *flags)

    return call


def flip_bit(folder):
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    # the lowest bit of a number in the middle of the file
    content[len(content) // 2 & ~3] ^= 0x01
    path.write_bytes(bytes(content))


def shrink(name):
    def change(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name] = tensors[name][..., :-1].contiguous()
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        # or the digest in it would tell first
        (folder / GOLDEN).unlink()

    return change


def plant(folder):
    """A module outside the folder that would leave a trace."""
    (folder.parent / "evil.py").write_text(f"open({str(folder.parent / 'trace')!r}, 'w')\nclass Model: pass\n")
    change_config(auto_map={"AutoModelForSequenceClassification": "../evil.Model"})(folder)


def plant_tokenizer(folder):
    (folder.parent / "evil.py").write_text(f"open({str(folder.parent / 'trace')!r}, 'w')\nclass Tokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    auto_map = {"AutoTokenizer": ["../evil.Tokenizer", None]}
    path.write_text(json.dumps({**json.loads(path.read_text()), "auto_map": auto_map}))


def index_outside(folder):
    shutil.copy(folder / "model.safetensors", folder.parent / "model.safetensors")
    index = {"metadata": {}, "weight_map": {"classifier.dense.bias": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def spoil_golden(folder):
    """Token ids that no vocabulary has."""
    tensors = load_file(folder / GOLDEN)
    tensors["inputs.input_ids"] += 10**6
    save_file(tensors, folder / GOLDEN)


FOLDERS = {
    "golden inputs out of range": (spoil_golden, "does not run on the inputs in golden/output.safetensors"),
    "tokenizer is empty": (write("tokenizer.json", "{}"), "the tokenizer in .* does not load"),
    "tokenizer is cut": (write("tokenizer.json", '{"version": "1.0", "mod'), "the tokenizer in .* does not load"),
    "tokenizer's class is a number": (write("tokenizer_config.json", '{"tokenizer_class": 3}'), "does not load"),
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "holds no tokenizer"),
    "tokenizer has lost its words": (remove("tokenizer.json"), "holds no tokenizer"),
    "labels with a gap": (change_config(id2label={"0": "a", "5": "b", "6": "c"}), "must name the labels 0 to 2"),
    "brackets": (write("config.json", "[" * 200_000), "its config.json cannot be read"),
    "signs": (write("modeling_classformer.py", "-" * 200_000), "is no Python"),
    "truncated weights": (truncate_weights, "model.safetensors is damaged"),
    "scrambled header": (scramble_header, "model.safetensors is damaged"),
    "flipped bit": (flip_bit, "model.safetensors is not the file that was saved"),
    "NaN in the weights": (spoil_weights, "classifier.dense.bias is not finite"),
    "weights are text": (write("model.safetensors", "hello"), "model.safetensors is damaged"),
    "empty weights": (write("model.safetensors", ""), "model.safetensors is damaged"),
    "no weights": (remove("model.safetensors"), "no weights in safetensors"),
    "weights of another shape": (shrink("classifier.dense.weight"), "does not load: .*classifier.dense.weight"),
    "index is no JSON": (write("model.safetensors.index.json", "{"), "index.json cannot be read"),
    "index is a list": (write("model.safetensors.index.json", "[]"), "index.json cannot be read"),
    "index points outside": (index_outside, r"names \.\./model.safetensors, which is missing"),
    "config is no JSON": (write("config.json", "{"), "its config.json cannot be read"),
    "gamma is a word": (change_config(gamma="two"), "does not load: .*gamma"),
    "gamma is negative": (change_config(gamma=[1, -2, 1]), "does not load: .*gamma"),
    "gamma is huge": (change_config(gamma=[1, 10**30, 1]), "no input is longer"),
    "eta is a list": (change_config(eta=[1]), "does not load: .*eta"),
    "layers are a fraction": (
        change_config(num_hidden_layers=2.5),
        "does not load: .*'num_hidden_layers' expected int",
    ),
    "layers are negative": (
        change_config(num_hidden_layers=-3),
        "does not load: .*one factor per layer, got 3 for -3 layers",
    ),
    "huge width": (change_config(hidden_size=10**13), "does not load: .*10000000000000"),
    "heads do not divide": (change_config(num_attention_heads=5), "does not load: .*attention heads .5"),
    "vocabulary is zero": (change_config(vocab_size=0), "does not load: .*num_embeddings"),
    "labels are a number": (change_config(id2label=3), "id2label of config.json must be a mapping, got 3"),
    "code outside the folder": (plant, "not file.Class of this folder"),
    "auto_map is a list": (change_config(auto_map=["x"]), "auto_map of config.json must be a mapping"),
    "code is missing": (remove("modeling_classformer.py"), "there is no modeling_classformer.py"),
    "code is no Python": (write("modeling_classformer.py", "class"), "is no Python"),
    "tokenizer's code outside": (plant_tokenizer, "tokenizer_config.json names the code ../evil.Tokenizer"),
}


@pytest.mark.parametrize("name", ["tokenizer is empty", "tokenizer is cut", "labels with a gap", "flipped bit"])
def test_hostile_folder_on_stored_data_and_in_a_benchmark(run, folder, tiny_text_file, name):
    import re

    change, message = FOLDERS[name]
    change(folder)
    stored = ("--dataset_name", tiny_text_file, "--split", "train", "--max_length", 64, "--device", "cpu")
    code, _, words = run("evaluate_model", folder, *stored)
    assert code == 1 and re.search(message, words), words
    flags = ("--rounds", 1, "--dataset_name", tiny_text_file, "--max_length", 64)
    code, _, words = run("benchmark_latency", folder, *flags)
    assert code == 1 and re.search(message, words), words


@pytest.mark.parametrize("change, message", FOLDERS.values(), ids=FOLDERS.keys())
def test_hostile_folder(evaluate, folder, change, message):
    import re

    change(folder)
    code, _, words = evaluate()
    assert code == 1 and re.search(message, words), words
    assert words.count("\n") <= 1, words
    assert not (folder.parent / "trace").exists(), "code from outside the folder ran"


def test_unknown_settings_are_kept_and_do_nothing(evaluate, folder):
    change_config(somebodys_note={"a": 1})(folder)
    assert evaluate()[0] == 0


def test_pickle_is_not_opened_and_code_that_differs_is_named(evaluate, folder, caplog):
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    code_file = folder / "modeling_classformer.py"
    code_file.write_text(code_file.read_text() + "\n# changed\n")
    assert evaluate()[0] == 0
    assert "pytorch_model.bin: not opened, because a pickle can run code" in caplog.text
    assert "modeling_classformer.py: not the code of the installed package" in caplog.text


DATA = {
    "missing label": ("sentence,label\na film,\na plot,positive\n", "has an example without a label"),
    "unknown label": ("sentence,label\na film,strange\n", "the data have the label 'strange'"),
    "missing text": ("sentence,label\na film,positive\n,positive\n", "without a text in 'sentence'"),
    "no label column": ("sentence,other\na film,1\n", "no label column"),
    "no text column": ("label,number\npositive,3\n", "which column is the text?"),
    "texts that are all missing": ("sentence,label\n,positive\n", "has an example without a text in 'sentence'"),
    "no rows": ("sentence,label\n", "is empty: there is no example"),
    "empty file": ("", "cannot stream"),
    "rows of other lengths": ("sentence,label\na,b,c,d\n", "Expected 2 fields in line 2, saw 4"),
}


@pytest.mark.parametrize("data, message", DATA.values(), ids=DATA.keys())
def test_hostile_data(evaluate, data, message):
    import re

    code, _, words = evaluate(data)
    assert code == 1 and re.search(message, words), words
    assert "Traceback" not in words


def test_texts_without_and_with_too_many_words_are_classified(run, folder, tmp_path):
    rows = [{"sentence": "", "label": "negative"}, {"sentence": "word " * 100_000, "label": "positive"}]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    code, printed, words = run(
        *("evaluate_model", folder, "--dataset_name", path, "--streaming", "--split", "train"),
        *("--max_length", 64, "--device", "cpu"),
    )
    assert code == 0, words
    assert "2 examples" in printed


def test_pixels_that_are_no_numbers():
    pixels = np.full((16, 16), np.nan, dtype=np.float32)
    with pytest.raises(ValueError, match="values that are not finite"):
        AVAEImageProcessor(image_size=16)(torch.from_numpy(pixels), return_tensors="pt")
    model = AVAEModel(AVAEConfig(image_size=16, encoder_channels=[4] * 4, decoder_channels=[4] * 3)).eval()
    with pytest.raises(ValueError, match=r"needs values in \[0, 1\], got nan"):
        model(torch.from_numpy(pixels)[None, None])


def test_pixels_that_are_no_numbers_in_a_classifier_give_no_class():
    from tests.test_hub_contract import build_vision

    model = build_vision("ResNet", "ForImageClassification")({}).eval()
    with torch.no_grad():
        logits = model(torch.stack([torch.full((3, 16, 16), torch.nan), torch.zeros(3, 16, 16)])).logits
    # as docs/images.md says: NaN goes through, and does not reach the other images
    assert logits[0].isnan().all() and logits[1].isfinite().all()
