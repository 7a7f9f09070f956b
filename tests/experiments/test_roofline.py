"""The matrix products of a pass: operations and bytes by hand, and how their times are taken."""

import pytest
import torch
from roofline import list_products, measure

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification


def test_operations_and_bytes_by_hand(tiny_settings):
    settings = tiny_settings | {"hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 32}
    model = ClassformerForSequenceClassification(ClassformerConfig(**settings))
    products = list_products(model, 6, [3, 3, 1])
    assert len(products) == 3 * 8
    query, key, value, scores, context, output, up, down = (product[:2] for product in products[:8])
    # weights 8 x 8, states in and out, 4 bytes each
    assert query == output == (2 * 3 * 8 * 8, 4 * (8 * 8 + 3 * 16))
    assert key == value == (2 * 6 * 8 * 8, 4 * (8 * 8 + 6 * 16))
    # two heads of width 4: 3 queries by 6 keys
    assert scores == context == (2 * 2 * 3 * 6 * 4, 4 * 2 * 9 * 4)
    assert up == down == (2 * 3 * 8 * 32, 4 * (8 * 32 + 3 * 40))
    # the second layer gets the three that the first one keeps
    assert products[9][:2] == query
    assert [tuple(call().shape[-2:]) for *_, call in products[:5]] == [(3, 8), (6, 8), (6, 8), (3, 6), (3, 4)]


def test_times_are_of_each_call(capsys):
    calls = []
    work = torch.randn(400, 400)
    found = measure({"nothing": lambda: calls.append(0), "work": lambda: work @ work}, rounds=5, what="timing")
    # two rounds to warm up
    assert len(calls) == 7 and {name: len(times) for name, times in found.items()} == {"nothing": 5, "work": 5}
    assert sorted(found["work"])[2] > 3 * sorted(found["nothing"])[2] >= 0


@pytest.mark.parametrize("lengths", [[3, 3], [3, 3, 1, 1]])
def test_lengths_fit_the_layers(tiny_settings, lengths):
    with pytest.raises(ValueError, match="zip"):
        list_products(ClassformerForSequenceClassification(ClassformerConfig(**tiny_settings)), 6, lengths)
