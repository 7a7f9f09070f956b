"""Pretraining and what fine-tunes afterwards: end to end, resuming, streams, and one sentence for bad input."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from itertools import islice
from pathlib import Path

import pytest
import torch
from transformers import RobertaModel

from classformer_hf import ClassformerForMaskedLM, ClassformerForSequenceClassification, load_from_encoder, texts
from classformer_hf.search.space import Schedule
from redundancy_hf.folders import check_golden_output
from tests.documents import load_job

SCRIPTS = Path(__file__).parent.parent / "scripts"


@pytest.fixture
def text_file(tmp_path):
    path = tmp_path / "corpus.txt"
    lines = [f"a warm and clever film number {n} works in every scene" for n in range(60)]
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def command(tiny_roberta_folder, text_file, tmp_path):
    return [
        *("pretrain_classformer", "--model_name_or_path", tiny_roberta_folder, "--dataset_name", text_file),
        *("--gamma", 1, 2, 1, "--block_size", 16, "--per_device_train_batch_size", 4, "--learning_rate", 5e-3),
        *("--max_steps", 6, "--max_validation_blocks", 8, "--use_cpu", "--disable_tqdm", "True"),
        *("--output_dir", tmp_path / "out"),
    ]


def test_an_objective_leaves_a_folder_that_fine_tuning_starts_from(run, command, tmp_path, tiny_text_file):
    code, printed, words = run(*command, "--objectives", "dense", "funnel", "distillation", "--whole_word_mask")
    assert code == 0, words
    rows = {
        row["objective"]: row for row in json.loads((tmp_path / "out" / "pretrain_results.json").read_text())["rows"]
    }
    assert set(rows) == {"dense", "funnel", "distillation"}
    for objective, row in rows.items():
        assert row["tokens"] == 6 * 4 * 16 and row["training_flops"] > 0
        # a tiny random teacher has next to nothing to teach
        assert row["loss_after"] < row["loss_before"] or objective == "distillation"
        assert (row["perplexity"] is None) == (objective == "distillation")
        folder = tmp_path / "out" / objective
        assert not (folder / "checkpoints").exists()
        model = ClassformerForMaskedLM.from_pretrained(folder)
        assert model.config.gamma == [1, 2, 1]
        classifier = load_from_encoder(folder, ClassformerForSequenceClassification, num_labels=3)
        for name, weight in model.roberta.state_dict().items():
            assert torch.equal(classifier.roberta.state_dict()[name], weight)
    assert rows["funnel"]["training_flops"] > rows["dense"]["training_flops"]
    # a finished objective is read
    written = (tmp_path / "out" / "dense" / "model.safetensors").stat().st_mtime_ns
    assert run(*command, "--objectives", "dense", "--whole_word_mask")[0] == 0
    assert (tmp_path / "out" / "dense" / "model.safetensors").stat().st_mtime_ns == written
    for flags, what in ((("--eta", 2), "--gamma and --eta ([[1, 2, 1], 0]"), (("--max_train_blocks", 5), "the text")):
        code, _, words = run(*command, "--objectives", "dense", "--whole_word_mask", *flags)
        assert code == 1 and f"holds another training: {what}" in words
    fine_tune = ("--dataset_name", tiny_text_file, "--max_length", 64, "--max_steps", 1, "--use_cpu")
    code, _, words = run(
        *("train_classformer", "--model_name_or_path", tmp_path / "out" / "funnel", *fine_tune),
        *("--config_name", tmp_path / "out" / "funnel", "--output_dir", tmp_path / "tuned", "--eval_strategy", "no"),
        *("--save_strategy", "no", "--load_best_model_at_end", "False", "--disable_tqdm", "True"),
    )
    assert code == 0, words
    assert ClassformerForSequenceClassification.from_pretrained(tmp_path / "tuned" / "seed-42").config.gamma == [
        1,
        2,
        1,
    ]


@pytest.mark.slow
def test_killed_and_resumed_equals_uninterrupted(command, tmp_path):
    flags = [*map(str, command[1:]), "--objectives", "funnel", "--max_steps", "40", "--save_steps", "4"]
    script = [sys.executable, str(SCRIPTS / "pretrain_classformer.py"), *flags]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(script, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    checkpoints = tmp_path / "out" / "funnel" / "checkpoints"
    deadline = time.monotonic() + 120
    while not list(checkpoints.glob("checkpoint-*/trainer_state.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert list(checkpoints.glob("checkpoint-*")) and not (tmp_path / "out" / "funnel" / "model.safetensors").exists()
    subprocess.run(script, env=environment, check=True, capture_output=True)
    whole = [part.replace(str(tmp_path / "out"), str(tmp_path / "whole")) for part in script]
    subprocess.run(whole, env=environment, check=True, capture_output=True)
    resumed, uninterrupted = (
        ClassformerForMaskedLM.from_pretrained(tmp_path / name / "funnel").state_dict() for name in ("out", "whole")
    )
    for name, weight in uninterrupted.items():
        torch.testing.assert_close(resumed[name], weight, atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes(command, tmp_path):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    script = [str(SCRIPTS / "pretrain_classformer.py"), *map(str, command[1:]), "--objectives", "first_k"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*launch, *script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    row = json.loads((tmp_path / "out" / "pretrain_results.json").read_text())["rows"][0]
    assert row["tokens"] == 2 * 6 * 4 * 16
    model = ClassformerForMaskedLM.from_pretrained(tmp_path / "out" / "first_k")
    assert model.config.gamma == [1, 2, 1]
    check_golden_output(model, tmp_path / "out" / "first_k")


RECORD_BLOCKS = """
import json, os, runpy, sys
from classformer_hf.pretraining import ShortenedLanguageModelingCollator as Collator
collate, folder = Collator.__call__, sys.argv[1]
def record(self, examples):
    with open(f"{folder}/blocks-{os.environ['RANK']}", "a") as file:
        file.writelines(json.dumps([example["input_ids"], self.epoch]) + "\\n" for example in examples)
    return collate(self, examples)
Collator.__call__ = record
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.mark.slow
def test_two_processes_share_the_blocks(command, tmp_path):
    script, corpus = tmp_path / "record.py", tmp_path / "distinct.txt"
    script.write_text(RECORD_BLOCKS)
    corpus.write_text("".join(f"{torch.randint(10**12, ()).item()}\n" for _line in range(150)))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", str(script), str(tmp_path)]
    flags = [*map(str, command[1:]), "--objectives", "first_k", "--max_steps", "-1", "--num_train_epochs", "2"]
    flags += ["--dataset_name", str(corpus)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, str(SCRIPTS / "pretrain_classformer.py"), *flags], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    seen = []
    for rank in range(2):
        lines = map(json.loads, (tmp_path / f"blocks-{rank}").read_text().splitlines())
        seen.append({tuple(ids) for ids, epoch in lines if epoch == 1})
    tokens = json.loads((tmp_path / "out" / "pretrain_results.json").read_text())["rows"][0]["tokens"]
    blocks_per_epoch = tokens // 2 // 16
    assert blocks_per_epoch % (2 * 4) == 0
    # every block once, but for those that fill the last batch or serve to count operations
    assert len(seen[0] & seen[1]) < 8 + 4 < min(map(len, seen))
    assert blocks_per_epoch - 8 < len(seen[0] | seen[1]) <= blocks_per_epoch


def test_other_text_is_not_taken_for_a_finished_one(run, command, tmp_path):
    folder = tmp_path / "texts"
    folder.mkdir()
    for split, words in (("train", "warm"), ("validation", "clever")):
        (folder / f"{split}.txt").write_text("".join(f"a {words} film number {n} works\n" for n in range(60)))
    flags = (*command, "--objectives", "dense", "--dataset_name", folder)
    assert run(*flags)[0] == run(*flags)[0] == 0
    (folder / "train.txt").write_text("".join(f"a dull film number {n} works\n" for n in range(60)))
    code, _, words = run(*flags)
    assert code == 1 and "holds another training: the text or its blocks" in words
    code, _, words = run(*flags, "--learning_rate", 1e-3)
    assert code == 1 and "--learning_rate (0.005, now 0.001)" in words
    code, _, words = run(*flags, "--streaming")
    assert code == 1 and "holds another training: the text or its blocks" in words


def test_tokens_count_small_batches(run, command, tmp_path):
    assert run(*command, "--objectives", "dense", "--max_train_blocks", 5, "--max_steps", 8)[0] == 0
    row = json.loads((tmp_path / "out" / "pretrain_results.json").read_text())["rows"][0]
    # 4 epochs of one batch of 4 and one of 1
    assert row["tokens"] == 4 * 5 * 16 and row["tokens_per_second"] > 0


def test_tokens_before_an_interruption_count_whatever_its_checkpoint_says(run, command, tmp_path, monkeypatch):
    flags = (*command, "--objectives", "dense", "--max_train_blocks", 5, "--max_steps", 8, "--save_steps", 3)

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 4:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("classformer_hf.pretraining.CountEpochs.on_step_begin", stop)
        assert run(*flags)[0] != 0
    (path,) = (tmp_path / "out" / "dense" / "checkpoints").glob("checkpoint-3/trainer_state.json")
    # as older versions left it
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_input_tokens_seen": 0}))
    assert run(*flags)[0] == 0
    row = json.loads((tmp_path / "out" / "pretrain_results.json").read_text())["rows"][0]
    assert row["tokens"] == 4 * 5 * 16


def test_texts_that_are_missing_are_left_out(run, command, tmp_path):
    path = tmp_path / "some.json"
    rows = [{"text": f"a warm and clever film number {n}" if n % 5 else None, "other": n} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)) + "\n")
    code, printed, _ = run(*command, "--objectives", "dense", "--dataset_name", path)
    assert code == 0 and "some: text from text, not read: other" in printed.splitlines()[0]
    code, _, words = run(*command, "--objectives", "dense", "--dataset_name", path, "--text_column", "other")
    assert code == 1 and "column other of some holds no text, but Value('int64')" in words
    path.write_text("".join(f'{{"id": "a{n}", "tweet": "a warm film {n}", "by": "b"}}\n' for n in range(60)))
    for more in ((), ("--streaming",)):
        code, _, words = run(*command, "--objectives", "dense", "--dataset_name", path, *more)
        assert code == 1 and "one of tweet, by may be; id is not taken unasked (an identifier)" in words


def test_a_stream_is_shuffled_and_a_short_one_refused(tmp_path, monkeypatch):
    path = tmp_path / "train.txt"
    path.write_text("".join(f"number {n}\n" for n in range(200)))
    arguments = texts.TextArguments(dataset_name=str(path), streaming=True)
    with pytest.raises(ValueError, match="has 200 texts, all of them held out"):
        texts.load_texts(arguments)
    monkeypatch.setattr(texts, "NUM_STREAMED_FOR_VALIDATION", 20)
    read = texts.load_texts(arguments)
    order = [row["text"] for row in islice(read.train, 180)]
    assert sorted(order) == sorted(f"number {n}" for n in range(20, 200)) and order != sorted(order, key=len)
    # it has no end
    again = [row["text"] for row in islice(read.train, 360)]
    assert again[:180] == order and sorted(again[180:]) == sorted(order)
    assert read.validation["text"] == [f"number {n}" for n in range(20)]
    (tmp_path / "validation.txt").write_text("".join(f"other {n}\n" for n in range(30)))
    read = texts.load_texts(texts.TextArguments(dataset_name=str(tmp_path), streaming=True))
    assert read.validation["text"] == [f"other {n}" for n in range(20)]
    assert len({row["text"] for row in islice(read.train, 200)}) == 200
    path.write_text("")
    with pytest.raises(ValueError, match="the train split of .* is empty"):
        texts.load_texts(arguments)


@pytest.mark.slow
def test_a_resumed_stream_equals_an_uninterrupted_one(run, command, tmp_path, monkeypatch):
    monkeypatch.setattr(texts, "NUM_STREAMED_FOR_VALIDATION", 20)
    flags = ("--objectives", "dense", "--streaming", "--max_steps", 30, "--save_steps", 21, "--output_dir")
    assert run(*command, *flags, tmp_path / "whole")[0] == 0

    def stop(self, args, state, control, **kwargs):
        if state.global_step == 24:  # within the second pass over the text
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("classformer_hf.pretraining.CountEpochs.on_step_begin", stop)
        assert run(*command, *flags, tmp_path / "cut")[0] != 0
    assert (tmp_path / "cut" / "dense" / "checkpoints" / "checkpoint-21").is_dir()
    assert run(*command, *flags, tmp_path / "cut")[0] == 0
    whole, cut = (
        ClassformerForMaskedLM.from_pretrained(tmp_path / name / "dense").state_dict() for name in ("whole", "cut")
    )
    for name, weight in whole.items():
        torch.testing.assert_close(cut[name], weight, atol=1e-6, rtol=1e-5)


def test_streams_are_read_while_training(run, command, tmp_path, monkeypatch):
    monkeypatch.setattr("classformer_hf.texts.NUM_STREAMED_FOR_VALIDATION", 20)
    code, _, words = run(*command, "--objectives", "last_k", "--streaming", "--from_scratch", "--bf16")
    assert code == 0, words
    assert (tmp_path / "out" / "last_k" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--objectives", "none"], "none means no pretraining"),
        (["--objectives", "magic"], "the objective must be one of first_k"),
        (["--gamma", 1, 2], "one factor per layer, got 2 for 3"),
        (["--mlm_probability", 1.5], "--mlm_probability is a share"),
        (["--objectives", "distillation", "--label_smoothing_factor", 0.1], "must be 0 for distillation"),
        (["--block_size", 2], "--block_size must be 4 to"),
        (["--block_size", 60, "--max_train_blocks", 0], "must be at least 1"),
        (["--dataset_name", "/nowhere/corpus.txt"], "there is no file or folder"),
        (["--text_column", "body"], "has no column body, only text"),
        (["--streaming", "--max_steps", -1], "--streaming needs --max_steps"),
        (["--streaming", "--dataloader_num_workers", 2], "--dataloader_num_workers must be 0 or 1"),
        (["--streaming", "--max_train_blocks", 5], "--max_train_blocks is not for a stream"),
        (["--max_steps", 0], "there is nothing to train"),
        (["--max_steps", -1, "--num_train_epochs", 0], "there is nothing to train"),
        (["--dataloader_drop_last", "True"], "no batch of validation is full"),
        (["--objectives", "distillation", "--from_scratch"], "distillation needs a model that has learned"),
        (["--validation_fraction", 2], "--validation_fraction is a share"),
    ],
)
def test_bad_input_is_one_sentence(run, command, flags, message):
    code, _, words = run(*command, *flags)
    assert code == 1 and message in words and words.count("\n") <= 1


def test_a_schedule_is_asked_for(run, command, caplog):
    without_gamma = [*command[: command.index("--gamma")], *command[command.index("--block_size") :]]
    code, _, words = run(*without_gamma, "--eta", 4)
    assert code == 1 and "give --gamma too" in words
    code, _, words = run(*without_gamma, "--objectives", "first_k", "distillation")
    assert code == 1 and "distillation has nothing to learn" in words
    assert "first_k is pretraining at full length" in caplog.text


def test_blocks_longer_than_the_model_reads_are_refused(run, command, tiny_roberta_folder, tmp_path):
    folder = shutil.copytree(tiny_roberta_folder, tmp_path / "model")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "model_max_length": 512}))
    code, _, words = run(*command, "--model_name_or_path", folder, "--block_size", 65)
    assert code == 1 and "--block_size must be 4 to 64, got 65" in words


def test_nan_loss_ends_the_run(run, command, tmp_path):
    code, _, words = run(
        *command, "--objectives", "dense", "--learning_rate", 1e30, "--max_grad_norm", 0, "--logging_steps", 1
    )
    assert code == 1 and "the training loss became" in words


@pytest.mark.slow
def test_experiment_fine_tunes_every_objective(run, command, tiny_text_file, tmp_path):
    assert run(*command, "--objectives", "dense", "funnel")[0] == 0
    tune = [
        *("pretraining", "--model_name_or_path", command[2], "--pretrained", tmp_path / "out"),
        *("--dataset_names", tiny_text_file, "--max_length", 64, "--max_steps", 3, "--use_cpu", "--seeds", 2),
        *("--save_strategy", "no", "--eval_strategy", "no", "--load_best_model_at_end", "False"),
        *("--disable_tqdm", "True", "--output_dir", tmp_path / "tuned", "--results_file", tmp_path / "record.json"),
    ]
    code, printed, words = run(*tune)
    assert code == 0 and "funnel seed 43" in printed, words
    record = json.loads((tmp_path / "record.json").read_text())
    assert [row["objective"] for row in record["rows"]] == ["full", "none", "dense", "funnel"] * 2
    assert [(entry["objective"], entry["reference"]) for entry in record["differences"]] == [
        *(("full", "none"), ("dense", "none"), ("funnel", "none"), ("funnel", "dense"))
    ]
    for entry in record["differences"]:
        own, other = (
            [row["test_score"] for row in record["rows"] if row["objective"] == entry[name]]
            for name in ("objective", "reference")
        )
        assert entry["by_seed"] == pytest.approx([one - two for one, two in zip(own, other, strict=True)])
        assert entry["mean"] == pytest.approx(sum(own) / 2 - sum(other) / 2)
        assert entry["interval"][0] <= entry["mean"] <= entry["interval"][1]
    assert record["schedule"] == {"gamma": [1, 2, 1], "eta": 0} and set(record["pretraining"]) == {"dense", "funnel"}
    assert {row["learning_rate"] for row in record["pretraining"].values()} == {5e-3}
    written = [path.stat().st_mtime_ns for path in (tmp_path / "tuned").rglob("row.json")]
    assert run(*tune)[0] == 0
    assert [path.stat().st_mtime_ns for path in (tmp_path / "tuned").rglob("row.json")] == written
    assert printed.count("| dense - none |") == 1 and printed.count("| funnel - dense |") == 1
    assert "holds no finished objective" in run(*tune, "--pretrained", tmp_path)[2]
    assert "was not pretrained from" in run(*tune, "--model_name_or_path", tmp_path / "out" / "dense")[2]
    config = tmp_path / "out" / "funnel" / "config.json"
    config.write_text(config.read_text().replace('"eta": 0', '"eta": 1'))
    assert "funnel in" in (words := run(*tune)[2]) and "another schedule than dense" in words


@pytest.mark.slow
def test_several_tasks_leave_an_encoder_that_the_experiment_takes(run, command, tiny_text_file, tmp_path):
    assert run(*command, "--objectives", "dense")[0] == 0
    other = tmp_path / "other.csv"
    other.write_text("sentence,label\n" + "".join(f"film number {n} is a film,{n % 3}\n" for n in range(60)))
    fine_tune = ("--use_cpu", "--save_strategy", "no", "--disable_tqdm", "True", "--learning_rate", 5e-3)
    several = [
        *("train_multitask", "--model_name_or_path", command[2], "--dataset_names", tiny_text_file, other),
        *("--gamma", 1, 2, 1, "--num_train_epochs", 4, *fine_tune),
        *("--output_dir", tmp_path / "out" / "multitask", "--max_length", 64),
    ]
    code, printed, words = run(*several)
    assert code == 0 and "2 tasks" in printed, words
    row = json.loads((tmp_path / "out" / "multitask" / "pretrain_results.json").read_text())
    assert row["loss_after"] < row["loss_before"] and row["tokens"] > 0 and row["training_flops"] > 0
    assert not (tmp_path / "out" / "multitask" / "checkpoints").exists()
    classifier = load_from_encoder(tmp_path / "out" / "multitask", ClassformerForSequenceClassification, num_labels=3)
    assert classifier.config.gamma == [1, 2, 1]
    assert "is finished" in run(*several)[1]
    alike = tmp_path / "alike.csv"
    alike.write_text("sentence,label\n" + "".join(f"film number {n} is a film,0.5\n" for n in range(60)))
    for flags, message in (
        (("--dataset_names", other, alike), "all labels of alike are alike"),
        (("--max_steps", 0), "there is nothing to train"),
        (("--label_smoothing_factor", 0.1), "must be 0 for several tasks at once"),
    ):
        assert message in run(*several, *flags, "--output_dir", tmp_path / "refused")[2]
    assert "needs two tasks" in run(*several, "--dataset_names", other)[2]
    assert "leaves no loss to report" in run(*several, "--logging_strategy", "no")[2]
    code, printed, words = run(
        *("pretraining", "--model_name_or_path", command[2], "--pretrained", tmp_path / "out"),
        *("--dataset_names", tiny_text_file, "--max_length", 64, "--max_steps", 1, "--seeds", 1, *fine_tune),
        *("--eval_strategy", "no", "--load_best_model_at_end", "False", "--output_dir", tmp_path / "tuned"),
    )
    assert code == 0 and "multitask seed 42" in printed, words


def test_random_weights_are_none_of_the_checkpoint(tiny_roberta_folder, tiny_task):
    variant, schedule = load_job("schedules").Variant, Schedule((1, 2, 1))
    stock = RobertaModel.from_pretrained(tiny_roberta_folder).embeddings.word_embeddings.weight
    for family, is_same in (("single", True), ("random_weights", False)):
        model = variant(family, schedule).start(str(tiny_roberta_folder), tiny_task)
        assert model.config.gamma == [1, 2, 1] and model.config.num_labels == 2
        assert torch.equal(model.roberta.embeddings.word_embeddings.weight, stock) == is_same


@pytest.mark.slow
def test_fixed_schedules_are_fine_tuned_timed_and_drawn(run, tiny_roberta_folder, tiny_text_file, tmp_path):
    tune = [
        *("schedules", "--model_name_or_path", tiny_roberta_folder, "--dataset_names", tiny_text_file),
        *("--families", "single", "constrained", "random_weights", "--factors", 2, 4, "--rounds", 2),
        *("--max_length", 64, "--max_steps", 1, "--use_cpu", "--save_strategy", "no"),
        *("--eval_strategy", "no", "--load_best_model_at_end", "False", "--disable_tqdm", "True"),
        *("--output_dir", tmp_path / "tuned", "--results_file", tmp_path / "record.json"),
    ]
    code, printed, words = run(*tune)
    assert code == 0 and "1-4-1_eta0 seed 42" in printed, words
    record = json.loads((tmp_path / "record.json").read_text())
    assert [(row["family"], row["layer"], row["factor"], row["schedule"]) for row in record["rows"]] == [
        ("full", None, 1, "1-1-1_eta0"),
        ("single", 0, 2, "2-1-1_eta0"),
        ("single", 1, 2, "1-2-1_eta0"),
        ("single", 0, 4, "4-1-1_eta0"),
        ("single", 1, 4, "1-4-1_eta0"),
        # the last layer computes position 0 only
        ("constrained", 0, 2, "2-2-1_eta0"),
        ("constrained", 1, 2, "1-2-1_eta0"),
        ("random_weights", None, 1, "1-1-1_eta0"),
    ]
    assert set(record["latency"]["reviews"]) == {row["schedule"] for row in record["rows"]}
    assert record["datasets"]["reviews"]["mean_length"] > 3
    pictures = [tmp_path / f"{name}.png" for name in ("single", "last_layers", "constrained")]
    flags = [part for path in pictures for part in (f"--{path.stem}", path)]
    code, _, words = run("schedules", "--draw", tmp_path / "record.json", *flags)
    assert code == 0 and all(path.stat().st_size > 5000 for path in pictures), words
    assert "nothing to draw" in run("schedules", "--draw", tmp_path / "record.json")[2]
    assert "must be at least 2" in run(*tune, "--factors", 1)[2]
    assert "unknown triple" in run(*tune, "--families", "triple")[2]
    assert "--rounds must be at least 0" in run(*tune, "--rounds", -1)[2]
    assert "two data sets are called reviews" in run(*tune, "--dataset_names", tiny_text_file, tiny_text_file)[2]
    assert "--seeds must be at least 1" in run(*tune, "--seeds", 0)[2]
    other = tmp_path / tiny_text_file.name
    other.write_text(tiny_text_file.read_text().replace("take", "scene"))
    assert "or how that is read (fingerprint" in run(*tune, "--dataset_names", other)[2]


def test_lengths_are_those_of_the_training_texts(run, tiny_roberta_folder, tiny_text_file, tmp_path):
    code, printed, words = run(
        *("lengths", "--model_name_or_path", tiny_roberta_folder, "--dataset_names", tiny_text_file),
        *("--figure", tmp_path / "lengths.png", "--results_file", tmp_path / "lengths.json", "--max_length", 8),
    )
    assert code == 0 and "| REVIEWS | " in printed and (tmp_path / "lengths.png").stat().st_size > 5000, words
    row = json.loads((tmp_path / "lengths.json").read_text())["datasets"]["reviews"]
    assert 0 < row["mean"] <= row["quantiles"]["0.95"] == 8 and 0 < row["share_cut"] <= 1
