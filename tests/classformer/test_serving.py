"""Exported classifiers: the same logits as the model at every length, in every runtime, and a pipeline on them."""

import json
import logging
import multiprocessing
import pickle
import re
import shutil
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from transformers import pipeline

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.export import export
from classformer_hf.search.cascade import margins_of
from redundancy_hf.data import load_task
from redundancy_hf.folders import list_files
from redundancy_hf.hub import find_leaks, stage_folder
from redundancy_hf.record import read_record
from redundancy_hf.runtimes import RUNTIMES, ExportedClassifier
from redundancy_hf.task import TaskArguments

BUCKETS = [{"max_tokens": 8, "gamma": [1, 1, 1], "eta": 0}, {"max_tokens": 20, "gamma": [2, 1, 1], "eta": 1}]
CASCADE = {"gamma": [8, 2, 1], "eta": 0, "margin": 0.4}
# what is exported where; experiments/parity.py has the whole grid
CASES = {
    "torch": ("torch", [4, 2, 1], 2, None),
    "onnx": ("onnx", [1, 2, 2], 0, None),
    "onnx, buckets": ("onnx", [4, 2, 1], 2, BUCKETS),
    "openvino": ("openvino", [2, 1, 2], 8, None),
    "onnx, cascade": ("onnx", [1, 2, 1], 0, {"cascade": CASCADE}),
    "torch, cascade and buckets": ("torch", [1, 2, 1], 0, {"cascade": CASCADE, "length_buckets": BUCKETS}),
    # one position is left of a short example
    "onnx, to one position": ("onnx", [4, 4, 4], 0, None),
}
SLOW = {name: [pytest.mark.slow] if "," in name else [] for name in CASES}
LENGTHS = [[64], [2], [8, 9], [20, 21, 3, 60], [5, 5], [33] * 5, [1, 64]]


def make_batch(lengths):
    longest = max(lengths)
    ids = torch.randint(5, 300, (len(lengths), longest))
    mask = (torch.arange(longest) < torch.tensor(lengths)[:, None]).long()
    types = (torch.arange(longest) >= longest // 2).long() * mask
    return {"input_ids": torch.where(mask == 1, ids, 1), "attention_mask": mask, "token_type_ids": types}


def for_model(batch, classifier):
    """Leave out token types where the graph reads none."""
    return {name: value for name, value in batch.items() if name in classifier.input_names}


def save(folder, settings, tokenizer, dtype=torch.float32, **changes):
    torch.manual_seed(0)
    model = ClassformerForSequenceClassification(ClassformerConfig(**{**settings, "num_labels": 2}, **changes)).eval()
    model.to(dtype).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def make_export(tiny_settings, tiny_tokenizer, tmp_path_factory):
    """Makes what a case of `CASES` exports, once."""
    return cache(lambda name: export_case(*CASES[name], tiny_settings, tiny_tokenizer, tmp_path_factory))


@pytest.fixture(scope="module", params=[pytest.param(name, marks=SLOW[name]) for name in CASES])
def exported(request, make_export):
    """Model, exported classifier and its folder."""
    return make_export(request.param)


def export_case(runtime, gamma, eta, more, tiny_settings, tiny_tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    more = more if isinstance(more, dict) else {"length_buckets": more}
    model = save(folder, tiny_settings, tiny_tokenizer, gamma=gamma, eta=eta, **more)
    if runtime != "torch":
        # as BERT's, which tells the texts of a pair apart
        path = folder / "tokenizer_config.json"
        names = {"model_input_names": ["input_ids", "token_type_ids", "attention_mask"]}
        path.write_text(json.dumps(json.loads(path.read_text()) | names))
    output = export(folder, runtime)
    assert output == folder / runtime
    others = len(more.get("length_buckets") or []) + ("cascade" in more)
    assert len(json.loads((output / "graphs.json").read_text())["graphs"]) == 1 + others
    return model, ExportedClassifier.from_pretrained(output, num_threads=1), output


def test_graphs_equal_the_model(exported):
    model, classifier, _ = exported
    torch.manual_seed(0)
    is_unsure = []
    for lengths in LENGTHS:
        batch = make_batch(lengths)
        with torch.no_grad():
            logits = model(**for_model(batch, classifier)).logits
        torch.testing.assert_close(classifier(**batch).logits, logits, atol=1e-4, rtol=0, msg=str(lengths))
        assert logits.abs().max() > 0.05
        if model.config.cascade:
            with torch.no_grad():
                fast = model(**for_model(batch, classifier), schedule=(model.config.cascade["gamma"], 0))
            margins = margins_of(fast.logits.numpy())
            is_unsure += (margins < model.config.cascade["margin"]).tolist()
    # both passes are under test
    assert not model.config.cascade or set(is_unsure) == {True, False}


def test_pipeline_takes_it_for_a_model(exported, caplog, monkeypatch):
    model, classifier, output = exported
    texts = ["a warm and clever film", "dull"]
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    found = pipeline("text-classification", model=classifier, tokenizer=str(output))(texts)
    assert "not supported" not in caplog.text
    expected = pipeline("text-classification", model=model, tokenizer=str(output))(texts)
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-4)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_openvino_converts_the_model_itself(tiny_settings):
    import openvino

    config = ClassformerConfig(**tiny_settings, gamma=[2, 1, 3], eta=2)
    model = ClassformerForSequenceClassification(config).eval()
    names = ("input_ids", "attention_mask")
    example = {name: make_batch([9, 20])[name] for name in names}
    compiled = openvino.compile_model(
        openvino.convert_model(model, example_input=example), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
    )
    for lengths in LENGTHS:
        batch = {name: make_batch(lengths)[name] for name in names}
        found = torch.tensor(compiled({name: value.numpy() for name, value in batch.items()})[0])
        torch.testing.assert_close(found, model(**batch).logits, atol=1e-4, rtol=0, msg=str(lengths))


def answers_of(classifier, batches):
    return [classifier(**batch).logits for batch in batches]


def make_batches(number=60):
    return [make_batch(torch.randint(1, 65, (3,)).tolist()) for _ in range(number)]


def test_threads_get_their_own_answers(exported):
    classifier, batches = exported[1], make_batches()
    alone = answers_of(classifier, batches)
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(lambda batch: classifier(**batch).logits, batches))
    for number, (found, expected) in enumerate(zip(together, alone, strict=True)):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0, msg=f"batch {number}")


def test_copies_and_other_processes_answer_alike(exported):
    classifier, batches = exported[1], make_batches(4)
    expected = answers_of(classifier, batches)
    classify = pipeline("text-classification", model=classifier, tokenizer=str(exported[2]))
    copy = pickle.loads(pickle.dumps(classify)).model
    # a forked process has the opened graphs without their threads
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=lambda: queue.put([one.tolist() for one in answers_of(classifier, batches)]))
    process.start()
    process.join(60)
    assert process.exitcode == 0
    forked = [torch.tensor(one) for one in queue.get()]
    for found in (answers_of(copy, batches), forked):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("exported", RUNTIMES, indirect=True)
def test_spawned_processes_answer_alike(exported):
    classifier, batches = exported[1], make_batches(4)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        found = pool.submit(answers_of, classifier, batches).result()
    torch.testing.assert_close(found, answers_of(classifier, batches), atol=1e-5, rtol=0)


def test_no_file_tells_where_it_was_made(exported):
    names, left_out = list_files(exported[2])
    assert not left_out and not find_leaks(exported[2], names)
    for name in names:
        if not name.endswith(".py"):
            assert not re.search(rb"/[\w.-]+/[\w./-]+\.py", (exported[2] / name).read_bytes()), name


@pytest.mark.slow
@pytest.mark.parametrize("exported", ["onnx", "openvino"], indirect=True)
def test_exports_are_published_with_the_model(hub, client, exported, tmp_path):
    _, classifier, output = exported
    printed = client("publish", output.parent, "--repo_id", "alice/fast", "--license", "mit")
    assert "read back: ClassformerForSequenceClassification" in printed
    client('from huggingface_hub import snapshot_download; snapshot_download("alice/fast", local_dir="copy")')
    copy, batch = ExportedClassifier.from_pretrained(tmp_path / "copy" / output.name), make_batch([9, 20])
    torch.testing.assert_close(copy(**batch).logits, classifier(**batch).logits, atol=1e-5, rtol=0)


def test_an_export_alone_is_not_published(run, exported):
    code, _, words = run("publish", exported[2], "--repo_id", "alice/fast", "--license", "mit", "--dry_run")
    assert code == 1 and "publish the model's folder with the export in it" in words


@pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.slow)], ids=str)
def test_half_precision_is_exported_in_float32(tiny_settings, tiny_tokenizer, tmp_path, dtype):
    model = save(tmp_path, tiny_settings, tiny_tokenizer, dtype=dtype, gamma=[1, 2, 1], eta=0)
    classifier = ExportedClassifier.from_pretrained(export(tmp_path, "torch"))
    assert classifier.config.dtype == torch.float32
    batch = make_batch([30, 12])
    expected = model.float()(**for_model(batch, classifier)).logits
    torch.testing.assert_close(classifier(**batch).logits, expected, atol=1e-5, rtol=0)
    with pytest.raises(ValueError, match="is an export itself"):
        export(tmp_path / "torch", "torch")


def test_int8_takes_one_text_at_a_time_unless_told(tiny_config):
    sizes = []

    def run_graph(input_ids, attention_mask):
        sizes.append(tuple(input_ids.shape))
        return SimpleNamespace(logits=input_ids[:, :2].float())

    graphs = [{"folder": "graph-64", "max_tokens": 64, "min_padded_tokens": 1}]
    index = {"runtime": "onnx", "inputs": ["input_ids", "attention_mask"], "graphs": graphs}
    answers = []
    for int8, batch_int8 in ((True, False), (True, True), (False, False)):
        classifier = ExportedClassifier(tiny_config, {**index, "int8": int8}, [run_graph], batch_int8, ())
        torch.manual_seed(0)
        answers.append(classifier(**make_batch([9, 5, 12])).logits)
    assert sizes == [(1, 9), (1, 5), (1, 12), (3, 12), (3, 12)]
    assert torch.equal(answers[0], answers[1])


def test_wrong_batches_are_refused(exported):
    with pytest.raises(ValueError, match="reads at most 64 tokens, got 65"):
        exported[1](**make_batch([65]))
    with pytest.raises(ValueError, match="the batch is empty"):
        exported[1](torch.zeros(0, 8, dtype=torch.long))
    batch = make_batch([5, 9])
    left = {name: value.flip(1) for name, value in batch.items()}
    with pytest.raises(ValueError, match="pad on the right"):
        exported[1](**left)
    with pytest.raises(ValueError, match="must be .B, L."):
        exported[1](batch["input_ids"][0])
    with pytest.raises(ValueError, match="by copying its folder"):
        exported[1].save_pretrained("anywhere")


def test_holes_and_rows_of_padding_are_as_in_the_model(exported):
    model, classifier, _ = exported
    batch = make_batch([6, 6, 9])
    batch["attention_mask"][0, [1, 4]] = batch["attention_mask"][1] = 0
    batch["input_ids"] = torch.where(batch["attention_mask"] == 1, batch["input_ids"], 1)
    with torch.no_grad():
        expected = model(**for_model(batch, classifier)).logits
    torch.testing.assert_close(classifier(**batch).logits[[0, 2]], expected[[0, 2]], atol=1e-4, rtol=0)
    assert classifier(**batch).logits.isfinite().all()


def test_types_count_where_the_tokenizer_makes_them(exported):
    classifier, batch = exported[1], make_batch([9, 5])
    are_read = "token_type_ids" in classifier.input_names
    assert are_read == (classifier.runtime != "torch")
    plain = {name: value for name, value in batch.items() if name != "token_type_ids"}
    assert torch.equal(classifier(**batch).logits, classifier(**plain).logits) != are_read


def test_arrays_are_taken_too(exported):
    batch = make_batch([5, 9])
    found = exported[1](**{name: value.numpy() for name, value in batch.items()}).logits
    torch.testing.assert_close(found, exported[1](**batch).logits)


def test_damaged_exports_are_told(exported, tmp_path):
    output = exported[2]
    with pytest.raises(ValueError, match="`num_threads` must be at least 1, got 0"):
        ExportedClassifier.from_pretrained(output, num_threads=0)
    copy = shutil.copytree(output, tmp_path / "copy")
    (copy / "graphs.json").write_text((output / "graphs.json").read_text()[:30])
    with pytest.raises(ValueError, match="graphs.json is damaged"):
        ExportedClassifier.from_pretrained(copy)
    shutil.copy(output / "graphs.json", copy)
    graph = copy / json.loads((output / "graphs.json").read_text())["graphs"][0]["folder"]
    largest = max((path for path in graph.iterdir() if path.is_file()), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:1000])
    with pytest.raises(ValueError, match="graph-.* does not open, damaged"):
        ExportedClassifier.from_pretrained(copy)
    shutil.rmtree(graph)
    with pytest.raises(ValueError, match="is missing; export the model again"):
        ExportedClassifier.from_pretrained(copy)


@pytest.mark.slow
def test_int8_weights_are_a_quarter_and_logits_close(tiny_settings, tiny_tokenizer, tmp_path):
    # large random weights would amplify every rounding
    wide = {**tiny_settings, "hidden_size": 128, "intermediate_size": 512, "initializer_range": 0.05}
    model = save(tmp_path, wide, tiny_tokenizer, gamma=[1, 2, 1], eta=0)
    sizes = {}
    for int8 in (False, True):
        output = export(tmp_path, "onnx", int8=int8)
        sizes[int8] = sum(path.stat().st_size for path in output.rglob("*.onnx*"))
    classifier, batch = ExportedClassifier.from_pretrained(tmp_path / "onnx-int8"), make_batch([30, 12])
    alone = torch.cat([classifier(batch["input_ids"][row : row + 1, :n]).logits for row, n in enumerate((30, 12))])
    torch.testing.assert_close(classifier(**batch).logits, alone, atol=1e-6, rtol=0)
    together = ExportedClassifier.from_pretrained(tmp_path / "onnx-int8", batch_int8=True)(**batch).logits
    assert (together - alone).abs().max() > 1e-4
    with torch.no_grad():
        logits = model(**for_model(batch, classifier)).logits
    difference = (classifier(**batch).logits - logits).abs().max()
    assert 0 < difference < 0.2 * logits.abs().max()
    # the embeddings stay
    assert sizes[True] < 0.6 * sizes[False]


@pytest.mark.parametrize(
    "runtime, int8, message",
    [("tflite", False, "must be one of torch, onnx, openvino"), ("openvino", True, "is ONNX Runtime's quantisation")],
)
def test_wrong_runtimes_are_refused(tiny_classifier_folder, runtime, int8, message):
    with pytest.raises(ValueError, match=message):
        export(tiny_classifier_folder, runtime, int8=int8)


def test_missing_runtime_says_what_to_install(tiny_classifier_folder, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(ValueError, match=r"pip install 'redundancy-hf\[openvino\]'"):
        export(tiny_classifier_folder, "openvino")


def test_folder_without_graphs_is_refused(tmp_path):
    with pytest.raises(ValueError, match="holds no graphs.json"):
        ExportedClassifier.from_pretrained(tmp_path)


@pytest.fixture(scope="module")
def named_folder(tiny_settings, tiny_tokenizer, tmp_path_factory):
    """A classifier with the labels of `tiny_text_file`."""
    folder = tmp_path_factory.mktemp("named") / "model"
    labels = {"id2label": {0: "negative", 1: "positive"}, "label2id": {"negative": 0, "positive": 1}}
    save(folder, tiny_settings, tiny_tokenizer, gamma=[1, 2, 1], eta=2, **labels)
    return folder


@pytest.mark.slow
def test_script_ends_with_a_verdict_and_commands_take_the_result(run, named_folder, tiny_text_file, tmp_path):
    output = tmp_path / "served"
    load_task(TaskArguments(dataset_name=str(tiny_text_file), max_length=64, split_seed=7)).record.write(named_folder)
    flags = ("export_model", named_folder, "--runtime", "torch", "--output_dir", output)
    code, printed, words = run(*flags, "--max_compared", 5)
    assert code == 0, words
    assert "0 of 5 validation rows of reviews get another label, accuracy" in printed
    assert "instead of alone: 0 of 5 validation rows" in printed
    report = json.loads((output / "graphs.json").read_text())["report"]
    assert report["score_before"] == report["score_after"] and report["difference"] < 1e-4
    # the export has the hand-over too, so that no flag is typed again
    assert read_record(output).arguments["split_seed"] == 7
    code, _, words = run("evaluate_model", named_folder, output, "--results_file", tmp_path / "scores.json")
    assert code == 0, words
    rows = json.loads((tmp_path / "scores.json").read_text())["models"]
    assert rows[0] == {**rows[1], "model": rows[0]["model"]} and rows[1]["model"] == "served"
    flags = ("benchmark_latency", named_folder, output, "--lengths", 8, "--rounds", 1)
    code, printed, words = run(*flags, "--results_file", tmp_path / "times.json", "--update_card")
    assert code == 0, words
    record = json.loads((tmp_path / "times.json").read_text())["measurements"][1]
    assert (record["model"], record["clock"], record["flops_per_input"]) == ("served", "process_cpu", None)
    assert record["weights_bytes"] > 100_000 and "ExportedClassifier" in (output / "README.md").read_text()
    code, _, words = run(*flags, "--dtype", "bfloat16")
    assert code == 1 and "served is an export, which has its own number format" in words


@pytest.mark.slow
def test_export_has_seen_what_its_model_has(run, named_folder, tiny_text_file, tmp_path):
    folder = shutil.copytree(named_folder, tmp_path / "model")
    load_task(TaskArguments(dataset_name=str(tiny_text_file), max_length=64)).record.write(folder)
    # no flag about the data is needed
    code, printed, words = run("export_model", folder, "--runtime", "torch")
    assert code == 0 and "validation rows of reviews get another label, accuracy" in printed, words
    export = folder / "torch"
    assert (read_record(export).seen == read_record(folder).seen).all()
    code, _, words = run("evaluate_model", folder, export, "--required_performance", 0.9)
    assert code == 0, words
    code, _, words = run("evaluate_model", folder, export, "--required_performance", 0.9, "--split", "train")
    assert code == 1 and "had been read by the training" in words


@pytest.mark.slow
def test_script_compares_random_texts_and_refuses(run, named_folder, tiny_text_file, tmp_path, monkeypatch):
    flags = ("export_model", named_folder, "--runtime", "torch", "--output_dir", tmp_path / "served")
    monkeypatch.setattr("classformer_hf.commands.export.largest_difference", lambda model, exported: 0.5)
    for name in ("task.json", "task_rows.npz"):
        (named_folder / name).unlink(missing_ok=True)
    code, printed, words = run(*flags)
    assert code == 1 and "differs from the model by 5.0e-01" in words
    assert "note: neither a task.json nor --dataset_name says what the model is for" in printed
    assert "of 64 random texts get another label, largest difference of a logit" in printed
    code, _, words = run("export_model", tmp_path / "nothing")
    assert code == 1 and "there is no folder" in words and "needs --output_dir" in words
    code, _, words = run("export_model", tmp_path / "served", "--runtime", "torch")
    assert code == 1 and "is an export itself" in words
    code, _, words = run("classify_elsewhere", tmp_path / "served")
    assert code == 1 and "is an export, which only this project's packages open" in words
    with pytest.raises(ValueError, match="is an export, without weights; give the folder that it was made of"):
        load_from_encoder(tmp_path / "served")
    assert "--max_compared must be at least 1" in run(*flags, "--max_compared", 0)[2]
    assert "--max_length needs --dataset_name beside it" in run(*flags, "--max_length", 9)[2]
    code, _, words = run(*flags, "--dataset_name", tiny_text_file, "--label_column", "nothing")
    assert code == 1 and "nothing" in words


@pytest.mark.slow
def test_data_that_are_gone_are_noted(run, named_folder, tiny_text_file, tmp_path):
    folder, moved = shutil.copytree(named_folder, tmp_path / "model"), shutil.copy(tiny_text_file, tmp_path)
    load_task(TaskArguments(dataset_name=str(moved), max_length=64)).record.write(folder)
    Path(moved).unlink()
    code, printed, words = run("export_model", folder, "--runtime", "torch")
    assert code == 0, words
    assert "which is not here" in printed and "Random texts are compared instead" in printed
    private = {"the path of its own folder": str(tmp_path)}
    staged = tmp_path / "staged"
    stage_folder(folder, staged)
    assert not find_leaks(staged, list_files(staged)[0], private)
    assert (staged / "torch" / "task.json").is_file() and not list(staged.rglob("*.npz"))


@pytest.mark.slow
def test_parity_of_a_grid_resumes(run, tiny_roberta_folder, tmp_path, monkeypatch):
    flags = ("--model_name_or_path", tiny_roberta_folder, "--runtimes", "openvino", "--num_schedules", 1)
    flags += ("--output_dir", tmp_path / "parity", "--results_file", tmp_path / "parity.json")
    code, printed, words = run("parity", *flags)
    assert code == 0, words
    record = json.loads((tmp_path / "parity.json").read_text())
    assert [row["schedule"] for row in record["rows"]] == ["1-1-1_eta0", "1-1-1_eta2", "1-1-1_eta8"]
    assert 0 < record["worst"]["openvino"] <= 1e-4 and "| openvino | 3 |" in printed
    journal = tmp_path / "parity" / "rows.jsonl"
    # two rows are kept as they are, one is made again
    kept = [{**record["rows"][0], "difference": 0.5}, record["rows"][1]]
    journal.write_text("".join(json.dumps(row) + "\n" for row in kept))
    code, _, words = run("parity", *flags)
    assert code == 1 and "differs by more than 0.0001" in words
    assert len(journal.read_text().splitlines()) == 3
