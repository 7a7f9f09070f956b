"""evaluate_model.py and benchmark_latency.py on models of texts and images, streamed data, architectures and cards."""

import json
import logging
import shutil

import pytest
import torch
from huggingface_hub import ModelCard
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from classformer_hf.architectures import ARCHITECTURES, build_architectures, known_settings
from classformer_hf.flops import count_executed_flops
from classformer_hf.texts import TextArguments
from redundancy_hf.command import CommandFormatter, parse_call
from redundancy_hf.task import TaskArguments
from tests.test_hub_contract import build_vision

# the tiny tokenizer's limit
SHORT = ("--max_length", 64)
WHOLE = ("--streaming", "--split", "train")


@pytest.fixture
def text_folder(tiny_roberta_two_labels, tmp_path):
    return shutil.copytree(tiny_roberta_two_labels, tmp_path / "text")


@pytest.fixture
def image_folder(tmp_path, tiny_image_processor):
    model = build_vision("ResNet", "ForImageClassification")(None)
    model.config.num_labels = 10
    names = [str(digit) for digit in range(10)]
    model.config.id2label = dict(enumerate(names))
    model.config.label2id = {name: index for index, name in enumerate(names)}
    type(model)(model.config).save_pretrained(tmp_path / "image")
    tiny_image_processor.save_pretrained(tmp_path / "image")
    return tmp_path / "image"


def test_streamed_texts_score_as_stored_ones(run, text_folder, tiny_text_file, tmp_path):
    stored = ("--dataset_name", tiny_text_file, "--split", "train", "--device", "cpu", *SHORT)
    code, printed, words = run(
        "evaluate_model",
        text_folder,
        *stored,
        "--streaming",
        "--results_file",
        tmp_path / "streamed.json",
        "--more_metrics",
        "f1",
    )
    assert code == 0, words
    streamed = json.loads((tmp_path / "streamed.json").read_text())
    assert streamed["num_examples"] == 64 and streamed["majority_score"] == 0.5
    row = streamed["models"][0]
    assert set(row["more_metrics"]) == {"f1"} and "f1" in printed
    low, high = row["confidence_interval"]
    assert 0 < low < row["score"] < high < 1 and f"95 %: {low:.4f} to {high:.4f}" in printed
    # all rows in one split of another kind of file
    whole = tmp_path / "whole"
    whole.mkdir()
    shutil.copy(tiny_text_file, whole / "test.csv")
    shutil.copy(tiny_text_file, whole / "train.csv")
    code, _, words = run(
        *("evaluate_model", text_folder, "--dataset_name", whole, "--device", "cpu", *SHORT),
        *("--results_file", tmp_path / "stored.json"),
    )
    assert code == 0, words
    assert json.loads((tmp_path / "stored.json").read_text())["models"][0]["score"] == pytest.approx(row["score"])


def test_a_stream_does_not_read_what_tells_the_label(run, text_folder, tiny_text_file, tmp_path):
    lines = tiny_text_file.read_text().splitlines()[1:]
    path = tmp_path / "leaky.csv"
    path.write_text("\n".join(["review,label,label_text", *(f"{line},{line[-8:]} one" for line in lines)]) + "\n")
    flags = ("--dataset_name", path, "--device", "cpu", *SHORT, *WHOLE)
    code, printed, words = run("evaluate_model", text_folder, *flags)
    assert code == 0, words
    assert printed.splitlines()[0] == "leaky: text from review, labels from label, not read: label_text"
    assert (printed.splitlines()[1]) == "leaky train: 64 examples, majority 0.5000"
    path.write_text(
        "\n".join(["tweet,label,author", *(f"{line},{'ab'[n % 2]}" for n, line in enumerate(lines))]) + "\n"
    )
    code, _, words = run("evaluate_model", text_folder, *flags)
    assert code == 1 and "one of tweet, author may be; name it by --text_column" in words


def test_messages_and_logs_name_the_flags_of_the_running_command():
    def evaluate(task: TaskArguments):
        """Evaluate."""

    def pretrain(texts: TextArguments):
        """Pretrain."""

    parse_call(evaluate, "", ["--dataset_name", "mrpc"])
    record = logging.makeLogRecord({"msg": "a larger `max_length` keeps them, and `padding_side` must be right"})
    assert CommandFormatter().format(record) == "a larger --max_length keeps them, and `padding_side` must be right"
    parse_call(pretrain, "", [])
    assert CommandFormatter().format(record).startswith("a larger `max_length`")


def test_all_rows_of_a_file_are_evaluated(run, text_folder, tiny_text_file):
    flags = ("--dataset_name", tiny_text_file, "--device", "cpu", *SHORT)
    assert "all: 64 examples, majority 0.5000" in run("evaluate_model", text_folder, *flags, "--split", "all")[1]
    assert "test: 6 examples" in run("evaluate_model", text_folder, *flags)[1]


def test_the_majority_is_that_of_the_rows_also_of_a_stream(run, text_folder, tiny_text_file, tmp_path):
    lines = tiny_text_file.read_text().splitlines()
    # in train the other label is the more frequent one
    (tmp_path / "train.csv").write_text("\n".join(lines[:37]) + "\n")
    (tmp_path / "test.csv").write_text("\n".join([lines[0], *lines[1:5], *lines[5:9] * 3]) + "\n")
    flags = ("--dataset_name", tmp_path, "--device", "cpu", *SHORT)
    for more in ((), ("--streaming",)):
        code, printed, words = run("evaluate_model", text_folder, *flags, *more)
        assert code == 0 and "test: 16 examples, majority 0.7500" in printed, words


def test_all_of_three_rows_are_evaluated(run, text_folder, tmp_path):
    (tmp_path / "few.csv").write_text("sentence,label\na warm film,positive\na dull plot,negative\nbad,negative\n")
    flags = ("--dataset_name", tmp_path / "few.csv", "--split", "all", "--device", "cpu", *SHORT)
    code, printed, words = run("evaluate_model", text_folder, *flags)
    assert code == 0 and "few all: 3 examples, majority 0.6667" in printed, words


def test_images_are_evaluated_and_the_card_tells(run, image_folder):
    flags = ("--dataset_name", "digits", "--max_examples", 40, "--device", "cpu", "--update_card")
    code, printed, words = run("evaluate_model", image_folder, *flags)
    assert code == 0, words
    assert "digits test: 40 examples" in printed
    for _ in range(2):
        # the second time it replaces the first
        assert run("evaluate_model", image_folder, *flags)[0] == 0
        (result,) = ModelCard.load(image_folder / "README.md").data.eval_results
        assert result.task_type == "image-classification" and result.dataset_name == "digits"
        # of no data set on the Hub
        assert (result.dataset_type, result.dataset_config) == ("unknown", "digits")
        assert result.metric_type == "accuracy" and f"accuracy {result.metric_value:.4f}" in printed


@pytest.mark.parametrize(
    "flags, message",
    [
        (
            ["--dataset_name", "nowhere.csv", "--streaming", "--split", "train"],
            "cannot stream the split 'train' of nowhere",
        ),
        (["--streaming"], "one file is a train split"),
        (["--dataset_name", "mrpc", "--streaming", "--split", "validation"], "is the test split here"),
        (["--device", "nothing"], "--device must be one that torch can use here"),
        (["--split", "dev"], "invalid choice"),
        (["--streaming", "--required_performance", "0.9"], "not streamed"),
        (["--max_examples", "0", "--streaming", "--split", "train"], "no example to evaluate"),
        (
            ["--max_length", "128", "--streaming", "--split", "train"],
            "--max_length must be at most the tokenizer's `model_max_length` of 64",
        ),
    ],
)
def test_bad_evaluations(run, text_folder, tiny_text_file, flags, message):
    flags = flags if "--dataset_name" in flags else [*flags, "--dataset_name", tiny_text_file]
    flags = flags if "--max_length" in flags else [*flags, *SHORT]
    flags = flags if "--device" in flags else [*flags, "--device", "cpu"]
    code, _, words = run("evaluate_model", text_folder, *flags)
    assert code != 0 and message in words


def test_labels_that_the_model_does_not_know(run, text_folder, tmp_path):
    (tmp_path / "other.csv").write_text("sentence,label\na film,good\na plot,bad\n")
    code, _, words = run(
        "evaluate_model",
        text_folder,
        "--dataset_name",
        tmp_path / "other.csv",
        "--streaming",
        "--split",
        "train",
        *SHORT,
    )
    assert code == 1 and "but the data have the label 'good'" in words


@pytest.fixture
def telling_folder(text_folder, tiny_text_file):
    """A classifier that is right for most texts of the file, but not for all."""
    model = AutoModelForSequenceClassification.from_pretrained(text_folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(text_folder)
    rows = [line.rsplit(",", 1) for line in tiny_text_file.read_text().splitlines()[1:]]
    states = []
    model.classifier.out_proj.register_forward_hook(lambda module, inputs, output: states.append(inputs[0]))
    with torch.no_grad():
        model(**tokenizer([text.strip('"') for text, _ in rows], padding=True, return_tensors="pt"))
        labels = torch.tensor([1.0 if label == "positive" else -1.0 for _, label in rows])
        labels[::5] *= -1  # wrong for some
        features = torch.cat([states[0], torch.ones(len(rows), 1)], dim=1)
        found = torch.linalg.lstsq(features, labels[:, None]).solution[:, 0]
        model.classifier.out_proj.weight.copy_(torch.stack([-found[:-1], found[:-1]]))
        model.classifier.out_proj.bias.copy_(torch.stack([-found[-1], found[-1]]))
    model.save_pretrained(text_folder)
    return text_folder


def rename_outputs(folder, names, order):
    """Give a saved classifier's outputs another order and other names."""
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    with torch.no_grad():
        for weight in model.classifier.out_proj.parameters():
            weight.copy_(weight[order].clone())
    model.config.id2label, model.config.label2id = dict(enumerate(names)), {}
    model.save_pretrained(folder)


@pytest.mark.parametrize(
    ("names", "order", "flags", "said"),
    [
        (["positive", "negative"], [1, 0], (), None),
        (["POSITIVE", "NEGATIVE"], [1, 0], (), None),
        (["LABEL_0", "LABEL_1"], [0, 1], (), "LABEL_0 is negative, LABEL_1 is positive; --label_order gives another"),
        (["LABEL_0", "LABEL_1"], [1, 0], ("--label_order", "positive", "negative"), None),
        (["good", "bad"], [1, 0], ("--label_order", "positive", "negative"), None),
    ],
)
def test_labels_are_compared_by_name(run, telling_folder, tiny_text_file, tmp_path, caplog, names, order, flags, said):
    def evaluate(*more):
        flags = (
            "--dataset_name",
            tiny_text_file,
            "--device",
            "cpu",
            *SHORT,
            "--results_file",
            tmp_path / "out.json",
            *more,
        )
        code, _, words = run("evaluate_model", telling_folder, *flags)
        assert code == 0, words
        return json.loads((tmp_path / "out.json").read_text())["models"]

    stored, streamed = ("--metric_name", "f1", "--split", "all"), WHOLE
    before = evaluate(*stored), evaluate(*streamed)
    assert 0.6 < before[0][0]["score"] < 1
    rename_outputs(telling_folder, names, order)
    caplog.clear()
    assert evaluate(*stored, *flags) == before[0]
    assert said is None or said in caplog.text
    # a stream does not say which labels there are
    after = evaluate(*streamed, *(flags or ("--label_order", "negative", "positive") * bool(said)))
    assert after[0]["score"] == before[1][0]["score"]


def test_labels_that_no_name_tells_are_refused(run, text_folder, tiny_text_file):
    rename_outputs(text_folder, ["bad", "good"], [0, 1])
    flags = ("--dataset_name", tiny_text_file, "--device", "cpu", *SHORT)
    code, _, words = run("evaluate_model", text_folder, *flags)
    assert code == 1 and "if they mean the same, say in which order it has them by --label_order" in words
    code, _, words = run("evaluate_model", text_folder, *flags, "--label_order", "bad", "good")
    assert code == 1 and "--label_order must be the labels ['negative', 'positive'] in some order" in words
    code, _, words = run("evaluate_model", text_folder, *flags, *WHOLE)
    assert code == 1 and "--label_order says what the data call its outputs" in words


def test_texts_and_images_do_not_mix(run, text_folder, image_folder):
    code, _, words = run("evaluate_model", text_folder, image_folder, "--dataset_name", "digits")
    assert code == 1 and "all of texts or all of images" in words


def test_no_classifier_is_named(run, tmp_path, tiny_settings):
    from classformer_hf import ClassformerConfig, ClassformerModel

    ClassformerModel(ClassformerConfig(**tiny_settings, gamma=[1, 2, 1], eta=1)).save_pretrained(tmp_path / "encoder")
    code, _, words = run("evaluate_model", tmp_path / "encoder", "--dataset_name", "x.csv")
    assert code == 1 and "its architecture is ClassformerModel" in words
    code, _, words = run("evaluate_model", tmp_path, "--dataset_name", "x.csv")
    assert code == 1 and "has no config.json" in words


SMALL = '{"num_hidden_layers": 1, "hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16}'


def test_architectures_are_measured_and_drawn(run, text_folder, tmp_path):
    output, plot = tmp_path / "out" / "times.json", tmp_path / "out" / "times.png"
    code, printed, words = run(
        *("benchmark_latency", text_folder, "--architectures", "bert", "distilbert", "--architecture_config", SMALL),
        *(
            "--lengths",
            8,
            16,
            "--rounds",
            2,
            "--batch_size",
            2,
            "--results_file",
            output,
            "--figure",
            plot,
            "--update_card",
        ),
    )
    assert code == 0, words
    records = json.loads(output.read_text())["measurements"]
    assert [record["model"] for record in records] == ["text", "bert", "distilbert"] * 2
    assert {record["batch_size"] for record in records} == {2}
    for record in records:
        assert record["inputs_per_second"] == pytest.approx(2000 / record["wall_p50_ms"])
        assert record["flops_per_input"] > 0 and record["weights_bytes"] > 0 and record["tokens"] in (8, 16)
    assert records[3]["flops_per_input"] > 1.9 * records[0]["flops_per_input"]
    assert plot.read_bytes().startswith(b"\x89PNG") and "inputs/s" in printed
    results = ModelCard.load(text_folder / "README.md").data.eval_results
    assert sorted({result.metric_type for result in results}) == [
        "latency_p50_milliseconds",
        "latency_p90_milliseconds",
    ]
    assert len(results) == 4 and "thread(s)" in results[0].metric_name
    assert [result.dataset_name for result in results] == ["random ids, 8 tokens"] * 2 + ["random ids, 16 tokens"] * 2
    for record in records:
        assert record["weights_bytes"] > 0
    sizes = {record["model"]: record["flops_per_input"] for record in records if record["tokens"] == 8}
    # the same sizes for both, whatever they call them
    assert sizes["bert"] == pytest.approx(sizes["distilbert"], rel=0.2)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_runs(name):
    settings = {"num_hidden_layers": 2, "vocab_size": 300, "hidden_size": 32, "num_attention_heads": 4}
    settings |= {"intermediate_size": 32, "pad_token_id": 1, "embedding_size": 32}
    if name == "modernbert":
        settings |= {"bos_token_id": 0, "eos_token_id": 2, "cls_token_id": 0, "sep_token_id": 2}
    if name == "classformer":
        settings |= {"gamma": [1, 2]}
    if name.startswith("funnel"):
        settings |= {"block_sizes": [1, 1], "block_repeats": [1, 1], "d_head": 8, "d_inner": 32}
        settings.pop("num_hidden_layers")
    if name == "gpt-neo":
        settings |= {"attention_types": [[["global", "local"], 1]]}
    if name == "squeezebert":
        # its groups need more channels
        settings |= {"intermediate_size": 64}
    known = {key: value for key, value in settings.items() if key in known_settings(ARCHITECTURES[name][0])}
    model = build_architectures([name], json.dumps(known))[name]
    ids = torch.randint(5, 300, (1, 8))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert model(**inputs).logits.shape == (1, 2)
    assert count_executed_flops(model, inputs) > 0


def test_operations_of_a_schedule_are_those_of_its_formula(run, tiny_classifier_folder, tmp_path):
    from classformer_hf import ClassformerConfig
    from classformer_hf.flops import count_flops

    output = tmp_path / "times.json"
    flags = ("--lengths", 24, "--rounds", 1, "--results_file", output)
    assert run("benchmark_latency", tiny_classifier_folder, *flags)[0] == 0
    record = json.loads(output.read_text())
    expected = count_flops(ClassformerConfig.from_pretrained(tiny_classifier_folder), 24)
    assert record["measurements"][0]["flops_per_input"] == expected
    assert record["program"] == "redundancy-hf benchmark" and record["arguments"]["lengths"] == [24]


def test_images_are_timed_and_the_card_tells(run, image_folder):
    code, printed, words = run(
        "benchmark_latency", image_folder, "--rounds", 2, "--batch_size", 3, "--update_card", "--dtype", "bfloat16"
    )
    assert code == 0, words
    assert "random pixels: time by" in printed
    first, second = ModelCard.load(image_folder / "README.md").data.eval_results
    assert [first.metric_type, second.metric_type] == ["latency_p50_milliseconds", "latency_p90_milliseconds"]
    assert first.task_type == "image-classification" and "batch 3" in first.metric_name
    assert "bfloat16, 1 thread(s)" in first.metric_name


def test_base_checkpoint_is_timed_with_a_random_head(run, tiny_settings, tmp_path):
    from transformers import RobertaConfig, RobertaForMaskedLM

    RobertaForMaskedLM(RobertaConfig(**tiny_settings)).save_pretrained(tmp_path / "base")
    code, printed, words = run("benchmark_latency", tmp_path / "base", "--lengths", 8, "--rounds", 1)
    assert code == 0 and "random ids: time by" in printed, words
    code, _, words = run("evaluate_model", tmp_path / "base", "--dataset_name", "x.csv")
    assert code == 1 and "its architecture is RobertaForMaskedLM" in words


def test_damaged_folder_is_not_timed(run, tiny_classifier_folder, tmp_path):
    folder = shutil.copytree(tiny_classifier_folder, tmp_path / "model")
    (folder / "modeling_classformer.py").unlink()
    code, _, words = run("benchmark_latency", folder)
    assert code == 1 and "there is no modeling_classformer.py" in words
    code, _, words = run("benchmark_latency", "nobody/nothing")
    assert code == 1 and "there is no folder `nobody/nothing`, and no such model in the cache" in words


def test_architecture_does_not_take_the_place_of_a_folder(run, text_folder):
    folder = text_folder.rename(text_folder.with_name("bert"))
    code, printed, words = run(
        "benchmark_latency", folder, "--architectures", "bert", "--architecture_config", SMALL, "--rounds", 1
    )
    assert code == 0, words
    assert str(folder) in printed


@pytest.mark.parametrize(
    "flags, message",
    [
        ([], "nothing to measure"),
        (["--architectures", "gpt"], "`--architectures` knows"),
        (["--architectures", "bert", "--architecture_config", "{"], "must be a JSON object"),
        (["--architectures", "bert", "--architecture_config", '{"hidden_size": 15}'], "does not suit bert"),
        (["--architectures", "bert", "--batch_size", "0"], "--batch_size must be >= 1"),
        (
            ["--architectures", "bert", "--architecture_config", '{"num_hiden_layers": 2}'],
            "bert does not know: num_hiden_layers",
        ),
        (
            ["--architectures", "bert", "--architecture_config", '{"hidden_size": -16}'],
            "must not have negative numbers",
        ),
        (["--architectures", "bert", "--architecture_config", '{"hidden_act": "x"}'], "does not suit bert"),
        (["--architectures", "bert", "--dataset_name", "x"], "--dataset_name needs the tokenizer of a model"),
        (["--architectures", "bert", "bert"], "--architectures must name every one once"),
        (["--architectures", "bert", "--lengths", "0"], "each must be >= 1"),
        (
            ["--architectures", "bert", "--architecture_config", SMALL, "--lengths", "600"],
            "bert cannot read 600 tokens",
        ),
        (["--architectures", "bert", "--device", "nothing"], "--device must be one that torch can use here"),
    ],
)
def test_bad_benchmarks(run, flags, message):
    code, _, words = run("benchmark_latency", *flags)
    assert code == 1 and message in words
