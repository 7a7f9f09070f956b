"""Objectives for shortened sequences: each against targets and losses worked out by hand, padding included."""

import copy

import pytest
import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import Trainer, TrainingArguments

from classformer_hf import ClassformerConfig, ClassformerForMaskedLM
from classformer_hf.flops import count_executed_flops
from classformer_hf.pretraining import (
    IGNORED,
    OBJECTIVES,
    CountEpochs,
    DistilledClassformerForMaskedLM,
    FunnelClassformerForMaskedLM,
    PretrainingTrainer,
    ShortenedLanguageModelingCollator,
    build_objective,
    choose_targets,
    kept_positions,
    take_backbone,
)
from classformer_hf.texts import group_into_blocks

_ = IGNORED
SETTINGS = {
    "vocab_size": 300,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 40,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
# of 8 tokens: position 0, then 1, 3, 5, 7, then 1 and 5
SCHEDULE = {"gamma": [1, 2, 2], "eta": 1}


@pytest.fixture
def config():
    return ClassformerConfig(**SETTINGS, **SCHEDULE)


@pytest.fixture
def model(config):
    torch.manual_seed(0)
    return ClassformerForMaskedLM(config)


@pytest.fixture
def batch():
    torch.manual_seed(1)
    mask = (torch.arange(8) < torch.tensor([8, 5])[:, None]).long()
    return {"input_ids": torch.where(mask == 1, torch.randint(5, 300, (2, 8)), 1), "attention_mask": mask}


@pytest.fixture
def blocks(tiny_tokenizer):
    first, last = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    return [
        {"input_ids": [first, *range(start, start + 20), last], "special_tokens_mask": [1] + [0] * 20 + [1]}
        for start in (10, 40, 70)
    ]


def test_kept_positions_are_those_of_the_model(config):
    assert kept_positions(config, 8).tolist() == [0, 1, 5]
    for num_tokens in (1, 2, 7, 33):
        assert len(kept_positions(config, num_tokens)) == config.layer_lengths(num_tokens)[-1]


# two blocks of 8 tokens, the second with three of padding; ten times the position is the token
LABELS = torch.tensor([[_, 10, _, 30, 40, _, 60, 70], [_, _, 20, _, 40, _, _, _]])
MASK = torch.tensor([[1] * 8, [1] * 5 + [0] * 3])
EXPECTED = {
    # of the second block the outputs are of positions 0, 1 and, which is padding, 5
    "first_k": [[_, 10, _], [_, _, _]],
    # the last three of eight tokens, and the last two of five
    "last_k": [[_, 60, 70], [_, 40, _]],
    "gamma_th": [[_, 10, _], [_, _, _]],
    # five are chosen, three fit; two are chosen and fit
    "dense": [[10, 30, 40], [20, 40, _]],
    "funnel": LABELS.tolist(),
}


@pytest.mark.parametrize("objective", EXPECTED)
def test_targets_by_hand(config, objective):
    assert choose_targets(LABELS, MASK, objective, config).tolist() == EXPECTED[objective]


@pytest.mark.parametrize("objective", ["first_k", "last_k", "gamma_th", "dense"])
def test_targets_do_not_depend_on_padding(objective):
    config = ClassformerConfig(**SETTINGS, gamma=[1, 1, 2], eta=0)
    labels, mask = torch.tensor([[_, 10, 20, 30, 40]]), torch.ones(1, 5, dtype=torch.long)
    short = choose_targets(labels, mask, objective, config)[0].tolist()
    long = choose_targets(F.pad(labels, (0, 11), value=_), F.pad(mask, (0, 11)), objective, config)[0].tolist()
    assert len(short) == 3 and long == short + [_] * 5 and set(short) != {_}


def test_a_text_shorter_than_the_output_has_no_targets_beyond_itself(config):
    labels, mask = torch.tensor([[_, 10, _, _, _, _, _, _]]), torch.tensor([[1, 1] + [0] * 6])
    for objective in ("first_k", "last_k"):
        assert choose_targets(labels, mask, objective, config).tolist() == [[_, 10, _]]
    assert choose_targets(labels, mask, "dense", config).tolist() == [[10, _, _]]


@pytest.mark.parametrize("objective", ["first_k", "last_k", "gamma_th", "dense"])
def test_loss_is_the_cross_entropy_at_the_outputs(model, config, batch, objective):
    targets = choose_targets(LABELS, MASK, objective, config)
    outputs = build_objective(objective, model).eval()(**batch, labels=targets)
    assert outputs.logits.shape == (2, 3, 300)
    by_hand = [
        -outputs.logits[row, place].log_softmax(-1)[targets[row, place]]
        for row in range(2)
        for place in range(3)
        if targets[row, place] != _
    ]
    torch.testing.assert_close(outputs.loss, torch.stack(by_hand).mean())


@pytest.mark.parametrize("first", [1, 2])
def test_funnel_by_hand(model, batch, first):
    """Repeat the outputs, add full-length states, two plain layers, and the cross-entropy of every chosen token."""
    model.config.gamma = [first, 2, 2]
    funnel = build_objective("funnel", model).eval()
    assert isinstance(funnel, FunnelClassformerForMaskedLM) and len(funnel.decoder.layer) == 2
    one = {name: values[:1] for name, values in batch.items()}
    outputs = funnel(**one, labels=LABELS[:1])
    embedded = funnel.roberta.embeddings(input_ids=one["input_ids"])
    layers = funnel.roberta.encoder.layer
    states = layers[0](embedded, embedded if first == 1 else embedded[:, [0, 1, 3, 5, 7]])
    full = states if first == 1 else embedded
    states = layers[1](states, states[:, [0, 1, 3, 5, 7]] if first == 1 else states[:, [0, 1, 3]])
    states = layers[2](states, states[:, [0, 1, 3]] if first == 1 else states[:, [0, 1]])
    # kept are 0, 1, 5, or 0 and 1: every position takes the last one before it
    repeated = states[:, [0, 1, 1, 1, 1, 2, 2, 2] if first == 1 else [0] + [1] * 7]
    states = full + repeated
    for layer in funnel.decoder.layer:
        states = layer(states, states)
    logits = funnel.lm_head(states)
    torch.testing.assert_close(outputs.logits, logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(outputs.loss, F.cross_entropy(logits[0], LABELS[0]), atol=1e-5, rtol=1e-5)


def test_funnel_does_not_see_padding(model, batch):
    funnel = build_objective("funnel", model).eval()
    short = {name: values[1:, :5] for name, values in batch.items()}
    # the same positions are kept of five tokens as of eight, as far as they go
    torch.testing.assert_close(funnel(**batch).logits[1, :5], funnel(**short).logits[0], atol=1e-5, rtol=1e-5)


def test_distillation_by_hand(model, batch):
    distilled = build_objective("distillation", model).train()
    assert isinstance(distilled, DistilledClassformerForMaskedLM) and not distilled.teacher.training
    plain = copy.deepcopy(model.config)
    plain.gamma = [1, 1, 1]
    full = ClassformerForMaskedLM(plain).eval()
    full.load_state_dict(model.state_dict())
    loss = distilled(**batch).loss
    student = model.eval().roberta(**batch).last_hidden_state
    teacher = full.roberta(**batch).last_hidden_state[:, [0, 1, 5]]
    # position 5 of the second text is padding
    differences = torch.cat([(student - teacher)[0], (student - teacher)[1, :2]])
    torch.testing.assert_close(loss, differences.square().mean(), atol=1e-6, rtol=1e-5)
    loss.backward()
    assert all(parameter.grad is None for parameter in distilled.teacher.parameters())
    assert distilled.roberta.encoder.layer[0].attention.self.query.weight.grad.abs().max() > 0


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_training_lowers_the_loss_and_leaves_a_plain_model(model, batch, config, objective, tmp_path, caplog):
    trained = build_objective(objective, model).train()
    inputs = {**batch, "labels": choose_targets(LABELS, MASK, objective, config)}
    optimizer = torch.optim.Adam((p for p in trained.parameters() if p.requires_grad), 3e-3)
    losses = []
    for _step in range(12):
        loss = trained(**inputs).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
    trained.save_pretrained(tmp_path / "checkpoint")  # tied weights and all
    with caplog.at_level("INFO"):
        backbone = take_backbone(trained)
    part = {"funnel": "decoder", "distillation": "teacher"}.get(objective)
    assert caplog.messages == ([f"left out, since only the objective needs it: the {part}."] if part else [])
    assert type(backbone) is ClassformerForMaskedLM
    for name, weight in backbone.state_dict().items():
        assert torch.equal(weight, trained.state_dict()[name])
    assert count_executed_flops(trained, inputs, has_backward=True) > 0
    assert all(parameter.grad is None for parameter in trained.parameters())


@pytest.mark.parametrize("objective", OBJECTIVES)
def test_collator_masks_and_places_targets(tiny_tokenizer, config, objective):
    torch.manual_seed(0)
    first, last = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    ids = [[first, *torch.randint(5, 250, (30,)).tolist(), last] for _block in range(64)]
    examples = [{"input_ids": one, "special_tokens_mask": [1] + [0] * 30 + [1]} for one in ids]
    batch = ShortenedLanguageModelingCollator(tiny_tokenizer, config, objective)(examples)
    original = torch.tensor(ids)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (64, 32)
    if objective == "distillation":
        assert torch.equal(batch["input_ids"], original)
        return
    # the same blocks are masked alike for every objective
    funnel = ShortenedLanguageModelingCollator(tiny_tokenizer, config, "funnel")(examples)
    assert torch.equal(batch["input_ids"], funnel["input_ids"])
    assert torch.equal(batch["labels"], choose_targets(funnel["labels"], batch["attention_mask"], objective, config))
    is_masked = batch["input_ids"] == tiny_tokenizer.mask_token_id
    is_random = (batch["input_ids"] != original) & ~is_masked
    assert not (is_masked | is_random)[:, [0, -1]].any()
    if objective != "funnel":
        return
    chosen = batch["labels"] != _
    more = ShortenedLanguageModelingCollator(tiny_tokenizer, config, objective, mlm_probability=0.4)(examples)["labels"]
    for labels, expected in ((batch["labels"], 0.15), (more, 0.4)):
        assert (labels != _).float().mean().item() * 32 / 30 == pytest.approx(expected, rel=0.2)
    # 80 % masked, 10 % random, 10 % as they are
    assert 0.7 < (is_masked & chosen).sum() / chosen.sum() < 0.9
    assert 0.04 < (is_random & chosen).sum() / chosen.sum() < 0.17
    assert not ((is_masked | is_random) & ~chosen).any()
    assert torch.equal(batch["labels"][chosen], original[chosen])


def test_whole_words_are_masked_together(tiny_tokenizer, config):
    torch.manual_seed(0)
    words = ["cat", "sat", "on", "extraordinary", "mat", "often"]
    blocks = group_into_blocks(Dataset.from_dict({"text": [" ".join(words * 3)] * 9}), tiny_tokenizer, 32, True)
    collator = ShortenedLanguageModelingCollator(tiny_tokenizer, config, "funnel", 0.4, whole_word_mask=True)
    batch = collator([blocks[row] for row in range(len(blocks))])
    chosen, seen = batch["labels"] != _, set()
    for row, block in enumerate(blocks):
        # a word begins where the one before does not end
        starts = [at for at, (low, _high) in enumerate(block["offset_mapping"]) if at and low != previous(block, at)]
        for low, high in zip(starts, starts[1:], strict=False):
            word = {bool(chosen[row, at]) for at in range(low, high) if not block["special_tokens_mask"][at]}
            assert len(word) <= 1
            seen |= word
    assert seen == {True, False}
    assert (batch["input_ids"][chosen] == tiny_tokenizer.mask_token_id).all()


def previous(block, at):
    return block["offset_mapping"][at - 1][1]


def test_blocks_have_one_length_and_lose_only_the_end(tiny_tokenizer):
    texts = ["a warm and clever film", "", "the plot is a mess"] * 5
    blocks = group_into_blocks(Dataset.from_dict({"text": texts}), tiny_tokenizer, 16)
    first, last = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    whole = [token for text in texts if text for token in [*tiny_tokenizer(text)["input_ids"][1:-1], last]]
    assert len(blocks) == len(whole) // 14
    joined = []
    for block in blocks:
        assert len(block["input_ids"]) == 16 and block["input_ids"][0] == first and block["input_ids"][-1] == last
        assert block["special_tokens_mask"][0] == block["special_tokens_mask"][-1] == 1
        joined += block["input_ids"][1:-1]
    assert joined == whole[: len(joined)]
    stream = Dataset.from_dict({"text": texts}).to_iterable_dataset()
    assert [row["input_ids"] for row in group_into_blocks(stream, tiny_tokenizer, 16)] == blocks["input_ids"][:]
    with pytest.raises(ValueError, match="must be 4 to 64, got 3"):
        group_into_blocks(Dataset.from_dict({"text": texts}), tiny_tokenizer, 3)
    with pytest.raises(ValueError, match="does not fill one block of 64"):
        group_into_blocks(Dataset.from_dict({"text": ["good"]}), tiny_tokenizer, 64)


def test_unknown_objective_is_refused(model, tiny_tokenizer):
    with pytest.raises(ValueError, match="must be one of first_k, last_k, gamma_th, dense, funnel, distillation"):
        build_objective("magic", model)
    with pytest.raises(ValueError, match="got 'magic'"):
        ShortenedLanguageModelingCollator(tiny_tokenizer, model.config, "magic")


def test_masks_depend_on_the_batch_and_on_nothing_else(tiny_tokenizer, blocks, config):
    collator = ShortenedLanguageModelingCollator(tiny_tokenizer, config, "funnel")
    before = torch.get_rng_state()
    one = collator(blocks[:2])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(5)
    again, other = collator(blocks[:2]), collator(blocks[::2])
    assert torch.equal(one["labels"], again["labels"]) and not torch.equal(one["labels"][0], other["labels"][0])


def test_masks_change_from_epoch_to_epoch(tiny_tokenizer, blocks, model, tmp_path):
    collator = ShortenedLanguageModelingCollator(tiny_tokenizer, model.config, "funnel")
    seen: dict[int, list] = {}

    def collate(examples):
        batch = collator(examples)
        seen.setdefault(examples[0]["input_ids"][1], []).append(batch["labels"].tolist())
        return batch

    arguments = TrainingArguments(
        str(tmp_path),
        num_train_epochs=3,
        per_device_train_batch_size=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    trained = build_objective("funnel", model)
    Trainer(trained, arguments, collate, Dataset.from_list(blocks), callbacks=[CountEpochs(collator)]).train()
    for masks in seen.values():
        assert len(masks) == 3 and masks[0] != masks[1] != masks[2] != masks[0]


def test_validation_is_masked_alike_in_every_epoch(tiny_tokenizer, blocks, model, tmp_path):
    collator = ShortenedLanguageModelingCollator(tiny_tokenizer, model.config, "funnel")
    arguments = TrainingArguments(str(tmp_path), remove_unused_columns=False, report_to=[], use_cpu=True)
    trainer = PretrainingTrainer(model, arguments, collator, eval_dataset=Dataset.from_list(blocks))
    expected = collator(blocks)["labels"]
    collator.epoch = 2
    assert torch.equal(next(iter(trainer.get_eval_dataloader()))["labels"], expected)
    assert trainer.data_collator is collator and not torch.equal(collator(blocks)["labels"], expected)


def test_every_batch_has_a_target(tiny_tokenizer, config):
    torch.manual_seed(0)
    collator = ShortenedLanguageModelingCollator(tiny_tokenizer, config, "gamma_th", mlm_probability=0.05)
    first, last = tiny_tokenizer.cls_token_id, tiny_tokenizer.sep_token_id
    for start in range(10, 30):
        block = {"input_ids": [first, *range(start, start + 10), last], "special_tokens_mask": [1] + [0] * 10 + [1]}
        assert (collator([block])["labels"] != _).any()
    special = {"input_ids": [first, last, last, last], "special_tokens_mask": [1] * 4}
    with pytest.raises(ValueError, match="a batch of 1 blocks has no target for gamma_th"):
        collator([special])
