"""What a model card says, and what stays of one that a user wrote."""

import pytest
from huggingface_hub import EvalResult, ModelCard

from redundancy_hf.cards import add_results, complete_card, latency_results, name_dataset, write_section
from redundancy_hf.hub import find_leaks
from tests.redundancy.damage import change_config


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
