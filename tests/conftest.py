"""What every test shares: an offline environment of its own, fixed seeds, and tiny models, tokenizers and data."""

import atexit
import os
import random
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

# before transformers or datasets is imported, because both read their environment once
HOME = Path(tempfile.mkdtemp(prefix="redundancy-hf-"))
atexit.register(shutil.rmtree, HOME, ignore_errors=True)
os.environ.update(
    HF_HOME=str(HOME),
    HF_MODULES_CACHE=str(HOME / "modules"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_PROGRESS_BARS="1",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
)
for name in ("HF_DATASETS_CACHE", "HF_HUB_CACHE", "HF_TOKEN", "TRANSFORMERS_CACHE"):
    os.environ.pop(name, None)

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaTokenizer  # noqa: E402

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification  # noqa: E402
from redundancy_hf.__main__ import main  # noqa: E402
from tests.documents import ROOT, find_script  # noqa: E402
from tests.loopback_hub import Hub  # noqa: E402

torch.set_num_threads(1)
# a suite started in the background inherits that Ctrl-C is ignored, and so would the processes of its tests
signal.signal(signal.SIGINT, signal.default_int_handler)

# large initial weights, because at 0.02 the logits hardly depend on the input and every comparison would pass
TINY = {
    "vocab_size": 300,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 66,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.3,
    "num_labels": 3,
}
SENTENCES = {
    "negative": ("a dull and lifeless film", "the plot is a mess", "it fails in every scene", "bad, slow, too long"),
    "positive": ("a warm and clever film", "the plot is a joy", "it works in every scene", "good, quick, too short"),
}


@pytest.fixture(autouse=True)
def seed():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_settings():
    """Keyword arguments of a RoBERTa or Classformer configuration of three small layers."""
    return dict(TINY)


@pytest.fixture
def tiny_config():
    return ClassformerConfig(**TINY, gamma=[1, 2, 1], eta=1)


@pytest.fixture(scope="session")
def tiny_tokenizer():
    """A byte-level BPE with RoBERTa's special tokens, trained on `SENTENCES`."""
    from tokenizers import ByteLevelBPETokenizer

    bpe = ByteLevelBPETokenizer()
    texts = [text for group in SENTENCES.values() for text in group]
    bpe.train_from_iterator(texts, vocab_size=300, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    folder = HOME / "bpe"
    folder.mkdir(exist_ok=True)
    bpe.save_model(str(folder))
    return RobertaTokenizer.from_pretrained(folder, model_max_length=64)


@pytest.fixture(scope="session")
def tiny_image_processor():
    """Images of any size to 16 x 16 pixels, normalised."""
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    return ViTImageProcessorPil(size={"height": 16, "width": 16})


@pytest.fixture(scope="session")
def tiny_shape_processor_2d():
    """Images padded to 16 x 16."""
    from avae_hf import AVAEImageProcessor

    return AVAEImageProcessor(image_size=16)


@pytest.fixture(scope="session")
def tiny_shape_processor_3d():
    """Voxels padded to 16 x 16 x 16."""
    from avae_hf import AVAEImageProcessor

    return AVAEImageProcessor(image_size=16, spatial_dims=3)


@pytest.fixture(scope="session")
def tiny_roberta_folder(tmp_path_factory, tiny_tokenizer):
    """A saved stock RoBERTa classifier with its tokenizer."""
    return _save_classifier(RobertaForSequenceClassification, RobertaConfig(**TINY), tiny_tokenizer, tmp_path_factory)


@pytest.fixture(scope="session")
def tiny_classifier_folder(tmp_path_factory, tiny_tokenizer):
    """A saved Classformer classifier with its tokenizer."""
    config = ClassformerConfig(**TINY, gamma=[1, 2, 1], eta=1)
    return _save_classifier(ClassformerForSequenceClassification, config, tiny_tokenizer, tmp_path_factory)


def _save_classifier(model_class, config, tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp(config.model_type)
    model_class(config).eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_text_file(tmp_path_factory):
    """A csv of 64 labelled sentences, columns `sentence` and `label`."""
    rows = ["sentence,label"]
    for number in range(8):
        for label, texts in SENTENCES.items():
            rows += [f'"{text}, take {number}",{label}' for text in texts]
    path = tmp_path_factory.mktemp("texts") / "reviews.csv"
    path.write_text("\n".join(rows) + "\n")
    return path


@pytest.fixture
def tiny_task(tiny_text_file):
    """The task of `tiny_text_file` with raw texts, split into train, validation and test."""
    from redundancy_hf.data import load_task
    from redundancy_hf.task import TaskArguments

    return load_task(TaskArguments(dataset_name=str(tiny_text_file), validation_fraction=0.25))


@pytest.fixture(scope="session")
def tiny_roberta_two_labels(tmp_path_factory, tiny_settings, tiny_tokenizer):
    """A saved stock classifier with the labels of `tiny_text_file`, so that it can be judged before training too."""
    names = ["negative", "positive"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    folder = tmp_path_factory.mktemp("two-labels")
    torch.manual_seed(0)
    RobertaForSequenceClassification(RobertaConfig(**{**tiny_settings, "num_labels": 2, **labels})).save_pretrained(
        folder
    )
    tiny_tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path):
    """A Hub on loopback with the users alice and bob, and rita who may only read; it stores large files as LFS."""
    hub = Hub(tmp_path / "hub", {name: f"hf_{name}" for name in ("alice", "bob", "rita")}, readers=("rita",)).start()
    yield hub
    hub.stop()


@pytest.fixture
def client(hub, tmp_path):
    """Run Python code, or a script by its name, as a client of `hub` in a process with caches of its own."""
    return partial(run_client, hub, tmp_path)


def run_client(hub, folder, program, *arguments, token="hf_alice", home="home", check=True, **environment):
    """Run a client of a loopback Hub; its standard output, or with `check=False` the finished process, is returned."""
    variables = {name: value for name, value in os.environ.items() if name != "HF_TOKEN"}
    variables |= {**hub.environment(folder / home, token), "PYTHONPATH": str(ROOT), **environment}
    command = [str(find_script(program))] if program.isidentifier() else ["-c", program]
    process = subprocess.run(
        [sys.executable, *command, *map(str, arguments)],
        env=variables,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=300,
    )
    if not check:
        return process
    assert process.returncode == 0, process.stdout + process.stderr
    return process.stdout


def call_verb(verb, *arguments):
    """Run a verb of the command in this process, for a fixture; it must succeed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["redundancy-hf", verb, *map(str, arguments)])
        try:
            main()
        except SystemExit as exit_:
            assert not exit_.code, exit_.code


@pytest.fixture
def run(monkeypatch, capsys):
    """Run a script in this process; returns its exit code, its output and its last words on stderr."""

    def call(name: str, *arguments) -> tuple[int, str, str]:
        script = find_script(name)
        monkeypatch.setattr(sys, "argv", [f"{script.parent.name}/{name}.py", *map(str, arguments)])
        monkeypatch.syspath_prepend(str(script.parent))  # as Python does for a script
        code: int | str | None = 0
        try:
            runpy.run_path(str(script), run_name="__main__")
        except SystemExit as exit_:
            code = exit_.code
        output = capsys.readouterr()
        if isinstance(code, str):
            return 1, output.out, code
        return code or 0, output.out, output.err

    return call
