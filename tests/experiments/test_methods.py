"""Every peer method against the definition in its paper, on numbers that can be checked by hand."""

import copy
import math

import pytest
import torch
from methods import (
    AttentionThreshold,
    AttentionTopK,
    CoreSet,
    EarlyExit,
    FirstLayers,
    FixedPattern,
    PooledQueries,
    TokenMerging,
    attend,
    choose_core_set,
    compact,
    even_positions,
    keep_highest,
    log_positions,
    merge,
    operating_points,
    pool,
    positions_of,
)

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification

# settings that change nothing, and settings that reduce
NEUTRAL = {
    "pooled": lambda model: PooledQueries(model, [1, 1, 1]),
    "top k": lambda model: AttentionTopK(model, [1, 1, 1]),
    "threshold": lambda model: AttentionThreshold(model, 0.0),
    "merging": lambda model: TokenMerging(model, [0, 0, 0]),
    "core-set": lambda model: CoreSet(model, [1, 1, 1]),
    "layers": lambda model: FirstLayers(model, 3),
    "front": lambda model: FixedPattern(model, "front", [1, 1, 1]),
    "log": lambda model: FixedPattern(model, "log", [1, 1, 1]),
    "separators": lambda model: FixedPattern(model, "separators", [1, 1, 1]),
    "entropy": lambda model: EarlyExit(model, entropy=-1.0),
    "patience": lambda model: EarlyExit(model, patience=3),
}
REDUCING = {
    "pooled": lambda model: PooledQueries(model, [2, 2, 1]),
    "top k": lambda model: AttentionTopK(model, [0.6, 0.3, 0.3]),
    "threshold": lambda model: AttentionThreshold(model, 2.0),
    "merging": lambda model: TokenMerging(model, [0.4, 0.4, 0]),
    "core-set": lambda model: CoreSet(model, [0.6, 0.3, 0.3]),
    "layers": lambda model: FirstLayers(model, 2),
    "front": lambda model: FixedPattern(model, "front", [0.6, 0.3, 0.3]),
    "log": lambda model: FixedPattern(model, "log", [0.6, 0.3, 0.3]),
    "separators": lambda model: FixedPattern(model, "separators", [0.6, 0.3, 0.3]),
    "entropy": lambda model: EarlyExit(model, entropy=1.0986),
    "patience": lambda model: EarlyExit(model, patience=1),
}


@pytest.fixture
def model(tiny_settings):
    config = ClassformerConfig(**{**tiny_settings, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0})
    # in double precision, so that rounding decides no choice
    model = ClassformerForSequenceClassification(config).eval().double()
    # weights of a usual size would leave all tokens alike
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)
    return model


@pytest.fixture
def batch(model):
    ids = torch.randint(5, model.config.vocab_size, (3, 12))
    mask = torch.ones_like(ids)
    for row, length in enumerate((12, 7, 3)):
        ids[row, 0], ids[row, length - 1] = 0, model.config.eos_token_id
        ids[row, length:], mask[row, length:] = model.config.pad_token_id, 0
    types = (torch.arange(12) >= torch.tensor([[5], [4], [2]])).long() * mask
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": types}


@pytest.mark.parametrize("build", NEUTRAL.values(), ids=NEUTRAL.keys())
def test_neutral_settings_give_the_full_model(model, batch, build):
    with torch.no_grad():
        torch.testing.assert_close(build(model).eval()(**batch).logits, model(**batch).logits, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("build", REDUCING.values(), ids=REDUCING.keys())
def test_reductions_change_the_logits_but_no_example_depends_on_others(model, batch, build):
    method = build(model).eval()
    with torch.no_grad():
        together = method(**batch).logits
        for row, length in enumerate((12, 7, 3)):
            one = {name: values[row : row + 1, :length] for name, values in batch.items()}
            alone = method(**one).logits[0]
            torch.testing.assert_close(together[row], alone, rtol=1e-6, atol=1e-8)
        assert (together - model(**batch).logits).abs().max() > 1e-3


@pytest.mark.parametrize("build", REDUCING.values(), ids=REDUCING.keys())
def test_gradients_reach_what_runs(model, batch, build):
    method = build(model).train()
    output = method(**batch, labels=torch.tensor([0, 1, 2]))
    output.loss.backward()
    missing = {name for name, parameter in method.named_parameters() if parameter.grad is None}
    expected = "model.roberta.encoder.layer.2." if isinstance(method, FirstLayers) else None
    assert all(expected and name.startswith(expected) for name in missing), missing


def test_reduced_models_are_refused(tiny_config):
    with pytest.raises(ValueError, match="without reductions"):
        FirstLayers(ClassformerForSequenceClassification(tiny_config), 1)


def test_unknown_arguments_are_refused(model, batch):
    with pytest.raises(TypeError, match="nothing_known"):
        FirstLayers(model, 1)(**batch, nothing_known=1)


def test_plain_attention_is_that_of_the_layer(model):
    states, layer = torch.randn(2, 5, model.config.hidden_size, dtype=torch.float64), model.roberta.encoder.layer[0]
    output, probabilities, key = attend(layer, states, None)
    torch.testing.assert_close(output, layer.attention(states, encoder_hidden_states=states)[0], rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(2, model.config.num_attention_heads, 5).double())
    assert key.shape == (2, model.config.num_attention_heads, 5, model.config.hidden_size // 4)


def test_compact_keeps_the_order_and_cuts():
    keep = torch.tensor([[True, False, True, True], [True, False, False, False]])
    mask, values = compact(keep, torch.tensor([[10, 11, 12, 13], [20, 21, 22, 23]]))
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]
    assert values[0].tolist() == [10, 12, 13] and values[1, 0] == 20


def test_pooling_takes_means_of_windows_behind_the_first_token():
    states = torch.tensor([[[9.0], [1.0], [3.0], [5.0], [100.0]]])
    pooled, mask = pool(states, torch.tensor([[1, 1, 1, 1, 0]]), 2)
    # 1 and 3; 5 without the padding
    assert pooled[0, :, 0].tolist() == [9, 2, 5] and mask.tolist() == [[1, 1, 1]]
    pooled, mask = pool(states, torch.tensor([[1, 1, 0, 0, 0]]), 3)
    assert pooled[0, :2, 0].tolist() == [9, 1] and mask.tolist() == [[1, 1, 0]]


def test_highest_scores_stay_with_the_first_token():
    scores, mask = torch.tensor([[0.0, 0.5, 0.1, 0.9, 7.0]]), torch.tensor([[1, 1, 1, 1, 0]])
    assert keep_highest(scores, mask, torch.tensor([3])).tolist() == [[True, True, False, True, False]]
    assert keep_highest(scores, mask, torch.tensor([5])).tolist() == [[True, True, True, True, False]]


def test_top_k_scores_by_the_attention_received_in_all_heads(model):
    """PoWER-BERT: the score of a token is the sum over heads and queries of what they give it."""
    states, layer = torch.randn(1, 6, model.config.hidden_size, dtype=torch.float64), model.roberta.encoder.layer[0]
    method = AttentionTopK(model, [0.5, 0.5, 0.5])
    mask = torch.ones(1, 6, dtype=torch.long)
    method.start(mask, mask)
    found, found_mask = method.run_layer(0, layer, states, mask)
    output, probabilities, _ = attend(layer, states, None)
    received = [sum(probabilities[0, :, query, token].sum().item() for query in range(6)) for token in range(6)]
    others = sorted(range(1, 6), key=lambda token: -received[token])[:2]
    expected = layer.feed_forward_chunk(output[:, sorted([0, *others])])
    assert found_mask.tolist() == [[1, 1, 1]]
    torch.testing.assert_close(found, expected)


def test_threshold_grows_with_depth_and_compares_the_mean(model):
    """LTP: pruned where the mean over heads and queries is below the threshold of the layer."""
    states, mask = torch.randn(1, 6, model.config.hidden_size, dtype=torch.float64), torch.ones(1, 6, dtype=torch.long)
    # of 6 tokens each has 1 / 6 on average
    method = AttentionThreshold(model, 1.8)
    method.start(None, mask)
    for index, layer in enumerate(model.roberta.encoder.layer[:2]):
        output, probabilities, _ = attend(layer, states, None)
        mean = probabilities[0].mean((0, 1))
        assert mean.sum().item() == pytest.approx(1)
        stays = [0] + [token for token in range(1, 6) if mean[token] >= 0.3 * (index + 1) / 3]
        found, _ = method.run_layer(index, layer, states, mask)
        torch.testing.assert_close(found, layer.feed_forward_chunk(output[:, stays]))


def test_most_similar_pair_becomes_its_weighted_mean():
    """ToMe: each token at an even position has one candidate at an odd one; the closest pairs merge."""
    keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [0.1, 1.0], [1.0, 1.0], [1.0, 0.9]]])
    states = torch.tensor([[[0.0], [10.0], [20.0], [30.0], [60.0]]])
    sizes = torch.tensor([[1.0, 1.0, 1.0, 1.0, 2.0]])
    mask = torch.ones(1, 5, dtype=torch.long)
    # position 4 is the closest to an odd one, 3: cos = 1.9 / sqrt(2 * 1.81) = 0.9986; 2 to 1: 1 / sqrt(1.01) = 0.995
    merged, new_sizes, keep = merge(states, sizes, keys, mask, torch.tensor([1]))
    assert keep.tolist() == [[True, True, True, True, False]]
    assert merged[0, 3, 0] == (30 + 2 * 60) / 3 and new_sizes[0, 3] == 3
    merged, new_sizes, keep = merge(states, sizes, keys, mask, torch.tensor([2]))
    assert keep.tolist() == [[True, True, False, True, False]]
    assert merged[0, 1, 0] == 15 and new_sizes[0, 1] == 2
    # the first token never merges, and padding with nothing
    assert merge(states, sizes, keys, torch.tensor([[1, 1, 0, 0, 0]]), torch.tensor([2]))[2].tolist() == [
        [True, True, False, False, False]
    ]


def test_merged_tokens_are_seen_as_often_as_they_are_many(model):
    """ToMe's proportional attention: a token of size 2 counts like two equal ones."""
    layer, states = model.roberta.encoder.layer[0], torch.randn(1, 3, model.config.hidden_size, dtype=torch.float64)
    doubled = torch.cat([states, states[:, 2:]], 1)
    full, _, _ = attend(layer, doubled, None)
    sized, _, _ = attend(layer, states, torch.tensor([1.0, 1.0, 2.0]).log()[None, None, None])
    torch.testing.assert_close(sized, full[:, :3], rtol=1e-6, atol=1e-8)


def test_core_set_takes_the_farthest_each_time():
    """Pyramid-BERT: 0 first, then 10, then 4 or 6 at distance 4 from both ends (the first of them)."""
    states = torch.tensor([[[0.0], [1.0], [4.0], [6.0], [10.0], [99.0]]])
    mask = torch.tensor([[1, 1, 1, 1, 1, 0]])
    assert choose_core_set(states, mask, torch.tensor([2]))[0].nonzero()[:, 0].tolist() == [0, 4]
    assert choose_core_set(states, mask, torch.tensor([3]))[0].nonzero()[:, 0].tolist() == [0, 2, 4]
    assert choose_core_set(states, mask, torch.tensor([9]))[0].nonzero()[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_first_layers_are_a_smaller_model(model, batch):
    smaller = copy.deepcopy(model)
    smaller.roberta.encoder.layer = smaller.roberta.encoder.layer[:2]
    smaller.config.num_hidden_layers, smaller.config.gamma = 2, [1, 1]
    with torch.no_grad():
        torch.testing.assert_close(FirstLayers(model, 2)(**batch).logits, smaller(**batch).logits)


def test_patterns():
    assert even_positions(10, 4) == [0, 2, 5, 7]
    assert log_positions(64, 7) == [0, 1, 3, 7, 15, 31, 63]
    for length in range(1, 40):
        for number in range(1, length + 1):
            positions = log_positions(length, number)
            assert len(set(positions)) == number and positions[0] == 0 and positions[-1] < length
            steps = [b - a for a, b in zip(positions, positions[1:], strict=False)]
            assert all(b >= a - 1 for a, b in zip(steps, steps[1:], strict=False)), positions


@pytest.mark.parametrize("pattern", ["front", "log"])
def test_patterns_without_padding_are_those_with_it(model, pattern):
    """What follows from the length alone and what is chosen example by example are the same positions."""
    method = FixedPattern(model, pattern, [0.6, 0.3, 0.3]).eval()
    ids = torch.randint(5, 100, (1, 13))
    mask = torch.ones_like(ids)
    padded = {"input_ids": torch.cat([ids, ids[:, :4]], 1), "attention_mask": torch.cat([mask, 0 * mask[:, :4]], 1)}
    with torch.no_grad():
        alone, with_padding = method(input_ids=ids, attention_mask=mask).logits, method(**padded).logits
    torch.testing.assert_close(alone, with_padding, atol=1e-5, rtol=1e-5)
    assert positions_of(pattern, 13, 4).tolist() == ([0, 1, 2, 3] if pattern == "front" else log_positions(13, 4))


def test_separators_and_spaced_tokens_stay(model):
    method = FixedPattern(model, "separators", [0.5, 0.5, 0.5])
    ids = torch.tensor([[0, 7, 2, 7, 7, 7, 7, 2]])
    mask = torch.ones_like(ids)
    method.start(ids, mask)
    assert method.choose(mask, torch.tensor([2]))[0].nonzero()[:, 0].tolist() == [0, 2, 4, 7]
    with pytest.raises(ValueError, match="must be one of"):
        FixedPattern(model, "back", [1, 1, 1])


def test_entropy_and_patience_decide_where_an_example_leaves(model):
    """DeeBERT: the first exit below the entropy; PABEE: the first that `patience` exits before it agree with."""
    sure, unsure, other = torch.tensor([8.0, 0.0, 0.0]), torch.zeros(3), torch.tensor([0.0, 0.1, 0.0])
    logits = [torch.stack([unsure, sure]), torch.stack([sure, other]), torch.stack([other, other])]
    entropy = -(sure.softmax(-1) * sure.log_softmax(-1)).sum().item()
    chosen, depth = EarlyExit(model, entropy=2 * entropy).choose(logits)
    assert depth.tolist() == [2, 1] and torch.equal(chosen[0], sure) and torch.equal(chosen[1], sure)
    assert EarlyExit(model, entropy=math.log(3) + 0.1).choose(logits)[1].tolist() == [1, 1]
    # classes by depth: 0 0 1 and 0 1 1
    assert EarlyExit(model, patience=1).choose(logits)[1].tolist() == [2, 3]
    assert EarlyExit(model, patience=2).choose(logits)[1].tolist() == [3, 3]


def test_exits_train_together_or_alone(model, batch):
    labels = torch.tensor([0, 1, 2])
    method = EarlyExit(model, patience=1).train()
    states = model.roberta.embeddings(batch["input_ids"], batch["token_type_ids"])
    logits = method.classify_at_all(states, batch["attention_mask"])
    losses = [torch.nn.functional.cross_entropy(one, labels) for one in logits]
    expected = (losses[0] + 2 * losses[1] + 3 * losses[2]) / 6
    torch.testing.assert_close(method(**batch, labels=labels).loss, expected)
    method.freeze_for_exits()
    torch.testing.assert_close(method(**batch, labels=labels).loss, (losses[0] + losses[1]) / 2)
    method(**batch, labels=labels).loss.backward()
    assert {name.split(".")[0] for name, value in method.named_parameters() if value.grad is not None} == {"exits"}
    for settings in ({}, {"entropy": 1.0, "patience": 1}):
        with pytest.raises(ValueError, match="`entropy` or `patience`"):
            EarlyExit(model, **settings)


def test_operating_points_run_and_the_second_is_stronger(model, batch):
    points = operating_points(num_layers=3)
    assert len(points) == 11 and all(len(settings) == 2 for settings in points.values())
    for settings in points.values():
        for build in settings.values():
            method = build(copy.deepcopy(model)).eval()
            with torch.no_grad():
                assert method(**batch).logits.isfinite().all()
    kept = [build(model).fractions for build in points["core-set"].values()]
    assert kept[0][-1] == pytest.approx(0.4) and kept[1][-1] == pytest.approx(0.15)
    assert kept[0][0] == pytest.approx(0.4 ** (1 / 3))
