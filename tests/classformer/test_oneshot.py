"""The search with one training, stage by stage, on a tiny model and task."""

import dataclasses
import json
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from classformer_hf import ClassformerForSequenceClassification
from classformer_hf.data import load_tokenizer, tokenize
from classformer_hf.latency import LatencyTable
from classformer_hf.search import JournalError, Schedule, SearchSpace
from classformer_hf.search import objective as objective_module
from classformer_hf.search.journal import Trial
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.oneshot import EXTRA_TRIALS, OneShotSettings, only_driver, search_with_supernet
from classformer_hf.search.samplers import Observation
from classformer_hf.search.timing import measure_directly
from classformer_hf.search.validation import SupernetObjective
from classformer_hf.search.winners import QueueSampler, Verdict, raise_requirement, warn_of_drift
from classformer_hf.training import ClassformerTrainingArguments

REQUIRED = 0.6


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """A rough latency table is enough here."""
    monkeypatch.setattr("classformer_hf.search.timing.TABLE_ROUNDS", 1)


@pytest.fixture
def build(tiny_roberta_folder, tiny_text_file, tiny_task):
    """Build an objective in a folder; keyword arguments go to it."""

    def make(folder, task=None, **settings):
        arguments = ClassformerTrainingArguments(
            output_dir=str(folder),
            use_cpu=True,
            disable_tqdm=True,
            report_to="none",
            num_train_epochs=1,
            learning_rate=1e-3,
            save_strategy="no",
            eval_strategy="no",
            load_best_model_at_end=False,
        )
        tokenizer = load_tokenizer(str(tiny_roberta_folder))
        task = tokenize((task or tiny_task).without_test(), tokenizer, 64)
        return FineTuneObjective(str(tiny_roberta_folder), task, tokenizer, arguments, latency_rounds=2, **settings)

    return make


@pytest.fixture
def space():
    return SearchSpace(3, 40, (1, 2, 4), (0, 2), max_reduction=16)


def search(objective, space, **settings):
    settings = {"strategy": "random", "required_performance": REQUIRED, "max_trials": 5, "num_winners": 1, **settings}
    stages = []

    def start_progress(name, max_trials, num_before):
        stages.append((name, num_before))
        return lambda result: None

    executors = settings.pop("executors", None)
    found = search_with_supernet(objective, space, OneShotSettings(**settings), start_progress, executors=executors)
    return found, stages


@pytest.fixture(scope="session")
def finished():
    """Where the first test leaves a finished search for the others."""
    return {}


@pytest.fixture
def study(build, space, tmp_path, tmp_path_factory, finished):
    """A finished search of the test's own."""
    if not finished:
        folder = tmp_path_factory.mktemp("study")
        search(build(folder), space)
        finished["folder"] = folder
    return shutil.copytree(finished["folder"], tmp_path / "study")


def rows(path):
    return [row for row in map(json.loads, path.read_text().splitlines()) if row["type"] == "trial"]


def test_every_stage_leaves_its_file(study):
    found = {path.name for path in study.iterdir()}
    assert found >= {"supernet", "latency_table.json", "trials.jsonl", "predictions", "winners"}
    assert "supernet_checkpoints" not in found and "supernet.partial" not in found
    trials = rows(study / "trials.jsonl")
    assert len(trials) == 5 and trials[0]["origin"] == "reference"
    assert all(trial["measurement"]["latency_source"] == "table" for trial in trials)
    assert trials[0]["measurement"]["paired_standard_error"] == 0
    record = json.loads((study / "supernet" / "supernet.json").read_text())
    assert 0 < record["flops_of_50_trials_ratio"] < 1
    winners = rows(study / "winners" / "trials.jsonl")
    assert winners[0]["origin"] == "reference" and winners[0]["measurement"]["score_as_is"] == pytest.approx(
        trials[0]["measurement"]["score"]
    ), "a winner starts from the supernet"


def test_trials_have_the_scores_of_the_supernet(build, study, space):
    model = ClassformerForSequenceClassification.from_pretrained(study / "supernet")
    objective = build(study)
    from classformer_hf.search.supernet import use_schedule
    from classformer_hf.training import predict

    split = objective.task.splits["validation"]
    for row in rows(study / "trials.jsonl"):
        with use_schedule(model, Schedule.from_config(row["schedule"])):
            predictions = predict(model, split, objective.tokenizer).argmax(axis=1)
        assert row["measurement"]["score"] == pytest.approx(np.mean(predictions == np.array(split["labels"])))
        np.testing.assert_array_equal(np.load(study / "predictions" / f"{row['key']}.npy"), predictions)


def test_finished_search_repeats_nothing(build, study, space, monkeypatch):
    monkeypatch.setattr(FineTuneObjective, "__call__", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr("classformer_hf.search.oneshot.train_supernet", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr("classformer_hf.search.timing.build_latency_table", lambda *_, **__: pytest.fail("timed"))
    before = (study / "trials.jsonl").read_bytes()
    found, stages = search(build(study), space)
    assert (study / "trials.jsonl").read_bytes() == before
    assert [number for _, number in stages] == [5, len(rows(study / "winners" / "trials.jsonl"))]
    assert found.result.best.schedule.key in {row["key"] for row in rows(study / "winners" / "trials.jsonl")}


def test_supernet_of_another_recipe_is_refused(build, study, space):
    objective = build(study)
    objective.arguments.learning_rate = 1e-5
    with pytest.raises(JournalError, match="trained for another study: its recipe"):
        search(objective, space)


def test_difference_is_named_alone(build, study, space):
    objective = build(study)
    objective.arguments.seed = 7
    with pytest.raises(JournalError) as caught:
        search(objective, space)
    assert "its recipe is {'seed': '42'}, now it is {'seed': '7'}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("supernet.json", "supernet.json cannot be read.*delete .*supernet to train it anew"), ("model.safetensors", "")],
)
def test_damaged_supernet_is_said(build, study, space, name, message):
    (study / "trials.jsonl").unlink()
    shutil.rmtree(study / "predictions")
    (study / "supernet" / name).write_bytes((study / "supernet" / name).read_bytes()[:100])
    with pytest.raises(JournalError, match=message or "supernet cannot be loaded .*; delete it to train it anew"):
        search(build(study), space)


def test_damaged_timing_is_repeated(build, study, space, tmp_path):
    path = study / "direct_latency.json"
    path.write_text("{")
    search(build(study), space, required_performance=0.1)
    assert json.loads(path.read_text())["latency"]


def test_other_lengths_in_the_same_folder_are_refused(build, study, space):
    objective = build(study)
    objective.use_lengths([40] * 8)
    with pytest.raises(JournalError, match="its latency is"):
        search(objective, space)


def test_other_latencies_in_the_same_folder_are_refused(build, study, space, tmp_path):
    table = LatencyTable.load(study / "latency_table.json")
    other = dataclasses.replace(table, entries=tuple(entry._replace(ms=2 * entry.ms) for entry in table.entries))
    other.save(tmp_path / "other.json")
    with pytest.raises(JournalError, match="its full_model_milliseconds is"):
        search(build(study), space, latency_table=str(tmp_path / "other.json"))


def test_workers_share_the_supernet(build, study, space, tmp_path):
    shutil.copytree(study / "supernet", tmp_path / "other" / "supernet")
    with ThreadPoolExecutor(2) as executor:
        search(build(tmp_path / "other"), space, executors={"executor": executor, "num_workers": 2}, max_trials=7)
    trials = rows(tmp_path / "other" / "trials.jsonl")
    assert len({trial["key"] for trial in trials}) == 7
    assert {trial["status"] for trial in trials} == {"ok"}


def test_reuse_trains_only_the_winners_and_keeps_the_old_study(build, study, space, tmp_path, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.oneshot.train_supernet", lambda *_: pytest.fail("trained"))
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    objective = build(tmp_path / "new")
    objective.use_lengths([40] * 8)
    search(objective, space, reuse=study, required_performance=0.3)
    assert before == {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    old, new = rows(study / "trials.jsonl"), rows(tmp_path / "new" / "trials.jsonl")
    assert [trial["key"] for trial in new][: len(old)] == [trial["key"] for trial in old]
    scores = [trial["measurement"]["score"] for trial in new]
    assert scores[: len(old)] == [trial["measurement"]["score"] for trial in old]
    assert len(old) < len(new) <= len(old) + EXTRA_TRIALS, "another target may want other schedules"
    assert new[1]["origin"] == "reused"
    assert new[1]["measurement"]["latency_ratio"] != old[1]["measurement"]["latency_ratio"]


def test_reuse_takes_the_full_models_fine_tuning_over(build, study, space, tmp_path, monkeypatch):
    trained, fine_tune = [], objective_module.fine_tune

    def note(model, *arguments, **settings):
        trained.append(list(model.config.gamma))
        return fine_tune(model, *arguments, **settings)

    monkeypatch.setattr(objective_module, "fine_tune", note)
    objective = build(tmp_path / "new")
    objective.use_lengths([40] * 8)
    found, _ = search(objective, space, reuse=study, required_performance=0.01)
    (old, *_), (new, *others) = (rows(path / "winners" / "trials.jsonl") for path in (study, tmp_path / "new"))
    assert len(others) == 1
    for name in ("score", "score_as_is", "train_seconds"):
        assert new["measurement"][name] == old["measurement"][name]
    assert new["measurement"]["latency"] != old["measurement"]["latency"], "what depends on the target is timed again"
    assert trained == [others[0]["schedule"]["gamma"]], "one short fine-tuning, of the winner"
    weights = [path / "winners" / "models" / space.full.key / "model.safetensors" for path in (study, tmp_path / "new")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_second_driver_is_refused_while_the_supernet_trains(build, space, tmp_path, monkeypatch):
    answers = []

    def train_supernet(*_):
        pid = os.fork()
        if pid == 0:
            try:
                with only_driver(tmp_path):
                    os._exit(1)
            except JournalError as error:
                os._exit(7 if f"process {os.getppid()} on" in str(error) else 2)
        answers.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
        raise KeyboardInterrupt

    monkeypatch.setattr("classformer_hf.search.oneshot.train_supernet", train_supernet)
    with pytest.raises(KeyboardInterrupt):
        search(build(tmp_path), space)
    assert answers == [7]
    assert not (tmp_path / "driver.json").exists(), "the next one may start"


def test_winner_that_was_timed_otherwise_than_its_candidate_is_named(study, caplog):
    (row, *_) = rows(study / "winners" / "trials.jsonl")
    trial = Trial.from_row(row)
    record = study / "direct_latency.json"
    for ratio, words in ((1.02, []), (0.9, ["took 0.900 of the full model's time as a candidate"])):
        caplog.clear()
        record.write_text(json.dumps({"latency": {trial.schedule.key: {"ratio": ratio * trial.latency_ratio}}}))
        warn_of_drift(trial, record)
        assert len(caplog.messages) == len(words)
        if words:
            assert f"took {ratio * trial.latency_ratio:.3f} of the full model's" in caplog.text


def test_reuse_under_another_dtype_validates_again(build, study, space, tmp_path):
    search(build(tmp_path / "bf16", dtype=torch.bfloat16), space, reuse=study, required_performance=0.3)
    new = rows(tmp_path / "bf16" / "trials.jsonl")
    assert 1 <= len(new) <= 4
    model = ClassformerForSequenceClassification.from_pretrained(
        tmp_path / "bf16" / "winners" / "models" / new[0]["key"]
    )
    assert model.dtype == torch.bfloat16
    table = LatencyTable.load(tmp_path / "bf16" / "latency_table.json")
    assert table.hardware["dtype"] == "bfloat16"


def test_table_of_another_machine_is_answered_without_timing_here(build, study, space, tmp_path, monkeypatch):
    table = LatencyTable.load(study / "latency_table.json")
    foreign = dataclasses.replace(table, hardware={**table.hardware, "cpu": "another", "device_name": "another"})
    foreign.save(tmp_path / "foreign.json")
    monkeypatch.setattr(FineTuneObjective, "measure", lambda *_: pytest.fail("timed here"))
    objective = build(tmp_path / "new")
    found, _ = search(objective, space, reuse=study, latency_table=str(tmp_path / "foreign.json"))
    assert found.result.best.measurement["latency_source"] == "table"
    assert found.result.best.measurement["hardware"]["cpu"] == "another"


def test_interrupted_validation_goes_on_with_the_same_examples(build, study, space, tmp_path, monkeypatch):
    objective = build(tmp_path / "new", dtype=torch.bfloat16)
    task, tokenizer, full = objective.task, objective.tokenizer, objective.full
    other = Schedule((2, 1, 1))
    supernet = SupernetObjective(study / "supernet", task, tokenizer, {full: 1.0, other: 0.5}, full, tmp_path)
    supernet.predictions.mkdir()
    np.save(supernet.predictions / f"{full.key}.npy", np.zeros(5, int))
    supernet.limit_examples([full, other], 1e9)
    supernet.predict([full, other])
    assert len(supernet.load_predictions(other)) == supernet.describe(other)["num_examples"] == 5


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda study: shutil.rmtree(study / "supernet"), "holds no supernet"),
        (lambda study: (study / "trials.jsonl").unlink(), "no finished trial to reuse"),
        (lambda study: drop_first_line(study / "trials.jsonl"), "has lost its first line"),
    ],
)
def test_what_cannot_be_reused_is_refused(build, study, space, tmp_path, break_it, message):
    break_it(study)
    with pytest.raises(JournalError, match=message):
        search(build(tmp_path / "new"), space, reuse=study)


def test_reuse_into_its_own_folder_is_refused(build, study, space):
    with pytest.raises(JournalError, match="give the new answer a folder of its own"):
        search(build(study), space, reuse=study)


def drop_first_line(path):
    path.write_text(path.read_text().split("\n", 1)[1])


def test_reuse_of_another_dataset_is_refused(build, study, space, tmp_path, tiny_task):
    shorter = dataclasses.replace(
        tiny_task,
        splits=type(tiny_task.splits)({**tiny_task.splits, "train": tiny_task.splits["train"].select(range(9))}),
    )
    with pytest.raises(JournalError, match="another dataset"):
        search(build(tmp_path / "new", task=shorter), space, reuse=study)


def test_length_policy_is_judged_first(build, study, space, tmp_path, monkeypatch):
    policy = Schedule((4, 1, 1), 0, ((18, Schedule((2, 1, 1))),))
    monkeypatch.setattr("classformer_hf.search.policy.choose_policy", lambda *_: policy)
    monkeypatch.setattr("classformer_hf.search.oneshot.prune_models", lambda *_: None)
    settings = {"required_performance": 0.3, "latency_table": str(study / "latency_table.json")}
    found, _ = search(build(tmp_path / "new"), space, reuse=study, length_buckets=(18,), **settings)
    winners = rows(tmp_path / "new" / "winners" / "trials.jsonl")
    assert Schedule.from_config(found.about["length_policy"]) == policy
    assert winners[1]["key"] == policy.key
    model = ClassformerForSequenceClassification.from_pretrained(tmp_path / "new" / "winners" / "models" / policy.key)
    assert Schedule.from_config(vars(model.config)) == policy


def test_objectives_can_be_sent_to_workers(build, study):
    objective = pickle.loads(pickle.dumps(build(study)))
    assert objective.task.fingerprint == build(study).task.fingerprint
    tokenizer, task = objective.tokenizer, objective.task
    supernet = SupernetObjective(study / "supernet", task, tokenizer, {objective.full: 1.0}, objective.full, study)
    supernet.load()
    assert pickle.loads(pickle.dumps(supernet))(objective.full) == supernet(objective.full)


def test_direct_measurement_runs_every_schedule_on_one_model(build, tmp_path):
    objective = build(tmp_path)
    short = Schedule((4, 4, 1))
    latency = measure_directly(objective, [short], rounds=2)
    assert set(latency) == {objective.full, short}
    assert latency[objective.full].ratio == 1


class TestQueue:
    """The order in which candidates are fine-tuned."""

    first, second = candidates = [Schedule((4, 1, 1)), Schedule((2, 1, 1))]

    def test_stops_at_the_first_that_is_good_enough(self, space):
        sampler = QueueSampler(space, self.candidates, 0.9)
        assert sampler.ask() == (self.first, "winner")
        sampler.tell(Observation(self.first, 0.9, 0.5, 0.9))
        assert sampler.ask() is None

    def test_goes_on_after_one_that_fell_short_or_failed(self, space):
        sampler = QueueSampler(space, self.candidates, 0.9)
        sampler.tell(Observation(space.full, 1.0, 1.0, 1.0))
        sampler.tell(Observation(self.first))
        assert sampler.ask() == (self.second, "winner")
        sampler.tell(Observation(self.second, 0.89, 0.5, 0.89))
        assert sampler.ask() is None


def test_bar_rises_by_what_was_lost():
    assert raise_requirement([], 0.95) == 0.95
    # twice as much was lost as promised: promise half the loss
    short = Verdict(0.96, 0.92, 0.0)
    assert raise_requirement([short], 0.95) == pytest.approx(0.975)
    assert raise_requirement([short, Verdict(0.95, 0.94, 0.0)], 0.95) == pytest.approx(0.975)
    assert raise_requirement([Verdict(0.96, 0.92, 0.01)], 0.95) == pytest.approx(1 - 0.04 / 2), "one error higher"
    assert raise_requirement([Verdict(0.96, 0.92, 0.04)], 0.95) == pytest.approx(1 - 0.025 / 2), "halfway at most"
    assert raise_requirement([Verdict(1.01, 0.98, 0.0)], 0.99) == 1
    assert raise_requirement([Verdict(0.5, 0.8, 0.0)], 0.95) == 0.95, "a gain lowers nothing"
    assert raise_requirement([short, Verdict(0.97, 0.96, 0.0)], 0.95) == 0.97, "no higher than what was enough"
    assert raise_requirement([short, Verdict(0.94, 0.96, 0.0)], 0.95) == 0.95


def test_search_goes_on_where_winners_fall_short(build, study, space, tmp_path, monkeypatch):
    """A made-up world: time is the number of positions, and a fine-tuning loses 1.6 times what was promised."""
    shutil.copytree(study / "supernet", tmp_path / "new" / "supernet")

    def bits_lost(schedule):
        long, short = space.log2_lengths([space.full, schedule], [40]).sum(axis=1)
        return float(long - short)

    def time(schedule):
        return {"latency_ratio": 1 - 0.05 * bits_lost(schedule)}

    def validate(self, schedule):
        return {**time(schedule), "score": 1 - 0.02 * bits_lost(schedule), "standard_error": 0, "num_examples": 12}

    def fine_tune(self, schedule):
        lost = 0.02 * bits_lost(schedule)
        return {"score": 1 - 1.6 * lost, "score_as_is": 1 - lost, "standard_error": 0, "num_examples": 12}

    def remeasure(objective, table, candidates, *_):
        return {"drift": {}, "latency": {one.key: {"ratio": time(one)["latency_ratio"]} for one in candidates}}

    monkeypatch.setattr(SupernetObjective, "__call__", validate)
    monkeypatch.setattr(FineTuneObjective, "__call__", fine_tune)
    monkeypatch.setattr(FineTuneObjective, "measure", lambda self, schedule: time(schedule))
    monkeypatch.setattr("classformer_hf.search.oneshot.remeasure", remeasure)
    monkeypatch.setattr("classformer_hf.search.oneshot.EXTRA_TRIALS", 3)
    monkeypatch.setattr("classformer_hf.search.oneshot.prune_models", lambda *_: None)
    found, stages = search(build(tmp_path / "new"), space, required_performance=0.95, num_winners=3, max_trials=12)
    judged = rows(tmp_path / "new" / "winners" / "trials.jsonl")
    scores = [row["measurement"]["score"] for row in judged]
    assert len(judged) == 3 and scores[1] < 0.95 <= scores[2], "one falls short, the next keeps the requirement"
    assert found.result.best.schedule.key == judged[2]["key"]
    assert [name for name, _ in stages] == ["validate with the supernet", "fine-tune a winner"] * 2
    assert len(rows(tmp_path / "new" / "trials.jsonl")) == 15
