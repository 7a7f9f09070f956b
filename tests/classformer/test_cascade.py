"""A cascade: which examples are classified twice, that none depends on its batchmates, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.search.cascade import choose_cascade, margins_of

FAST, FULL = {"gamma": [4, 2, 1], "eta": 0}, {"gamma": [1, 2, 1], "eta": 2}
BUCKETS = [{"max_tokens": 8, "gamma": [1, 1, 1], "eta": 0}]


@pytest.fixture
def build(tiny_settings):
    """Give the same weights with other settings; large ones, so that margins differ."""

    def build(**changes):
        torch.manual_seed(0)
        settings = {**tiny_settings, "initializer_range": 0.5, **FULL, **changes}
        return ClassformerForSequenceClassification(ClassformerConfig(**settings)).eval()

    return build


@pytest.fixture
def batch():
    torch.manual_seed(1)
    lengths = torch.tensor([30, 5, 8, 9, 16, 17, 12, 6])
    mask = (torch.arange(30) < lengths[:, None]).long()
    return {"input_ids": torch.where(mask == 1, torch.randint(5, 300, (8, 30)), 1), "attention_mask": mask}


@pytest.mark.parametrize("buckets", [None, BUCKETS])
@torch.no_grad()
def test_small_margins_are_classified_again(build, batch, buckets):
    fast, full = build(**FAST)(**batch).logits, build(length_buckets=buckets)(**batch).logits
    margins = torch.from_numpy(margins_of(fast.numpy()))
    margin = margins.median().item() + 1e-6
    unsure = margins < margin
    assert 0 < unsure.sum() < len(unsure) and (fast - full).abs().amax(1).min() > 1e-3
    found = build(length_buckets=buckets, cascade={**FAST, "margin": margin})(**batch).logits
    torch.testing.assert_close(found, torch.where(unsure[:, None], full, fast), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_margin_0_takes_the_fast_schedule_and_1_the_fuller_one(build, batch):
    for margin, schedule in ((0, FAST), (1, FULL)):
        found = build(cascade={**FAST, "margin": margin})(**batch).logits
        torch.testing.assert_close(found, build(**schedule)(**batch).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("has_mask", [True, False])
@torch.no_grad()
def test_no_example_depends_on_its_batchmates(build, batch, has_mask):
    model = build(cascade={**FAST, "margin": 0.3})
    if not has_mask:
        batch = {"input_ids": batch["input_ids"][:, :5]}
    together = model(**batch).logits
    for row in range(len(together)):
        alone = model(**{name: values[row : row + 1] for name, values in batch.items()}).logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-5, rtol=1e-5)


def test_training_is_with_the_fuller_schedule(build, batch):
    labels = torch.arange(8) % 3
    cascade, plain = build(cascade={**FAST, "margin": 0.0}).train(), build().train()
    losses = []
    for model in (cascade, plain):
        torch.manual_seed(2)
        losses.append(model(**batch, labels=labels).loss)
    assert losses[0] == losses[1]
    losses[0].backward()
    assert all(parameter.grad is not None for parameter in cascade.parameters())


def test_cascade_is_saved_and_an_option_of_a_pipeline(build, tiny_tokenizer, tmp_path):
    build().save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    texts = ["good", "a warm and clever film " * 3, "the plot is a mess"]
    scores = {}
    for margin in (0.0, 1.0):
        settings = {"cascade": {**FAST, "margin": margin}}
        classify = pipeline("text-classification", str(tmp_path), model_kwargs=settings, trust_remote_code=True)
        assert classify.model.config.cascade["margin"] == margin
        scores[margin] = [one["score"] for one in classify(texts, batch_size=3)]
    plain = pipeline("text-classification", str(tmp_path), trust_remote_code=True)(texts)
    assert scores[1.0] == pytest.approx([one["score"] for one in plain], abs=1e-5)
    assert max(abs(a - b) for a, b in zip(*scores.values(), strict=True)) > 1e-3
    classify.model.save_pretrained(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path, trust_remote_code=True)
    assert loaded.config.cascade == {**FAST, "margin": 1.0}


def test_states_of_two_schedules_are_refused(build, batch):
    model = build(cascade={**FAST, "margin": 0.5})
    with pytest.raises(ValueError, match="set config.cascade = None"):
        model(**batch, output_hidden_states=True)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"cascade": {"gamma": [1, 1, 1], "eta": 0}}, "`cascade` has gamma, eta and margin"),
        ({"cascade": {"gamma": [1, 1], "eta": 0, "margin": 0.5}}, "cascade's gamma` needs one factor per layer, got 2"),
        ({"cascade": {"gamma": [1, 0, 1], "eta": 0, "margin": 0.5}}, "integer >= 1"),
        ({"cascade": {"gamma": [1, 1, 1], "eta": 0, "margin": 1.5}}, "difference of probabilities, 0 to 1, got 1.5"),
        ({"cascade": {"gamma": [1, 1, 1], "eta": 0, "margin": "0.5"}}, "difference of probabilities"),
        ({"cascade": {**FAST, "margin": 0.5}, "num_labels": 1}, "needs classes of which one is chosen"),
    ],
)
def test_bad_cascades_are_refused(build, changes, message):
    with pytest.raises(Exception, match=message):
        build(**changes)


def test_choice_is_the_cheapest_that_reaches_the_score():
    # three schedules and ten texts of class 1; the fast one errs on the two texts it is unsure of
    certain, unsure, wrong = [0.0, 4.0], [0.0, 0.1], [0.1, 0.0]
    fast = [certain] * 6 + [unsure] * 2 + [wrong] * 2
    middle = [certain] * 9 + [wrong]
    logits = np.array([fast, middle, [certain] * 10])
    times = np.array([[1.0] * 10, [3.0] * 10, [4.0] * 10])
    references = np.ones(10, int)
    alone = choose_cascade(logits, times, references, "accuracy", 0.8)
    assert (alone.fast, alone.full, alone.margin, alone.time) == (0, 0, 0.0, 1.0)
    # four texts are as unsure as the wrong ones, and are classified again with the cheapest schedule that helps
    cascade = choose_cascade(logits, times, references, "accuracy", 0.9)
    assert (cascade.fast, cascade.full, cascade.score) == (0, 1, 0.9)
    assert cascade.time == pytest.approx(1 + 3 * 0.4) and margins_of(logits[0])[6] < cascade.margin < 0.9
    assert choose_cascade(logits, times, references, "accuracy", 1.0).full == 2
    assert choose_cascade(logits[:2], times[:2], references, "accuracy", 1.0) is None


def test_margins_are_differences_of_probabilities():
    probabilities = np.array([[0.7, 0.1, 0.2], [0.3, 0.3, 0.4]])
    assert margins_of(np.log(probabilities) + 3) == pytest.approx([0.5, 0.1])
