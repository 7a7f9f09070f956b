"""A cascade: which examples are classified twice, that none depends on its batchmates, and what is refused."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, pipeline

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.checkpoints import reconfigure
from classformer_hf.search.cascade import find_cascade, margins_of
from redundancy_hf.metrics import compute_score

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


@pytest.mark.parametrize("settings", [{"cascade": {**FAST, "margin": 0.5}}, {"length_buckets": BUCKETS}])
@torch.no_grad()
def test_what_is_given_once_for_all_examples_stays(build, batch, settings):
    model = build(**settings)
    expected = model(**batch).logits
    longest = batch["input_ids"].shape[1]
    # RoBERTa counts positions from behind the padding's id on
    once = {
        "token_type_ids": torch.zeros(1, longest, dtype=torch.long),
        "position_ids": torch.arange(longest)[None] + 2,
    }
    torch.testing.assert_close(model(**batch, **once).logits, expected, atol=1e-5, rtol=1e-5)
    model(input_ids=batch["input_ids"], attention_mask=torch.ones(1, 1, longest, longest, dtype=torch.bool))
    nothing = {**batch, "attention_mask": torch.zeros_like(batch["attention_mask"])}
    assert model(**nothing).logits.shape == expected.shape
    embeds = model.roberta.embeddings.word_embeddings(batch["input_ids"])
    ready = {"inputs_embeds": embeds, "attention_mask": batch["attention_mask"], "position_ids": once["position_ids"]}
    torch.testing.assert_close(model(**ready).logits, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_schedule_that_is_set_takes_the_place_of_a_cascade(build, batch, tmp_path):
    model = build(cascade={**FAST, "margin": 0.0})
    expected = build().eval()(**batch).logits
    torch.testing.assert_close(model(**batch, schedule=([1, 2, 1], 2)).logits, expected)
    torch.testing.assert_close(reconfigure(model, gamma=[1, 2, 1], eta=2)(**batch).logits, expected)
    torch.testing.assert_close(model(**batch).logits, build(**FAST)(**batch).logits)
    model.save_pretrained(tmp_path)
    assert load_from_encoder(tmp_path).config.cascade is not None
    assert load_from_encoder(tmp_path, gamma=[1, 1, 1], eta=0).config.cascade is None


@pytest.mark.filterwarnings("ignore")
def test_a_cascade_is_no_single_graph(build, batch):
    model = build(cascade={**FAST, "margin": 0.5})
    with pytest.raises(Exception, match="a cascade is no single graph"):
        torch.export.export(model, (), dict(batch))
    with pytest.raises(ValueError, match="a cascade is no single graph"):
        torch.jit.trace(model, example_kwarg_inputs=dict(batch))


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
        ({"cascade": {"gamma": 4, "eta": 0, "margin": 0.5}}, "is a list and its eta an integer, got 4 and 0"),
        ({"cascade": {"gamma": [1, 1, 1], "eta": 0.5, "margin": 0.5}}, r"got \[1, 1, 1\] and 0.5"),
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
    alone = find_cascade(logits, times, references, "accuracy", 0.8)
    assert (alone.fast, alone.full, alone.margin, alone.time) == (0, 0, 0.0, 1.0)
    # four texts are as unsure as the wrong ones, and are classified again with the cheapest schedule that helps
    cascade = find_cascade(logits, times, references, "accuracy", 0.9)
    assert (cascade.fast, cascade.full, cascade.score) == (0, 1, 0.9)
    assert cascade.time == pytest.approx(1 + 3 * 0.4) and margins_of(logits[0])[6] < cascade.margin < 0.9
    assert find_cascade(logits, times, references, "accuracy", 1.0).full == 2
    assert find_cascade(logits[:2], times[:2], references, "accuracy", 1.0) is None


def test_a_single_schedule_reaches_its_own_score_in_every_metric():
    generator = np.random.default_rng(0)
    for _draw in range(50):
        logits, references = generator.normal(size=(1, 40, 2)), generator.integers(0, 2, 40)
        for metric in ("accuracy", "f1", "matthews_correlation"):
            own = compute_score(metric, logits[0].argmax(-1), references)
            assert find_cascade(logits, np.ones((1, 40)), references, metric, own) is not None


def test_margins_are_differences_of_probabilities():
    probabilities = np.array([[0.7, 0.1, 0.2], [0.3, 0.3, 0.4]])
    assert margins_of(np.log(probabilities) + 3) == pytest.approx([0.5, 0.1])
