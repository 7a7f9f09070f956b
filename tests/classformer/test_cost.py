"""FLOPs against torch's counter, and latency on models whose relative cost is known."""

import dataclasses
import json
import os
import platform
import time

import pytest
import torch
from datasets import Dataset
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.flops import count_flops
from redundancy_hf.timing import Target, hardware_fingerprint, measure_latency, sample_inputs

SETTINGS = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 40,
    "max_position_embeddings": 80,
    "num_labels": 5,
}


def count_by_torch(config, lengths, attention="eager"):
    config = ClassformerConfig(**{**config.to_dict(), "attn_implementation": attention})
    model = ClassformerForSequenceClassification(config).eval()
    counts = []
    for length in lengths:
        input_ids = torch.randint(5, 50, (1, length))
        with FlopCounterMode(display=False) as counter, torch.inference_mode():
            model(input_ids=input_ids, attention_mask=torch.ones_like(input_ids))
        counts.append(counter.get_total_flops())
    return counts


@pytest.mark.parametrize("last_layer_cls_only", [True, False], ids=["cls_only", "all_queries"])
@pytest.mark.parametrize(
    ("gamma", "eta"),
    [([1, 1, 1], 0), ([2, 1, 3], 0), ([2, 1, 3], 4), ([1, 128, 1], 0), ([1, 128, 1], 16), ([1, 1, 8], 4)],
    ids=str,
)
def test_flops_equal_torch_counter(gamma, eta, last_layer_cls_only):
    config = ClassformerConfig(**SETTINGS, gamma=gamma, eta=eta, last_layer_cls_only=last_layer_cls_only)
    lengths = (1, 2, 17, 63)
    assert [count_flops(config, length) for length in lengths] == count_by_torch(config, lengths)


def test_torch_counter_misses_sdpa_on_cpu():
    """The reason for a formula: if this fails, torch has mended its counter and eager attention is no longer needed."""
    config = ClassformerConfig(**SETTINGS, gamma=[1, 2, 1])
    missed = count_flops(config, 63) - count_by_torch(config, [63], attention="sdpa")[0]
    pairs = 63 * 63 + 63 * 32 + 32 * 1  # queries times keys in the three layers
    assert missed == 2 * 2 * pairs * config.hidden_size


def test_flops_refuse_empty_input():
    with pytest.raises(ValueError, match="`sequence_length` counts tokens and must be >= 1, got 0"):
        count_flops(ClassformerConfig(**SETTINGS), 0)


def tokenised(lengths, **columns):
    rows = {"input_ids": [list(range(length)) for length in lengths], "labels": [0] * len(lengths)}
    rows["attention_mask"] = [[1] * length for length in lengths]
    return Dataset.from_dict(rows | columns)


def test_sampled_inputs_follow_the_length_distribution():
    lengths = [3, 40, 5, 4, 60, 6, 7, 8]
    inputs = sample_inputs(tokenised(lengths), num_inputs=4)
    assert [single["input_ids"].shape for single in inputs] == [(1, 4), (1, 6), (1, 8), (1, 60)]
    assert all(set(single) == {"input_ids", "attention_mask"} for single in inputs)
    assert all(tensor.dtype == torch.long for single in inputs for tensor in single.values())
    assert inputs[0]["input_ids"].tolist() == [[0, 1, 2, 3]]


def test_sampled_inputs_keep_token_types_and_repeat_where_examples_are_few():
    dataset = tokenised([2, 3], token_type_ids=[[0, 1], [0, 0, 1]])
    inputs = sample_inputs(dataset, num_inputs=4)
    assert [single["token_type_ids"].tolist() for single in inputs] == [[[0, 1]]] * 2 + [[[0, 0, 1]]] * 2


def test_sampled_inputs_depend_on_the_seed_among_equal_lengths_only():
    dataset = Dataset.from_dict({"input_ids": [[number] * 2 for number in range(50)]})
    first, again, other = (
        [single["input_ids"][0, 0].item() for single in sample_inputs(dataset, 8, seed)] for seed in (0, 0, 1)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("dataset", "num_inputs", "message"),
    [
        (tokenised([3]), 0, "`num_inputs` must be >= 1, got 0"),
        (tokenised([]), 4, "`dataset` is empty"),
        (Dataset.from_dict({"sentence": ["a"]}), 4, r"no column input_ids, only \['sentence'\]; tokenise it first"),
    ],
    ids=["no inputs", "no examples", "raw text"],
)
def test_sample_inputs_refuses(dataset, num_inputs, message):
    with pytest.raises(ValueError, match=message):
        sample_inputs(dataset, num_inputs)


class Products(nn.Module):
    """Multiplies its input by a square matrix `repeats` times and notes every call."""

    def __init__(self, repeats, name="", calls=None):
        super().__init__()
        self.weight = nn.Parameter(torch.eye(192))
        self.repeats, self.name = repeats, name
        self.calls = [] if calls is None else calls

    def forward(self, states):
        self.calls.append((self.name, len(states), self.training, torch.is_inference_mode_enabled()))
        for _ in range(self.repeats):
            states = states @ self.weight
        return states


@pytest.fixture
def one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def two_threads():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture
def states():
    return [{"states": torch.ones(192, 192)}]


@pytest.mark.clock
def test_ratio_tells_known_costs_apart(one_thread, states):
    models = {"small": Products(5), "large": Products(20), "same": Products(5)}
    latencies = measure_latency(models, states, reference="small", rounds=15, warmup=2)
    assert latencies["small"].ratio == latencies["small"].ratio_low == latencies["small"].ratio_high == 1
    assert 2.5 < latencies["large"].ratio < 6
    assert 0.7 < latencies["same"].ratio < 1.4
    for latency in latencies.values():
        assert latency.ratio_low <= latency.ratio <= latency.ratio_high
        assert 0 < latency.wall_p50_ms <= latency.wall_p90_ms
        assert 0 < latency.cpu_p50_ms
        assert (latency.clock, latency.rounds) == ("thread_cpu", 15)


@pytest.mark.clock
def test_ratio_is_relative_to_the_reference(one_thread, states):
    models = {"small": Products(5), "large": Products(20)}
    assert measure_latency(models, states, reference="large", rounds=15, warmup=2)["small"].ratio < 0.4


@pytest.mark.clock
def test_thread_clock_captures_all_work_of_one_thread(two_threads):
    """`thread_cpu` is right only while no other thread works on the forward pass, not even one that exists already."""
    model, states = Products(20), torch.ones(192, 192)
    Products(2)(states)
    torch.set_num_threads(1)
    model(states)
    thread_start, process_start = time.thread_time(), time.process_time()
    # long enough that the last milliseconds of the idle second thread do not count
    for _ in range(100):
        model(states)
    thread_seconds, process_seconds = time.thread_time() - thread_start, time.process_time() - process_start
    assert thread_seconds > 0.9 * process_seconds


def test_several_threads_are_measured_by_wall_clock(two_threads, states):
    latency = measure_latency({"only": Products(1)}, states, reference="only", rounds=2)["only"]
    assert (latency.clock, latency.cpu_p50_ms) == ("wall", None)


@pytest.mark.clock
def test_sleep_counts_by_wall_clock_only(one_thread):
    class Sleeper(Products):
        def forward(self, states):
            time.sleep(0.02)
            return super().forward(states)

    latency = measure_latency({"only": Sleeper(1)}, [{"states": torch.ones(1, 192)}], "only", rounds=3)["only"]
    assert latency.wall_p50_ms > 20 > 10 > latency.cpu_p50_ms


def test_models_take_turns_on_every_input():
    calls, rounds_done = [], []
    models = {name: Products(1, name, calls).train() for name in "abc"}
    inputs = [{"states": torch.ones(length, 192)} for length in (1, 2)]
    measure_latency(models, inputs, "a", rounds=6, warmup=2, on_round=lambda: rounds_done.append(len(calls)))
    assert rounds_done == [6 * (index + 1) for index in range(8)]
    turns = [calls[start : start + 3] for start in range(0, len(calls), 3)]
    assert [{length for _, length, *_ in turn} for turn in turns] == [{1}, {2}] * 8
    orders = {"".join(name for name, *_ in turn) for turn in turns}
    assert all(sorted(order) == list("abc") for order in orders)
    assert len(orders) > 1
    assert all(not training and inference for *_, training, inference in calls)
    assert all(model.training for model in models.values())


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"reference": "full"}, r"`reference` must name one of the models \['a'\], got 'full'"),
        ({"inputs": []}, "`inputs` is empty"),
        ({"rounds": 0}, "`rounds` must be >= 1 and `warmup` >= 0, got 0 and 5"),
        ({"warmup": -1}, "`rounds` must be >= 1 and `warmup` >= 0, got 20 and -1"),
        (
            {"models": {"a": Products(1), "b": Products(1).to("meta")}},
            r"on one device to be compared, got \['cpu', 'meta'\]",
        ),
    ],
    ids=["unknown reference", "no inputs", "no rounds", "negative warmup", "two devices"],
)
def test_measure_latency_refuses(overrides, message, states):
    arguments = {"models": {"a": Products(1)}, "inputs": states, "reference": "a"}
    with pytest.raises(ValueError, match=message):
        measure_latency(**arguments | overrides)


@pytest.mark.clock
def test_shorter_sequences_are_faster(one_thread):
    sizes = SETTINGS | {"hidden_size": 192, "intermediate_size": 768, "num_attention_heads": 6}
    models = {
        name: ClassformerForSequenceClassification(ClassformerConfig(**sizes, gamma=gamma))
        for name, gamma in {"full": [1, 1, 1], "first token": [64, 1, 1]}.items()
    }
    inputs = [{"input_ids": torch.randint(5, 50, (1, 64))}]
    assert measure_latency(models, inputs, "full", rounds=10, warmup=2)["first token"].ratio < 0.8


@pytest.mark.gpu
def test_cuda_models_are_measured_by_events(states):
    models = {"small": Products(50).cuda(), "large": Products(200).cuda()}
    latencies = measure_latency(models, states, reference="small", rounds=10)
    assert latencies["large"].clock == "cuda_event"
    assert latencies["large"].ratio > 2
    assert hardware_fingerprint("cuda")["device_name"] == torch.cuda.get_device_name()


def test_records_are_json_and_name_no_machine(one_thread, states):
    latency = measure_latency({"only": Products(1)}, states, reference="only", rounds=2)["only"]
    fingerprint = hardware_fingerprint(dtype=torch.bfloat16)
    record = json.loads(json.dumps({"latency": dataclasses.asdict(latency), "hardware": fingerprint}))
    assert record["latency"]["ratio"] == 1
    assert record["hardware"]["dtype"] == "bfloat16"
    assert record["hardware"]["threads"] == 1
    assert record["hardware"]["torch"] == torch.__version__
    assert not any(str(value).startswith(os.sep) for value in fingerprint.values())
    assert platform.node() not in {str(value) for value in fingerprint.values()}


def test_target_sets_threads_for_a_block_and_says_what_it_is():
    before, target = torch.get_num_threads(), Target(threads=3, dtype="bfloat16")
    with target.use_threads():
        assert torch.get_num_threads() == 3
    assert torch.get_num_threads() == before
    hardware = target.hardware
    assert (hardware["device"], hardware["threads"], hardware["dtype"]) == ("cpu", 3, "bfloat16")
    assert target.place(nn.Linear(2, 2)).weight.dtype == torch.bfloat16
    with pytest.raises(ValueError, match=r"^`rounds` must be at least 1, got 0\.$"):
        Target(rounds=0)
