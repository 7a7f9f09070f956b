"""What every training has in common: the output stored beside the weights is theirs, and Ctrl-C says what is lost."""

import json
from types import MethodType

import pytest
import torch
import transformers
from transformers import AutoConfig

from classformer_hf import ClassformerForSequenceClassification
from redundancy_hf.folders import GOLDEN, check_golden_output, write_golden_output
from redundancy_hf.record import read_record

NAMES = ("train_classformer", "train_multitask", "pretrain_classformer", "train_image_classifier", "train_avae")
OPTIONS = [
    pytest.param((), id="float32"),
    pytest.param(("--bf16",), id="bf16"),
    pytest.param(("--torch_compile", "--torch_compile_backend", "eager"), id="compiled", marks=pytest.mark.slow),
]
COMMON = ("--use_cpu", "--disable_tqdm", "True", "--report_to", "none", "--max_steps", 2)
UNSAVED = ("--eval_strategy", "no", "--save_strategy", "no")
TINY_AVAE = json.dumps({"encoder_channels": [4, 4, 6, 4], "decoder_channels": [6, 4, 4]})
TINY_XCEPTION = json.dumps({"stem_channels": [8, 8], "stem_strides": [1, 1], "stage_channels": [16, 16, 16]})


@pytest.fixture
def trainings(tiny_roberta_folder, tiny_text_file, tmp_path):
    """Flags of every command that trains, and the folder below its output where it leaves the model."""
    checkpoint = ("--model_name_or_path", tiny_roberta_folder)
    texts = ("--max_length", 64, "--learning_rate", 1e-3, *UNSAVED)
    classify = ("--dataset_name", tiny_text_file, "--validation_fraction", 0.25, "--load_best_model_at_end", "False")
    second = tmp_path / "second.csv"
    second.write_text(tiny_text_file.read_text())
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("\n".join(f"a warm and clever film number {n} works in every scene" for n in range(60)))
    blocks = ("--dataset_name", corpus, "--block_size", 16, "--max_validation_blocks", 4, "--objectives", "dense")
    digits = ("--dataset_name", "digits", "--max_train_samples", 32, "--max_validation_samples", 16)
    return {
        "train_classformer": ((*checkpoint, *classify, *texts), "seed-42"),
        "train_multitask": ((*checkpoint, "--dataset_names", tiny_text_file, second, *texts[:4]), ""),
        "pretrain_classformer": ((*checkpoint, *blocks, "--gamma", 1, 2, 1), "dense"),
        "train_image_classifier": (
            (*digits, "--preset", "author-vs", "--config_overrides", TINY_XCEPTION, "--image_size", 16),
            "seed-42",
        ),
        "train_avae": (
            (*digits, "--object_size", 12, "--image_size", 16, "--config_overrides", TINY_AVAE),
            "seed-42",
        ),
    }


def open_model(folder):
    (architecture,) = AutoConfig.from_pretrained(folder).architectures
    auto_map = AutoConfig.from_pretrained(folder).auto_map
    (auto_class,) = [name for name, path in auto_map.items() if path.endswith(f".{architecture}")]
    return getattr(transformers, auto_class).from_pretrained(folder)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", NAMES)
def test_trained_folder_gives_the_output_stored_with_it(run, trainings, tmp_path, name, options):
    flags, place = trainings[name]
    code, _, words = run(name, *flags, *COMMON, *options, "--output_dir", tmp_path / "out")
    assert code == 0, words
    folder = tmp_path / "out" / place
    assert (folder / GOLDEN).is_file()
    check_golden_output(open_model(folder), folder)
    # so does what it was trained on; of running text nothing is judged
    record = read_record(folder)
    assert (record is None) == (name == "pretrain_classformer")
    if record is not None:
        assert len(record.seen) > 0 and (tmp_path / "out") in record.studies


@pytest.mark.parametrize("name", NAMES)
def test_stopped_training_says_what_is_lost(run, trainings, tmp_path, monkeypatch, name):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(transformers.Trainer, "train", stop)
    for strategy, lost in (
        ("steps", "what was trained since the last checkpoint (--save_strategy steps)"),
        ("no", "the training that ran (--save_strategy no keeps no checkpoints)"),
    ):
        flags = ("--save_strategy", strategy, "--output_dir", tmp_path / strategy)
        code, _, words = run(name, *trainings[name][0], *COMMON, *flags)
        assert code == 130
        assert words.splitlines()[-1] == f"stopped by hand: the same command goes on; {lost} is lost"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_golden_output_is_stored_without_mixed_precision(tiny_config, tmp_path, dtype):
    model = ClassformerForSequenceClassification(tiny_config)
    model.save_pretrained(tmp_path)
    # as accelerate wraps it, on the CPU for bfloat16 only
    model._original_forward = model.forward
    model.forward = MethodType(torch.autocast("cpu", dtype)(model.forward.__func__), model)
    write_golden_output(model, tmp_path)
    check_golden_output(ClassformerForSequenceClassification.from_pretrained(tmp_path), tmp_path)
