"""The command lines on tiny data: the main job end to end, resuming, and one sentence for what a user can mend."""

import dataclasses
import json
import os
import re
import resource
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from classformer_hf.commands import search
from classformer_hf.search import SearchSpace
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.page import Account, certificate_command, describe_certification
from classformer_hf.search.settings import SearchSettings
from classformer_hf.training import ClassformerTrainingArguments
from redundancy_hf.command import check_settings, format_record
from redundancy_hf.folders import check_golden_output
from redundancy_hf.metrics import compute_score
from redundancy_hf.record import read_record
from redundancy_hf.task import TaskArguments
from tests.documents import FOLDERS, ROOT, find_script, find_verb

SCRIPTS = Path(__file__).parent.parent / "scripts"
CARVED = ("--validation_fraction", 0.25, "--max_length", 64)


def search_flags(checkpoint, dataset, output, *more) -> list:
    return [
        *("--model_name_or_path", checkpoint, "--dataset_name", dataset, "--output_dir", output, "--use_cpu"),
        *("--num_train_epochs", 1, "--max_trials", 3, "--rounds", 2, "--learning_rate", 1e-3),
        *(*CARVED, "--save_strategy", "no", "--eval_strategy", "no", "--disable_tqdm", "True"),
        *("--load_best_model_at_end", "False", "--force", "--strategy", "thesis", *more),
    ]


@pytest.fixture(scope="module")
def searched(tmp_path_factory, tiny_roberta_two_labels, tiny_text_file):
    """A finished search in a process of its own."""
    output = tmp_path_factory.mktemp("search")
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, output, "--required_performance", 0.5)
    command = [sys.executable, str(SCRIPTS / "search_classformer.py"), *map(str, flags)]
    process = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    assert process.returncode == 0, process.stderr
    return output, process.stdout, flags


def test_search_leaves_a_whole_folder(searched):
    output, printed, _ = searched
    names = {path.name for path in (output / "best").iterdir()}
    assert names >= {
        *("config.json", "model.safetensors", "configuration_classformer.py", "modeling_classformer.py"),
        *("tokenizer_config.json", "search.json", "trials.jsonl", "pareto.png", "README.md"),
    }
    assert (output / "best" / "model.safetensors").stat().st_mode == (output / "best" / "config.json").stat().st_mode
    assert not (output / "current_trial").exists()
    data = json.loads((output / "best" / "search.json").read_text())
    assert data["num_trials"] == 3
    assert len(data["layer_lengths_for_512_tokens"]) == 3
    assert data["speedup_against_stock"] == pytest.approx(
        data["speedup_schedule_only"] * json.loads(printed_trial(output, data))["stock_latency_ratio"]
    )
    assert re.search(r"^plan: .* if the machine stays as it is\.", printed, re.MULTILINE) and "x stock" in printed
    assert re.search(
        r"trial 2 of at most 3: \S+ \(\w+\) .*score 0\.\d+ .*\| best so far (the full model|\S+: \d\.\d\dx, .*) "
        r"\| .* left in all",
        printed,
    )
    assert str(output) not in (output / "best" / "README.md").read_text()


def test_search_leaves_the_full_model_and_what_was_read(searched, tiny_text_file):
    output, *_ = searched
    names = {path.name for path in (output / "full").iterdir()}
    assert names >= {"config.json", "model.safetensors", "modeling_classformer.py", "tokenizer_config.json"}
    assert names >= {"README.md", "golden", "task.json", "task_rows.npz"}
    assert json.loads((output / "full" / "config.json").read_text())["gamma"] == [1, 1, 1]
    card = (output / "full" / "README.md").read_text()
    assert "# full\n" in card and "name: full\n" in card and "partial" not in card
    (model, *_) = (output / "models").iterdir()
    for folder in (output, output / "best", output / "full", model):
        record = read_record(folder)
        assert record.studies == (output,) and record.arguments["dataset_name"] == str(tiny_text_file)
        assert {name: split["rows"] for name, split in record.splits.items()} == {
            "train": 36,
            "validation": 12,
            "test": 16,
        }


def test_command_of_the_report_works_as_printed(run, searched, monkeypatch, tmp_path):
    output, printed, _ = searched
    study = shutil.copytree(output, tmp_path / "runs" / "a search")
    monkeypatch.chdir(tmp_path)
    for name in ("full", "best"):
        # nothing tells what the classifier was trained on that this search was given
        record = read_record(study / name)
        assert record.seen is None
        dataclasses.replace(record, before=np.array([], dtype=np.uint64)).write(study / name)
    account = Account(study, SimpleNamespace(required_performance=0.9), {})
    # the full model needs no certificate
    is_found = json.loads((output / "best" / "config.json").read_text())["gamma"] != [1, 1, 1]
    assert (describe_certification(output, 0.5) in printed) == is_found
    program, verb, *arguments = shlex.split(certificate_command(account))
    assert (program, verb) == ("redundancy-hf", "evaluate")
    assert arguments == ["runs/a search/full", "runs/a search/best", "--required_performance", "0.9"]
    code, printed, words = run("evaluate_model", *arguments, "--update_card")
    assert code == 0, words
    assert "reviews test: 16 examples" in printed
    # which full model it is
    for folder, name in (("best", "certificate.json"), ("best", "search.json"), ("full", "search.json")):
        assert json.loads((study / folder / name).read_text())["reference"] == "tuned"
    assert "Against full (after its own fine-tuning), on the test split" in (study / "best" / "README.md").read_text()
    (line,) = (study / "test_readings.jsonl").read_text().splitlines()
    # the same line stands in all folders of the search, and the winners' own know it through it
    assert line == (study / "full" / "test_readings.jsonl").read_text().strip()
    (model, *_) = (study / "models").iterdir()
    code, _, words = run("evaluate_model", model, *arguments[1:], "--unseen")
    assert code == 1 and "--read_again" in words


def test_full_model_comes_back(run, searched, tmp_path):
    output, _, flags = searched
    study = shutil.copytree(output, tmp_path / "study")
    flags = [study if flag == output else flag for flag in flags]
    full = study / "models" / "1-1-1_eta0"
    # from its copy, and without it from a training
    shutil.rmtree(full)
    code, printed, words = run("search_classformer", *flags)
    assert code == 0 and "its weights are gone" not in printed, words
    for path in full, study / "full":
        shutil.rmtree(path, ignore_errors=True)
    code, printed, words = run("search_classformer", *flags)
    assert code == 0 and "training 1-1-1_eta0 again: its weights are gone" in printed, words
    assert (study / "full" / "model.safetensors").exists()


def printed_trial(output: Path, data: dict) -> str:
    rows = [json.loads(line) for line in (output / "trials.jsonl").read_text().splitlines()[1:]]
    chosen = next(row for row in rows if row["schedule"] == {"gamma": data["gamma"], "eta": data["eta"]})
    return json.dumps(chosen["measurement"])


def test_weights_in_the_folder_have_the_score_in_the_journal(run, searched, tiny_text_file):
    output, *_ = searched
    code, printed, _ = run(
        *(
            "evaluate_model",
            "--models",
            output / "best",
            "--dataset_name",
            tiny_text_file,
            *CARVED,
        ),
        *("--split", "validation", "--device", "cpu"),
    )
    score = json.loads((output / "best" / "search.json").read_text())["score"]
    assert code == 0
    assert f"accuracy {score:.4f}" in printed


def test_finished_search_repeats_nothing(run, searched):
    output, _, flags = searched
    before = (output / "trials.jsonl").read_bytes()
    code, printed, _ = run(
        "search_classformer", *flags, "--required_performance", "0.99", "--results_file", output / "r.json"
    )
    assert code == 0
    assert (output / "trials.jsonl").read_bytes() == before
    assert "asked: 99 %" in printed
    record = json.loads((output / "r.json").read_text())
    assert len(record["trials"]) == 3 and str(output) not in json.dumps(record["arguments"])
    assert record["program"] == "redundancy-hf search" and record["arguments"]["use_cpu"] is True


@pytest.mark.parametrize(("strategy", "epochs"), [("thesis", "10.0"), ("random", "3.0")])
def test_epochs_that_nobody_asked_for(run, tmp_path, tiny_roberta_two_labels, tiny_text_file, strategy, epochs):
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--strategy", strategy)
    position = flags.index("--num_train_epochs")
    flags = [*flags[:position], *flags[position + 2 :], "--evaluation", "finetune", "--max_trials", 1]
    code, _, words = run("search_classformer", *flags)
    assert code == 0, words
    study = json.loads((tmp_path / "run" / "trials.jsonl").read_text().splitlines()[0])
    assert study["identity"]["recipe"]["num_train_epochs"] == epochs


def test_search_on_another_machine_times_its_trials_again(run, searched, tmp_path, monkeypatch):
    output, _, flags = searched
    copied = shutil.copytree(output, tmp_path / "moved")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(77)))
    assert run("search_classformer", *(copied if flag == output else flag for flag in flags))[0] == 0
    before, after = ((folder / "trials.jsonl").read_text().splitlines() for folder in (output, copied))
    assert after[: len(before)] == before, "nothing is tried again"
    new = [json.loads(line) for line in after[len(before) :]]
    assert [(row["type"], row["number"]) for row in new] == [("latency", number) for number in range(3)]
    assert {row["measurement"]["hardware"]["usable_cores"] for row in new} == {77}
    data = json.loads((copied / "best" / "search.json").read_text())
    assert data["hardware"]["usable_cores"] == 77
    assert data["latency_ratio"] in [row["measurement"]["latency_ratio"] for row in new]


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (("--split_seed", 7), "--split_seed (42, now 7)"),
        (("--max_length", 16, "--seed", 1), "--max_length (64, now 16), --seed (42, now 1)"),
        (("--threads", 2), "--threads (1, now 2)"),
    ],
)
def test_search_names_the_flags_that_changed(run, searched, flags, named):
    code, _, message = run("search_classformer", *searched[2], *flags)
    assert code == 1
    assert f"belongs to another study: {named}; use another --output_dir" in message


def test_search_tells_changed_data_from_other_flags(run, searched, tmp_path, tiny_text_file):
    changed = tmp_path / tiny_text_file.name
    changed.write_text(tiny_text_file.read_text().replace("dull", "grey"))
    flags = [changed if flag == tiny_text_file else flag for flag in searched[2]]
    code, _, message = run("search_classformer", *flags)
    assert code == 1
    assert "belongs to another study: the content of --dataset_name, which has changed; " in message


def test_search_refuses_another_dataset_in_the_same_folder(run, searched, tmp_path, tiny_text_file):
    other = tmp_path / "other.csv"
    other.write_text(tiny_text_file.read_text().replace("dull", "grey"))
    _, _, flags = searched
    flags = [other if flag == tiny_text_file else flag for flag in flags]
    code, _, message = run("search_classformer", *flags)
    assert code == 1
    assert "belongs to another study: --dataset_name (reviews.csv, now other.csv)" in message


def test_search_stops_where_there_is_nothing_to_keep(run, tmp_path, tiny_roberta_two_labels, tiny_text_file):
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--learning_rate", 0)
    flags.remove("--force")
    code, _, message = run("search_classformer", *flags)
    assert code == 1
    assert re.search(r"not above the majority score 0\.\d+ by 2 standard errors .* --force", message)
    assert (tmp_path / "run" / "trials.jsonl").read_text().count("\n") == 2


@pytest.mark.slow
def test_search_killed_between_trials_resumes(tmp_path, tiny_roberta_two_labels, tiny_text_file):
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--max_trials", 4)
    command = [sys.executable, str(SCRIPTS / "search_classformer.py"), *map(str, flags)]
    journal = tmp_path / "run" / "trials.jsonl"
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=SCRIPTS.parent)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_text().count("\n") >= 3):
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = journal.read_text().splitlines()[:3]
    done = subprocess.run(command, capture_output=True, text=True, cwd=SCRIPTS.parent)
    assert done.returncode == 0, done.stderr
    lines = journal.read_text().splitlines()
    assert lines[:3] == finished and len(lines) == 5
    assert len({json.loads(line)["key"] for line in lines[1:]}) == 4


def test_space_tells_apart_what_the_validation_texts_do(tmp_path, tiny_roberta_two_labels, tiny_text_file):
    header, *lines = tiny_text_file.read_text().splitlines()
    long = f'"{"good, quick, too short, " * 6}",positive'
    for name, rows in (("train", [*lines[:40], long]), ("validation", lines[40:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]) + "\n")
    training = ClassformerTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, disable_tqdm=True)
    task = TaskArguments(dataset_name=str(tmp_path), max_length=64)
    data, tokenizer, checkpoint = search.load_inputs(str(tiny_roberta_two_labels), task, training, None)
    space = search.build_space(FineTuneObjective(checkpoint, data, tokenizer, training), SearchSettings())
    longest = max(map(len, data.splits["validation"]["input_ids"]))
    assert longest < space.max_tokens / 2
    shorter = SearchSpace(3, longest, first_token_gamma=66)
    schedules = space.enumerate()
    assert all(shorter.canonical(schedule) == schedule for schedule in schedules)


def limit_file_size():
    resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, resource.RLIM_INFINITY))


@pytest.mark.slow
@pytest.mark.parametrize("saves", ["no", "epoch"])
def test_full_disk_is_one_sentence_and_the_search_goes_on(tmp_path, tiny_roberta_two_labels, tiny_text_file, saves):
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--strategy", "random")
    flags += ["--save_strategy", saves, "--required_performance", 0.5, "--num_winners", 1]
    command = [sys.executable, str(SCRIPTS / "search_classformer.py"), *map(str, flags)]
    settings = {"capture_output": True, "text": True, "cwd": SCRIPTS.parent}
    # files that may not grow stand for a disk that is full
    process = subprocess.run(command, preexec_fn=limit_file_size, **settings)
    assert process.returncode == 1 and "Traceback" not in process.stderr, process.stderr
    assert "error: a file could not be written" in process.stderr.splitlines()[-1]
    assert "free some space and run the same command again" in process.stderr.splitlines()[-1]
    process = subprocess.run(command, **settings)
    assert process.returncode == 0, process.stderr


@pytest.mark.slow
def test_two_processes_search_and_train_like_one(tmp_path, tiny_roberta_two_labels, tiny_text_file):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2"]
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--time_budget", 10)
    done = subprocess.run(
        [*launch, str(SCRIPTS / "search_classformer.py"), *map(str, flags)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
    assert [row["type"] for row in rows] == ["study", "trial", "trial", "trial"]
    assert len({row["key"] for row in rows[1:]}) == 3
    said = "reviews: text from sentence, labels from label\n"
    assert done.stdout.startswith(said) and done.stdout.count(said) == 1 and said not in done.stderr
    assert done.stdout.count("asked: ") == 1
    flags = [
        *("--model_name_or_path", tiny_roberta_two_labels, "--dataset_name", tiny_text_file, *CARVED),
        *("--output_dir", tmp_path / "final", "--use_cpu", "--num_train_epochs", 1, "--disable_tqdm", "True"),
    ]
    done = subprocess.run(
        [*launch, str(SCRIPTS / "train_classformer.py"), *map(str, flags)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    final = tmp_path / "final" / "seed-42"
    check_golden_output(AutoModelForSequenceClassification.from_pretrained(final), final)


@pytest.mark.slow
def test_two_processes_share_a_supernet(tmp_path, tiny_roberta_two_labels, tiny_text_file):
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", SCRIPTS / "search_classformer.py"]
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--strategy", "random")
    flags += ["--required_performance", 0.5, "--num_winners", 1, "--length_buckets", 16]
    command = list(map(str, [*launch, *flags]))
    for _ in range(2):
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("asked: ") == 1
        rows = [json.loads(line) for line in (tmp_path / "run" / "trials.jsonl").read_text().splitlines()]
        assert len(rows) == 4 and len({row["key"] for row in rows[1:]}) == 3
        rows = [json.loads(line) for line in (tmp_path / "run" / "winners" / "trials.jsonl").read_text().splitlines()]
        assert [row["status"] for row in rows[1:]] == ["ok"] * (len(rows) - 1)
        assert (tmp_path / "run" / "best" / "model.safetensors").exists()


@pytest.mark.slow
def test_interrupted_search_leaves_the_best_so_far(tmp_path, tiny_roberta_two_labels, tiny_text_file):
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--max_trials", 8)
    command = [sys.executable, str(SCRIPTS / "search_classformer.py"), *map(str, flags)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=SCRIPTS.parent)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (tmp_path / "run" / "best" / "search.json").exists():
        time.sleep(0.05)
    # Python drops the one that arrives in a callback of its own, so whoever sees nothing happen presses again
    for _ in range(12):
        process.send_signal(signal.SIGINT)
        try:
            printed, errors = process.communicate(timeout=5)
            break
        except subprocess.TimeoutExpired:
            pass
    assert process.returncode == 130, errors
    assert "x stock" in printed and "Traceback" not in errors
    assert (tmp_path / "run" / "best" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--required_performance", "99"], "above 0 and at most 1, got 99.0; 0.99 asks for 99 %"),
        (["--max_trials", "0"], "--max_trials must be at least 1, got 0"),
        (["--gamma_options", "1", "zero"], "a gamma option is an integer >= 1 or \"first\", got 'zero'"),
        (["--eta_options", "-3"], "an eta option is an integer >= 0, got -3"),
        (["--dataset_name", "no_such_file.csv"], "there is no file or folder no_such_file.csv; check the path"),
        (["--text_column", "body"], "body.*sentence"),
        (["--label_column", "stars"], "--label_column .stars. is not in.*label"),
        (["--metric_name", "bleu"], "accuracy.*bleu|bleu.*accuracy"),
        (["--model_name_or_path", "no_such_folder"], "there is no folder `no_such_folder`, and no such model"),
        (["--max_length", "1000"], "at most the tokenizer's `model_max_length` of 64, got 1000; where the model"),
        (["--rounds", "0"], "--rounds must be at least 1, got 0"),
        (["--metric_for_best_model", "banana"], "--metric_for_best_model must be loss or accuracy, got banana"),
        (
            ["--output_dir", __file__],
            "--output_dir is a folder .*test_scripts.py is, or lies in, a file",
        ),
        (["--output_dir", f"{__file__}/run"], "--output_dir is a folder to write to"),
        (["--learning_rate", "-1"], "--learning_rate must be a number that is not negative, got -1"),
        (["--num_train_epochs", "nan"], "--num_train_epochs must be a number that is not negative, got nan"),
        (["--per_device_train_batch_size", "0"], "--per_device_train_batch_size must be at least 1, got 0"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size must be at least 1, got 0"),
        (["--results_file", str(SCRIPTS)], "--results_file is a file to write, and .*scripts is a folder"),
    ],
    ids=lambda value: value[0].strip("-") if isinstance(value, list) else "",
)
def test_search_says_what_is_wrong(run, tmp_path, tiny_roberta_two_labels, tiny_text_file, flags, message):
    arguments = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", *flags)
    code, _, words = run("search_classformer", *arguments)
    assert code == 1
    assert words.startswith("error: ") and words.count("\n") == 0
    assert re.search(message, words)
    assert not (tmp_path / "run" / "trials.jsonl").exists()


def test_several_tasks_say_what_is_wrong(run, tmp_path, tiny_roberta_folder, tiny_text_file):
    other = shutil.copy(tiny_text_file, tmp_path / "other.csv")
    code, _, words = run(
        *("train_multitask", "--model_name_or_path", tiny_roberta_folder, "--dataset_names", tiny_text_file, other),
        *("--max_length", 32, "--use_cpu", "--output_dir", tmp_path / "run", "--eta", 2),
    )
    assert code == 1 and "--eta is a part of a schedule: give --gamma too" in words


def test_checkpoint_with_code_of_its_own_is_refused_without_a_question(
    run, monkeypatch, tmp_path, tiny_tokenizer, tiny_text_file
):
    config = {"model_type": "strange", "auto_map": {"AutoConfig": "code.Config", "AutoModel": "code.Model"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    tiny_tokenizer.save_pretrained(tmp_path)
    # which transformers would ask for 15 seconds
    monkeypatch.setattr("builtins.input", lambda prompt: pytest.fail(prompt))
    code, _, words = run("search_classformer", *search_flags(tmp_path, tiny_text_file, tmp_path / "run"))
    assert code == 1 and "`model_type` must be one of bert" in words


def test_missing_gpu_is_said_before_anything_is_trained(
    run, monkeypatch, tmp_path, tiny_roberta_two_labels, tiny_text_file
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    flags = search_flags(tiny_roberta_two_labels, tiny_text_file, tmp_path / "run", "--device", "cuda")
    code, _, words = run("search_classformer", *flags)
    assert code == 1
    assert "torch finds no GPU; use --device cpu" in words
    assert not (tmp_path / "run").exists()


def test_data_without_a_checkpoint_is_refused(run, tmp_path, tiny_text_file):
    code, _, words = run("search_classformer", "--dataset_name", tiny_text_file, "--output_dir", tmp_path)
    assert code == 1
    assert "--dataset_name needs --model_name_or_path" in words


@pytest.mark.parametrize(
    ("content", "message"),
    [("{", "cannot be read"), ('{"max_trails": 3}', r"unknown arguments \['max_trails'\]")],
)
def test_bad_recipe_is_refused(run, tmp_path, content, message):
    recipe = tmp_path / "recipe.json"
    recipe.write_text(content)
    code, _, words = run("search_classformer", recipe)
    assert code == 1
    assert re.search(message, words)


def test_training_takes_a_found_architecture_and_seeds(
    run, searched, tiny_roberta_two_labels, tiny_text_file, tmp_path
):
    output, *_ = searched
    flags = [
        *(
            "--model_name_or_path",
            tiny_roberta_two_labels,
            "--dataset_name",
            tiny_text_file,
            *CARVED,
        ),
        *("--config_name", output / "best", "--seeds", 2, "--output_dir", tmp_path / "final", "--use_cpu"),
        *("--num_train_epochs", 2, "--disable_tqdm", "True", "--learning_rate", 1e-3),
    ]
    code, printed, _ = run("train_classformer", *flags)
    assert code == 0
    assert "mean of 2" in printed
    expected = json.loads((output / "best" / "config.json").read_text())
    for seed in (42, 43):
        model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "final" / f"seed-{seed}")
        assert (model.config.gamma, model.config.eta) == (expected["gamma"], expected["eta"])
    # the search that found it and all seeds share the test split
    assert read_record(tmp_path / "final" / "seed-43").studies == (tmp_path / "final", output)
    # a second call trains nothing
    stamp = (tmp_path / "final" / "seed-42" / "model.safetensors").stat().st_mtime_ns
    assert run("train_classformer", *flags)[0] == 0
    assert (tmp_path / "final" / "seed-42" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--seeds", "0"], "--seeds must be at least 1, got 0"),
        (["--config_name", "no_such_folder"], "there is no no_such_folder; --config_name is a folder or a config.json"),
        (["--config_name", "x", "--gamma", "1", "2", "1"], "give --config_name or --gamma, not both"),
        (["--gamma", "1", "2"], "2 for 3 layers"),
        (["--eta", "4"], "--eta is a part of a schedule: give --gamma too"),
        (["--eta", "-1"], "--eta is a part of a schedule: give --gamma too"),
        (["--config_name", "x", "--eta", "2"], "--config_name has an eta of its own: leave --eta out"),
        (["--text_column", "texxt"], "column 'texxt' is not in split 'train'"),
        (["--num_train_epochs", "0"], "there is nothing to train"),
        (["--metric_for_best_model", "foo"], "--metric_for_best_model must be loss or accuracy, got foo"),
    ],
)
def test_training_says_what_is_wrong(run, tiny_roberta_two_labels, tiny_text_file, tmp_path, flags, message):
    code, printed, words = run(
        *("train_classformer", "--model_name_or_path", tiny_roberta_two_labels, "--dataset_name", tiny_text_file),
        *("--output_dir", tmp_path, "--use_cpu", *CARVED, *flags),
    )
    assert code == 1
    assert re.search(message, words)
    assert "texxt" not in printed, "a column that is not read"


@pytest.mark.parametrize(
    ("names", "flags"),
    [(["Positive", "Negative"], ()), (["good", "bad"], ("--label_order", "positive", "negative"))],
)
def test_training_keeps_a_head_in_another_order(
    run, tiny_settings, tiny_tokenizer, tiny_text_file, tmp_path, names, flags
):
    config = RobertaConfig(**{**tiny_settings, "num_labels": 2}, id2label=dict(enumerate(names)))
    original = RobertaForSequenceClassification(config).eval()
    original.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    code, _, words = run(
        *("train_classformer", "--model_name_or_path", tmp_path / "model", "--dataset_name", tiny_text_file, *CARVED),
        *("--output_dir", tmp_path / "run", "--use_cpu", "--max_steps", 1, "--learning_rate", 1e-12),
        *("--save_strategy", "no", "--eval_strategy", "no", "--load_best_model_at_end", "False", *flags),
    )
    assert code == 0, words
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "seed-42")
    assert trained.config.id2label == {0: "negative", 1: "positive"}
    batch = tiny_tokenizer(["a warm film", "a dull film"], padding=True, return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(trained(**batch).logits, original(**batch).logits[:, [1, 0]], atol=1e-4, rtol=1e-4)


def test_settings_that_left_nothing_are_taken_over(tmp_path):
    path = tmp_path / "seed-42" / "settings.json"
    check_settings(path, {"recipe": 1}, is_writer=True)
    (path.parent / "checkpoints").mkdir()
    check_settings(path, {"recipe": 2}, is_writer=False)  # another process of the same command
    assert json.loads(path.read_text()) == {"recipe": 1}
    check_settings(path, {"recipe": 2}, is_writer=True)
    assert json.loads(path.read_text()) == {"recipe": 2}
    (path.parent / "checkpoints" / "trainer_state.json").write_text("{}")
    check_settings(path, {"recipe": 2}, is_writer=True)
    with pytest.raises(ValueError, match=r"seed-42 holds another training: --recipe \(2, now 1\)"):
        check_settings(path, {"recipe": 1}, is_writer=True)
    assert json.loads(path.read_text()) == {"recipe": 2}


def test_nan_loss_ends_training_with_one_sentence(run, tiny_roberta_two_labels, tiny_text_file, tmp_path):
    code, _, words = run(
        *("train_classformer", "--model_name_or_path", tiny_roberta_two_labels, "--dataset_name", tiny_text_file),
        *(
            "--output_dir",
            tmp_path,
            "--use_cpu",
            "--learning_rate",
            1e30,
            "--num_train_epochs",
            3,
            "--disable_tqdm",
            "True",
        ),
        *CARVED,
    )
    assert code == 1
    assert re.search(r"the training loss became (nan|inf) by step \d+; lower --learning_rate|NaN", words)


# what others only import has no command line
RUN = [
    path.stem
    for folder in FOLDERS
    for path in ROOT.glob(f"{folder}/*.py")
    if re.search("^(if __name__|main = command_of)", path.read_text(), re.MULTILINE)
]


@pytest.mark.parametrize("script", sorted(RUN))
def test_help_teaches(run, script):
    code, printed, _ = run(script, "--help")
    assert code == 0
    if find_script(script).parent.name == "scripts":
        assert printed.count(f"\n    redundancy-hf {find_verb(script)} ") >= 2, "two examples"
        assert not re.search(r"\b(scripts|experiments|recipes|docs)/", printed), "only a clone has it"
    else:
        assert f"python experiments/{script}.py" in printed, "an example"


@pytest.fixture(scope="session")
def full_and_candidate(tmp_path_factory, tiny_settings, tiny_tokenizer):
    """Folders of two classifiers with the labels of `tiny_text_file`: one answers "positive", the other at random."""
    names = ["negative", "positive"]
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    folders = []
    for seed, bias in ((0, 100.0), (1, 0.0)):
        torch.manual_seed(seed)
        model = RobertaForSequenceClassification(RobertaConfig(**{**tiny_settings, "num_labels": 2, **labels}))
        model.classifier.out_proj.bias.data[1] = bias
        folders.append(tmp_path_factory.mktemp("certify"))
        model.save_pretrained(folders[-1])
        tiny_tokenizer.save_pretrained(folders[-1])
    return folders


def test_evaluation_certifies_all_but_the_first_model(run, full_and_candidate, tiny_text_file, tmp_path):
    full, candidate = full_and_candidate
    code, printed, words = run(
        *(
            "evaluate_model",
            "--models",
            full,
            candidate,
            full,
            "--dataset_name",
            tiny_text_file,
            *CARVED,
            "--device",
            "cpu",
        ),
        *(
            "--split",
            "validation",
            "--required_performance",
            0.99,
            "--results_file",
            tmp_path / "scores.json",
            "--unseen",
        ),
    )
    assert code == 0, words
    first, *others = json.loads((tmp_path / "scores.json").read_text())["models"]
    assert "certificate" not in first
    certificates = [row["certificate"] for row in others]
    for row, certificate in zip(others, certificates, strict=True):
        # a dozen examples prove nothing
        assert not certificate["is_issued"] and certificate["num_candidates"] == 2
        assert certificate["full_score"] == first["score"] and certificate["candidate_score"] == row["score"]
        assert f"{row['model']}: {certificate['sentence']}" in printed
    assert certificates[1]["performance"] == 1 and certificates[1]["num_examples_needed"] > 100
    assert json.loads((candidate / "certificate.json").read_text()) == certificates[0]
    assert certificates[0]["split"] == "validation"
    # always "positive" is no better than the majority
    assert "to keep a share of that means little" in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--required_performance", "0.99"], "compares with the first of --models, got 1 model"),
        (["MODEL", "--required_performance", "1.2"], "must be above 0 and at most 1, got 1.2"),
        (["MODEL", "--required_performance", "0.9", "--confidence", "1"], "below 1, got 1.0"),
    ],
)
def test_evaluation_refuses_a_request_before_it_reads(run, full_and_candidate, tiny_text_file, flags, message):
    full, candidate = full_and_candidate
    flags = [candidate if flag == "MODEL" else flag for flag in flags]
    code, printed, words = run(
        *("evaluate_model", "--models", full, *flags, "--dataset_name", tiny_text_file, *CARVED, "--device", "cpu"),
        *("--split", "validation"),
    )
    assert code == 1 and message in words and "examples, majority" not in printed


@pytest.fixture
def cached_predictions(tmp_path):
    """Six schedules on 4,000 examples; the fastest keeps 97.5 % of the accuracy."""
    generator = np.random.default_rng(0)
    references = generator.integers(0, 2, 4000)
    wrong = generator.random(4000)
    predictions = [np.where(wrong < 0.1 + 0.0045 * index, 1 - references, references) for index in range(6)]
    order = [1, 0, 2, 3, 4, 5]
    np.savez(
        tmp_path / "predictions.npz",
        keys=np.array([f"schedule {index}" for index in order]),
        predictions=np.array(predictions)[order],
        references=references,
        latency_ratio=1 - 0.1 * np.array(order),
    )
    return tmp_path / "predictions.npz"


def test_certificate_experiment_finds_the_plain_rule_wrong(run, cached_predictions, tmp_path):
    code, printed, words = run(
        *("certificate", "--predictions", cached_predictions, "--reference_key", "schedule 0"),
        *("--required_performance", 0.95, 0.99, "--num_search", 300, "--num_holdout", 500, 2000, "--margins", 0, 1),
        *("--num_resamples", 150, "--results_file", tmp_path / "study.json"),
    )
    assert code == 0, words
    record = json.loads((tmp_path / "study.json").read_text())
    rows = {(row["required_performance"], row["margin"], row["num_holdout"]): row for row in record["rows"]}
    assert len(rows) == 8 and record["reference_key"] == "schedule 0"
    assert record["schedules"]["schedule 0"]["performance"] == 1
    plain, careful = rows[0.99, 0, 2000], rows[0.99, 1, 2000]
    assert plain["choice_violates_rate"] > 0.15 > 0.05 >= careful["choice_violates_rate"]
    assert plain["issued_wrongly_rate"] <= 0.08 and plain["issued_wrongly_interval"][0] < 0.05
    assert plain["issued_wrongly_rate"] <= plain["choice_violates_rate"]
    # everything keeps 95 %, and a holdout of 2,000 shows it
    assert rows[0.95, 0, 2000]["choice_violates_rate"] == 0 and rows[0.95, 0, 2000]["issued_rate"] > 0.9
    assert rows[0.95, 0, 2000]["mean_latency_ratio"] == pytest.approx(0.5, abs=0.02)
    assert "issued wrongly" in printed


def test_certificate_experiment_simulates_many_classes(run, tmp_path):
    """What is already simulated stays; the shares of classes have the macro F1 that they should have."""
    record = tmp_path / "simulation.json"
    flags = ["--required_performance", 0.5, 0.9, "--num_holdout", 150, "--num_resamples", 40, "--results_file", record]
    code, printed, words = run("certificate", "--simulated_classes", 3, *flags)
    assert code == 0, words
    rows = json.loads(record.read_text())["rows"]
    assert [(row["class_shares"], row["required_performance"]) for row in rows] == [
        *(("even", 0.5), ("even", 0.9), ("1 / rank", 0.5), ("1 / rank", 0.9))
    ]
    for row in rows:
        assert row["issued_wrongly_rate"] <= 0.15 and row["issued_wrongly_rate"] <= row["issued_rate"]
        assert row["seconds"] > 0
    assert rows[0]["issued_equal_rate"] == rows[0]["issued_halfway_rate"] == 1 and "Issued wrongly" in printed
    code, printed, words = run("certificate", "--simulated_classes", 3, 4, *flags)
    again = json.loads(record.read_text())["rows"]
    assert code == 0 and again[:4] == rows and len(again) == 8


def test_simulated_models_keep_the_share_they_should():
    classes = runpy.run_path(str(find_script("certificate")))["Classes"](np.array([0.6, 0.3, 0.1]))
    sample = classes.draw(classes.find_accuracy(0.7), 200_000, np.random.default_rng(0))
    full, candidate = (compute_score("macro_f1", predictions, sample[2]) for predictions in sample[:2])
    assert candidate / full == pytest.approx(0.7, abs=0.005)
    assert (sample[0] == sample[2]).mean() == pytest.approx(0.85, abs=0.005)


def test_certificate_experiment_says_what_is_wrong(run, cached_predictions, tmp_path):
    code, _, words = run("certificate", "--predictions", cached_predictions, "--reference_key", "x")
    assert code == 1 and "must be one of the file's keys, got 'x'" in words
    np.savez(tmp_path / "short.npz", keys=["a"], predictions=np.ones((1, 3)), references=[1], latency_ratio=[1.0])
    code, _, words = run("certificate", "--predictions", tmp_path / "short.npz")
    assert code == 1 and "got (1, 3) and (1,) for 1 keys and 1 references" in words
    code, _, words = run("certificate")
    assert code == 1 and "give the cached --predictions, or --simulated_classes" in words
    code, _, words = run("certificate", "--simulated_classes", 1)
    assert code == 1 and "must be at least 2 each, got [1]" in words


def test_record_has_a_line_per_row():
    rows = [{"seed": 0, "scores": [0.5, 0.25]}, {"seed": 1, "scores": []}]
    curves = {name: [0.125] * 300 for name in ("low", "high")}
    record = {"command": "x", "hardware": {"cores": 2}, "rows": rows, "tasks": {"rte": rows}, "curves": curves}
    lines = format_record(record).splitlines()
    assert json.loads("".join(lines)) == record
    assert lines[:5] == [
        "{",
        ' "command": "x",',
        ' "hardware": {"cores": 2},',
        ' "rows": [',
        f"  {json.dumps(rows[0])},",
    ]
    assert len(lines) == 4 + 4 + 6 + 4
    assert format_record([[1, 2]]) == "[\n [1, 2]\n]"
