"""ClassformerConfig: lengths, defaults, what is refused and what survives saving."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, RobertaConfig

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.configuration_classformer import shorten, shorten_by_layers


def kept_positions(num_tokens, gamma, eta):
    """The definition, one position after the other: the first eta stay, then every gamma-th counted from eta."""
    return [position for position in range(num_tokens) if position < eta or (position - eta) % gamma == 0]


@pytest.mark.parametrize("eta", [0, 1, 2, 8])
@pytest.mark.parametrize("gamma", [[1, 1, 1], [2, 1, 4], [1, 3, 3], [512, 1, 1], [2, 2, 2]], ids=str)
def test_layer_lengths_count_the_kept_positions(tiny_settings, gamma, eta):
    config = ClassformerConfig(**tiny_settings, gamma=gamma, eta=eta)
    for num_tokens in (1, 2, 3, 7, 8, 9, 63, 64, 500, 512):
        expected, remaining = [], num_tokens
        for factor in gamma:
            remaining = len(kept_positions(remaining, factor, eta))
            expected.append(remaining)
        assert config.layer_lengths(num_tokens) == expected
        assert config.layer_lengths(num_tokens, cls_only=True) == [*expected[:-1], 1]


def test_layer_lengths_of_the_docstring_and_of_the_thesis():
    assert ClassformerConfig(num_hidden_layers=4, gamma=[1, 2, 1, 4], eta=2).layer_lengths(128) == [128, 65, 65, 18]
    # table 5.3, column 65 %
    gamma = [1, 2, 1, 1, 2, 1, 2, 1, 1, 1, 1, 1]
    assert ClassformerConfig(gamma=gamma).layer_lengths(512) == [512, 256, 256, 256, 128, 128, 64, 64, 64, 64, 64, 64]


def test_default_is_roberta():
    config, roberta = ClassformerConfig(), RobertaConfig()
    assert config.gamma == [1] * 12 and config.eta == 0 and config.last_layer_cls_only
    assert config.classifier_activation == "tanh"
    ours = {"auto_map", "classifier_activation", "eta", "gamma", "last_layer_cls_only", "model_type", "use_cache"}
    ours |= {"length_buckets", "cascade"}
    settings = config.to_dict()
    assert {name: value for name, value in roberta.to_dict().items() if name not in ours} == {
        name: value for name, value in settings.items() if name not in ours
    }


def test_default_follows_the_number_of_layers():
    assert ClassformerConfig(num_hidden_layers=2).gamma == [1, 1]


WRONG = {
    "gamma too short": ({"gamma": [1, 2]}, r"one factor per layer, got 2 for 3 layers: \[1, 2\]; write 1"),
    "gamma too long": ({"gamma": [1, 2, 1, 1]}, "one factor per layer, got 4 for 3 layers"),
    "gamma empty": ({"gamma": []}, "one factor per layer, got 0 for 3 layers"),
    "gamma zero": ({"gamma": [1, 0, 1]}, r"integer >= 1, got \[1, 0, 1\]; 1 drops nothing"),
    "gamma negative": ({"gamma": [1, -2, 1]}, r"integer >= 1, got \[1, -2, 1\]"),
    "gamma of bool": ({"gamma": [True, 1, 1]}, r"'gamma'.*\[True, 1, 1\].*list\[int\]"),
    "gamma of strings": ({"gamma": [1, "2", 1]}, r"'gamma'.*\[1, '2', 1\].*list\[int\]"),
    "gamma of floats": ({"gamma": [1, 2.0, 1]}, r"'gamma'.*\[1, 2\.0, 1\].*list\[int\]"),
    "gamma a string": ({"gamma": "1,2,1"}, "'gamma' expected a list, got str"),
    "gamma a number": ({"gamma": 2}, "'gamma' expected a list, got int"),
    "eta negative": ({"eta": -1}, r"`eta` counts leading tokens and must be >= 0, got -1"),
    "eta a float": ({"eta": 1.5}, "'eta' expected int, got float"),
    "eta a string": ({"eta": "2"}, "'eta' expected int, got str"),
    "eta bool": ({"eta": True}, "'eta' expected int, got bool"),
    "eta missing": ({"eta": None}, "'eta' expected int, got NoneType"),
    "shortcut a string": ({"last_layer_cls_only": "no"}, "'last_layer_cls_only' expected bool, got str"),
    "activation unknown": ({"classifier_activation": "silu"}, '"tanh", "gelu" or "relu", got "silu"'),
    "decoder": (
        {"is_decoder": True},
        "Classformer is an encoder: `is_decoder` and",
    ),
    "cross-attention": ({"add_cross_attention": True}, "Classformer is an encoder"),
}
each_wrong_setting = pytest.mark.parametrize("setting, message", WRONG.values(), ids=WRONG.keys())


@each_wrong_setting
def test_wrong_setting_is_refused(tiny_settings, setting, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ClassformerConfig(**{**tiny_settings, **setting})


@each_wrong_setting
def test_wrong_setting_is_refused_when_loading(tiny_classifier_folder, setting, message):
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ClassformerForSequenceClassification.from_pretrained(tiny_classifier_folder, **setting)


@pytest.mark.parametrize("gamma, message", [([1, 2], "got 2 for 3"), ([1, 0, 1], "integer >= 1")], ids=str)
def test_gamma_changed_in_place_is_checked_by_the_model(tiny_config, gamma, message):
    tiny_config.gamma[:] = gamma
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        ClassformerForSequenceClassification(tiny_config)


def test_number_of_layers_is_not_changed_alone(tiny_classifier_folder):
    with pytest.raises((StrictDataclassError, ValueError), match="got 3 for 2 layers"):
        ClassformerForSequenceClassification.from_pretrained(tiny_classifier_folder, num_hidden_layers=2)


def test_settings_survive_saving(tiny_settings, tmp_path):
    settings = {"gamma": [4, 1, 2], "eta": 3, "last_layer_cls_only": False, "classifier_activation": "gelu"}
    ClassformerConfig(**tiny_settings, **settings, somebodys_note="kept").save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is ClassformerConfig
    assert {name: getattr(config, name) for name in settings} == settings
    assert config.somebodys_note == "kept"


def test_auto_map_names_every_head_and_is_not_shared():
    first, second = ClassformerConfig(), ClassformerConfig()
    assert set(first.auto_map) == {
        "AutoConfig",
        "AutoModel",
        "AutoModelForMaskedLM",
        "AutoModelForSequenceClassification",
    }
    first.auto_map["AutoModel"] = "elsewhere.Model"
    assert second.auto_map["AutoModel"] == "modeling_classformer.ClassformerModel"


def test_the_law_is_the_same_for_numbers_and_arrays():
    num_tokens, eta = np.arange(1, 30), np.array([[0], [3], [40]])
    for gamma in (1, 2, 7, 64):
        expected = [[len(kept_positions(n, gamma, leading)) for n in num_tokens] for leading in (0, 3, 40)]
        assert shorten(num_tokens, gamma, eta).tolist() == expected
        assert shorten(torch.tensor(num_tokens), gamma, torch.tensor(eta)).tolist() == expected
        assert [[shorten(int(n), gamma, leading) for n in num_tokens] for leading in (0, 3, 40)] == expected
    (first, last) = shorten_by_layers(num_tokens, (2, 1), 0, cls_only=True)
    assert first[5] == 3 and last.tolist() == [1] * len(num_tokens)


def test_only_a_stopwatch_reads_clocks_of_calls_and_no_schedule_is_written_into_a_model():
    """Another schedule is run by the argument `schedule` or by `reconfigure`."""
    written = re.compile(r"\.config\.(gamma|eta|length_buckets|cascade)( = [^=]|, [\w.]+ = )")
    found = [
        f"{path.name}: {line.strip()}"
        for folder in ("classformer_hf", "experiments")
        for path in (Path(__file__).parents[2] / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if written.search(line) or "time.thread_time" in line
    ]
    assert found == []
