"""The search with one training, stage by stage, on a tiny model and task."""

import dataclasses
import json
import logging
import os
import pickle
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.latency import LatencyTable
from classformer_hf.search import Hooks, Journal, JournalError, Schedule, SearchSpace, Workers, target
from classformer_hf.search import objective as objective_module
from classformer_hf.search import reference as reference_module
from classformer_hf.search.journal import Trial
from classformer_hf.search.objective import FineTuneObjective
from classformer_hf.search.settings import SearchSettings
from classformer_hf.search.stages import EXTRA_TRIALS, only_driver, search_with_supernet
from classformer_hf.search.supernet import STAGE as SUPERNET
from classformer_hf.search.target import DIRECT, TABLE, LatencyMeter
from classformer_hf.search.validation import STAGE as VALIDATION
from classformer_hf.search.validation import SupernetObjective
from classformer_hf.search.winners import FULL, WINNER, Verdict, prepare_winners, required_promise, warn_of_drift
from classformer_hf.training import ClassformerTrainingArguments, FineTuned
from redundancy_hf.data import tokenize
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.plan import Plan
from redundancy_hf.timing import Latency, Target

REQUIRED = 0.6
HOOKS = ("is_time_up", "check_reference")


@pytest.fixture(autouse=True)
def few_rounds(monkeypatch):
    """A rough latency table is enough here."""
    monkeypatch.setattr("classformer_hf.search.target.TABLE_ROUNDS", 1)


@pytest.fixture
def build(tiny_roberta_folder, tiny_text_file, tiny_task):
    """Build an objective in a folder; keyword arguments go to it."""

    def make(folder, task=None, checkpoint=tiny_roberta_folder, **settings):
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
        return FineTuneObjective(str(checkpoint), task, tokenizer, arguments, Target(rounds=2, **settings))

    return make


@pytest.fixture
def space():
    return SearchSpace(3, 40, (1, 2, 4), (0, 2), max_reduction=16)


def search(objective, space, **settings):
    settings = {"strategy": "random", "required_performance": REQUIRED, "max_trials": 5, "num_winners": 1, **settings}
    stages = []

    def begin(name, max_trials, num_before):
        stages.append((name, num_before))
        objective.plan.begin(name, max_trials, num_before)
        return lambda result: None

    hooks = Hooks(begin, **{name: settings.pop(name) for name in HOOKS if name in settings})
    workers = settings.pop("workers", Workers())
    found = search_with_supernet(objective, space, SearchSettings(**settings), hooks, workers)
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
    assert winners[0]["measurement"]["score"] >= winners[0]["measurement"]["score_as_is"]


def test_every_stage_is_on_the_plan(build, space, tmp_path, monkeypatch, capsys):
    begun, begin = [], Plan.begin

    def note(plan, name, *arguments):
        begun.append((name, plan.waiting.get(name)))
        begin(plan, name, *arguments)

    monkeypatch.setattr(Plan, "begin", note)
    objective = build(tmp_path)
    search(objective, space, required_performance=0.1)
    names = [SUPERNET, TABLE, FULL, VALIDATION, DIRECT, WINNER]
    assert [name for name, _ in begun[:6]] == names
    assert all(seconds > 0 for _, seconds in begun[:6])
    plan = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("plan: "))
    assert all(name in plan for name in names)


def test_stopped_supernet_says_that_the_same_command_goes_on(build, space, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt, match="the same command goes on; the training that ran .* is lost"):
        search(build(tmp_path), space)


@pytest.mark.parametrize(
    ("where", "lost"),
    [
        ("classformer_hf.search.target.build_latency_table", "what was timed of it"),
        ("classformer_hf.search.validation.predict_schedules", "the trial that was running"),
        ("classformer_hf.search.target.LatencyMeter.compare", "this timing"),
        ("classformer_hf.search.objective.FineTuneObjective.fine_tune", "the fine-tuning that was running"),
    ],
)
def test_stopped_stage_says_what_is_lost(build, study, space, monkeypatch, where, lost):
    for name in ("latency_table.json", "direct_latency.json"):
        (study / name).unlink(missing_ok=True)
    drop_last_lines(study / "trials.jsonl", 1)
    drop_last_lines(study / "winners" / "trials.jsonl", len(rows(study / "winners" / "trials.jsonl")) - 1)
    for path in (study / "predictions").glob("*.npy"):
        path.unlink()

    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(where, stop)
    with pytest.raises(KeyboardInterrupt, match=f"the same command goes on; {lost} is lost"):
        search(build(study), space, required_performance=0.1)


def drop_last_lines(path, number):
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[: len(lines) - number]))


def test_trials_have_the_scores_of_the_supernet(build, study, space):
    model = ClassformerForSequenceClassification.from_pretrained(study / "supernet")
    objective = build(study)
    from classformer_hf.checkpoints import reconfigure
    from redundancy_hf.evaluation import predict

    split = objective.task.splits["validation"]
    for row in rows(study / "trials.jsonl"):
        scheduled = reconfigure(model, **Schedule.from_config(row["schedule"]).config)
        predictions = predict(scheduled, split, objective.tokenizer).argmax(axis=1)
        assert row["measurement"]["score"] == pytest.approx(np.mean(predictions == np.array(split["labels"])))
        np.testing.assert_array_equal(np.load(study / "predictions" / f"{row['key']}.npy"), predictions)


def test_finished_search_repeats_nothing(build, study, space, monkeypatch):
    monkeypatch.setattr(FineTuneObjective, "__call__", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr("classformer_hf.search.stages.train_supernet", lambda *_: pytest.fail("trained"))
    monkeypatch.setattr("classformer_hf.search.target.build_latency_table", lambda *_, **__: pytest.fail("timed"))
    before = (study / "trials.jsonl").read_bytes()
    found, stages = search(build(study), space)
    assert (study / "trials.jsonl").read_bytes() == before
    assert stages == [("validate with the supernet", 5)]
    assert found.result.best.schedule.key in {row["key"] for row in rows(study / "winners" / "trials.jsonl")}


def test_supernet_of_another_recipe_is_refused(build, study, space):
    objective = build(study)
    objective.arguments.learning_rate = 1e-5
    with pytest.raises(JournalError, match=r"trials.jsonl belongs to another study: --learning_rate \(0.001, now"):
        search(objective, space)
    (study / "trials.jsonl").unlink()
    with pytest.raises(JournalError, match="supernet was trained for another study: --learning_rate"):
        search(objective, space)


def test_difference_is_named_alone(build, study, space):
    objective = build(study)
    objective.arguments.seed = 7
    with pytest.raises(JournalError) as caught:
        search(objective, space)
    assert "another study: --seed (42, now 7); use another --output_dir" in str(caught.value)


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
    objective.meter.use_lengths([40] * 8)
    with pytest.raises(JournalError, match=r"the mean length of the timed texts in tokens \(--target_lengths\) \("):
        search(objective, space)


def latencies_by(table_file, objective, trials):
    table = LatencyTable.load(table_file)
    return list(table.predict_ratios([trial.schedule for trial in trials], objective.meter.lengths))


def test_another_table_in_the_same_folder_tells_the_latencies(build, study, space, tmp_path):
    before = (study / "latency_table.json").read_bytes()
    table = LatencyTable.load(study / "latency_table.json")
    # layers that drop nothing cost more
    entries = tuple(entry._replace(ms=2 * entry.ms if entry.part == "keep" else entry.ms) for entry in table.entries)
    dataclasses.replace(table, entries=entries).save(tmp_path / "other.json")
    objective = build(study)
    search(objective, space, latency_table=str(tmp_path / "other.json"))
    trials = Journal(study / "trials.jsonl", {}, is_writer=False).trials
    assert (study / "latency_table.json").read_bytes() == (tmp_path / "other.json").read_bytes()
    assert [trial.latency_ratio for trial in trials] == latencies_by(tmp_path / "other.json", objective, trials)
    assert [trial.score for trial in trials] == [row["measurement"]["score"] for row in rows(study / "trials.jsonl")]
    (kept,) = (study / "latency_tables").iterdir()
    assert kept.read_bytes() == before


@pytest.fixture
def taskset(monkeypatch):
    """Let this process have another number of cores, as `taskset` does."""
    return lambda number: monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(number)))


@pytest.fixture
def untimed(monkeypatch):
    """Everything takes half of the full model's time."""
    half = Latency(0.5, 0.5, 0.5, 1.0, 1.0, None, "wall", 1)
    monkeypatch.setattr(LatencyMeter, "compare", lambda self, some, *_: dict.fromkeys(some, half))
    monkeypatch.setattr(
        LatencyMeter, "measure", lambda self, _: {"latency_ratio": 0.5, "hardware": self.target.hardware}
    )


def test_machine_that_changes_has_a_table_of_its_own(build, study, space, taskset, untimed, monkeypatch):
    path, built, build_table = study / "latency_table.json", [], target.build_latency_table
    monkeypatch.setattr(target, "build_latency_table", lambda *a, **k: built.append(1) or build_table(*a, **k))
    here, cores_here = path.read_bytes(), len(os.sched_getaffinity(0))
    for cores, num_built in ((77, 1), (cores_here, 1), (77, 1)):
        taskset(cores)
        objective = build(study)
        found, _ = search(objective, space)
        assert len(built) == num_built and (path.read_bytes() == here) == (cores != 77)
        trials = Journal(study / "trials.jsonl", {}, is_writer=False).trials
        assert [trial.latency_ratio for trial in trials] == latencies_by(path, objective, trials)
        winners = Journal(study / "winners" / "trials.jsonl", {}, is_writer=False).trials
        for trial in winners:
            assert (trial.measurement["hardware"]["usable_cores"] == 77) == (cores == 77)
        record = json.loads((study / "direct_latency.json").read_text())
        assert (record["hardware"]["usable_cores"] == 77) == (cores == 77)
    assert len(list((study / "latency_tables").iterdir())) == 2
    assert [t.score for t in trials] == [row["measurement"]["score"] for row in rows(study / "trials.jsonl")]


def test_another_study_is_refused_before_anything_is_timed(build, study, space, taskset, monkeypatch):
    monkeypatch.setattr(target, "build_latency_table", lambda *_, **__: pytest.fail("timed"))
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    taskset(77)
    objective = build(study)
    objective.meter.use_lengths([40] * 8)
    with pytest.raises(JournalError, match=r"the mean length of the timed texts in tokens \(--target_lengths\) \("):
        search(objective, space)
    assert before == {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}


def test_study_that_told_more_schedules_apart_goes_on(build, study, space, untimed, tmp_path):
    """Trials of a space that had duplicates stay, and those that are one are not tried again."""
    cut = SearchSpace(3, 40, (1, 2, 4), (0, 2), max_reduction=16, judged_tokens=4)
    before = rows(study / "trials.jsonl")
    search(build(study), cut, max_trials=30)
    trials = rows(study / "trials.jsonl")
    assert trials[: len(before)] == before
    new = [cut.canonical(Schedule.from_config(trial["schedule"])) for trial in trials[len(before) :]]
    old = {cut.canonical(Schedule.from_config(trial["schedule"])) for trial in before}
    assert len(old) < len(before), "there were duplicates"
    assert len(set(new)) == len(new) and not old & set(new)
    assert old | set(new) == set(cut.enumerate()), "everything was tried"
    table = str(study / "latency_table.json")
    search(build(tmp_path / "new"), cut, reuse=study, max_trials=30, latency_table=table)
    assert [row["key"] for row in rows(tmp_path / "new" / "trials.jsonl")] == [trial["key"] for trial in trials]


def test_study_whose_identity_holds_a_measured_number_resumes(build, study, space):
    header, *lines = (study / "trials.jsonl").read_text().splitlines(keepends=True)
    row = json.loads(header)
    assert "full_model_milliseconds" not in row["identity"]
    row["identity"]["full_model_milliseconds"] = 0.1234
    (study / "trials.jsonl").write_text(json.dumps(row) + "\n" + "".join(lines))
    found, _ = search(build(study), space)
    assert len(rows(study / "trials.jsonl")) == len(lines) == 5


def test_workers_share_the_supernet(build, study, space, tmp_path):
    shutil.copytree(study / "supernet", tmp_path / "other" / "supernet")
    with ThreadPoolExecutor(2) as executor:
        search(build(tmp_path / "other"), space, workers=Workers(executor, 2), max_trials=7)
    trials = rows(tmp_path / "other" / "trials.jsonl")
    assert len({trial["key"] for trial in trials}) == 7
    assert {trial["status"] for trial in trials} == {"ok"}


def test_reuse_trains_only_the_winners_and_keeps_the_old_study(build, study, space, tmp_path, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.stages.train_supernet", lambda *_: pytest.fail("trained"))
    before = {path: path.read_bytes() for path in study.rglob("*") if path.is_file()}
    objective = build(tmp_path / "new")
    objective.meter.use_lengths([40] * 8)
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
    objective.meter.use_lengths([40] * 8)
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

    monkeypatch.setattr("classformer_hf.search.stages.train_supernet", train_supernet)
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
    search(build(tmp_path / "bf16", dtype="bfloat16"), space, reuse=study, required_performance=0.3)
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
    monkeypatch.setattr(LatencyMeter, "measure", lambda *_: pytest.fail("timed here"))
    objective = build(tmp_path / "new")
    found, _ = search(objective, space, reuse=study, latency_table=str(tmp_path / "foreign.json"))
    assert found.result.best.measurement["latency_source"] == "table"
    assert found.result.best.measurement["hardware"]["cpu"] == "another"


def test_interrupted_validation_goes_on_with_the_same_examples(build, study, space, tmp_path, monkeypatch):
    objective = build(tmp_path / "new", dtype="bfloat16")
    full, other = objective.full, Schedule((2, 1, 1))
    supernet = SupernetObjective(study / "supernet", objective, {full: 1.0, other: 0.5})
    supernet.predictions.mkdir(parents=True)
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


def test_what_cannot_be_reused_is_refused_before_steps_are_timed(build, space, tmp_path, monkeypatch):
    monkeypatch.setattr("classformer_hf.search.pace.Pace.measure", lambda objective: pytest.fail("a plan was made"))
    with pytest.raises(JournalError, match="holds no supernet"):
        search(build(tmp_path / "new"), space, reuse=tmp_path / "nothing")


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
    with pytest.raises(JournalError, match="something else: the content of --dataset_name, which has changed; --reuse"):
        search(build(tmp_path / "new", task=shorter), space, reuse=study)


def test_length_buckets_that_are_added_later_reach_the_model(build, study, space, monkeypatch):
    policy = Schedule((4, 4, 1), 0, ((18, Schedule((2, 4, 1))),))
    monkeypatch.setattr("classformer_hf.search.policy.choose_policy", lambda *_: policy)

    def compare(meter, schedules, *_):
        ratios = {one: 0.01 if one.buckets else 0.5 for one in schedules} | {meter.full: 1.0}
        return {one: Latency(ratio, ratio, ratio, 1.0, 1.0, None, "wall", 1) for one, ratio in ratios.items()}

    monkeypatch.setattr(LatencyMeter, "compare", compare)
    monkeypatch.setattr(LatencyMeter, "measure", lambda self, one: {"latency_ratio": 0.01 if one.buckets else 0.5})
    settings = {"required_performance": 0.3, "num_winners": 1}
    found, _ = search(build(study), space, length_buckets=(18,), **settings)
    assert found.result.best.schedule == policy
    model = ClassformerForSequenceClassification.from_pretrained(study / "winners" / "models" / policy.key)
    assert Schedule.from_config(vars(model.config)) == policy
    single = search(build(study), space, **settings)[0].result.best.schedule
    assert not single.buckets, "asked without buckets again"
    assert (study / "winners" / "models" / single.key).exists()
    assert search(build(study), space, length_buckets=(18,), **settings)[0].result.best.schedule == policy


def test_objectives_can_be_sent_to_workers(build, study):
    objective = pickle.loads(pickle.dumps(build(study)))
    assert objective.task.fingerprint == build(study).task.fingerprint
    supernet = SupernetObjective(study / "supernet", objective, {objective.full: 1.0})
    supernet.load()
    assert pickle.loads(pickle.dumps(supernet))(objective.full) == supernet(objective.full)


def test_direct_measurement_runs_every_schedule_on_one_model(build, tmp_path):
    objective = build(tmp_path)
    short = Schedule((4, 4, 1))
    latency = objective.meter.compare([short], rounds=2)
    assert set(latency) == {objective.full, short}
    assert latency[objective.full].ratio == 1


def test_bar_rises_by_what_was_lost():
    assert required_promise([], 0.95) == 0.95
    # twice as much was lost as promised: promise half the loss
    short = Verdict(0.96, 0.92, 0.0)
    assert required_promise([short], 0.95) == pytest.approx(0.975)
    assert required_promise([short, Verdict(0.95, 0.94, 0.0)], 0.95) == pytest.approx(0.975)
    assert required_promise([Verdict(0.96, 0.92, 0.01)], 0.95) == pytest.approx(1 - 0.04 / 2), "one error higher"
    assert required_promise([Verdict(0.96, 0.92, 0.04)], 0.95) == pytest.approx(1 - 0.025 / 2), "halfway at most"
    assert required_promise([Verdict(1.01, 0.98, 0.0)], 0.99) == 1
    assert required_promise([Verdict(0.5, 0.8, 0.0)], 0.95) == 0.95, "a gain lowers nothing"
    assert required_promise([short, Verdict(0.97, 0.96, 0.0)], 0.95) == 0.97, "no higher than what was enough"
    assert required_promise([short, Verdict(0.94, 0.96, 0.0)], 0.95) == 0.95


def test_bar_sinks_by_what_winners_gained():
    gained = Verdict(0.96, 0.98, 0.005)
    assert required_promise([gained], 0.95) == pytest.approx(0.95 - (0.02 - 0.005)), "one error less than the gain"
    assert required_promise([gained, Verdict(0.95, 0.96, 0.0)], 0.95) == pytest.approx(0.94), "the smallest gain counts"
    assert required_promise([gained, Verdict(0.97, 0.96, 0.0)], 0.95) == 0.95, "one that lost stops it"
    assert required_promise([Verdict(0.96, 0.98, 0.03)], 0.95) == 0.95, "within its error"
    # one that was tried below the requirement and fell short raises it again, above what that promised
    bar = required_promise([gained, Verdict(0.936, 0.94, 0.0)], 0.95)
    assert bar == pytest.approx(1 - 0.05 * 0.064 / 0.06) and 0.936 < bar < 0.96
    assert required_promise([Verdict(0.1, 0.9, 0.0)], 0.2) == 0.1, "never below half of what is asked"


@pytest.mark.parametrize(("kept", "moves"), [(0.94, True), (0.951, False), (0.97, True)])
def test_winner_moves_the_bar_unless_it_kept_what_was_asked(kept, moves):
    assert Verdict(0.95, kept, 0.01).moves_bar(0.95) == moves


@pytest.fixture
def world(build, study, space, tmp_path, monkeypatch, caplog):
    """A made-up world: score and time are the positions; what a fine-tuning keeps is a function of the score lost."""
    folder = tmp_path / "new"
    shutil.copytree(study / "supernet", folder / "supernet")
    caplog.set_level(logging.INFO, "classformer_hf")

    def bits_lost(schedule):
        long, short = space.log2_lengths([space.full, schedule], [40]).sum(axis=1)
        return float(long - short)

    def time(schedule):
        return {"latency_ratio": 1 - 0.05 * bits_lost(schedule)}

    def validate(self, schedule):
        return {**time(schedule), "score": 1 - 0.02 * bits_lost(schedule), "standard_error": 0, "num_examples": 12}

    def remeasure(objective, table, candidates, *_):
        return {"drift": {}, "latency": {one.key: {"ratio": time(one)["latency_ratio"]} for one in candidates}}

    monkeypatch.setattr(SupernetObjective, "__call__", validate)
    monkeypatch.setattr(SupernetObjective, "look_up", lambda self, schedule: time(schedule))
    monkeypatch.setattr(LatencyMeter, "measure", lambda self, schedule: time(schedule))
    monkeypatch.setattr("classformer_hf.search.stages.remeasure", remeasure)
    monkeypatch.setattr("classformer_hf.search.stages.EXTRA_TRIALS", 3)
    monkeypatch.setattr("classformer_hf.search.stages.prune_models", lambda *_: None)

    def ask(keep=lambda lost: 1 - lost, full=None, **settings):
        def fine_tune(self, schedule):
            lost = 0.02 * bits_lost(schedule)
            if schedule == space.full and full is not None:
                return {**full, "supernet_score": 1.0, "standard_error": 0, "num_examples": 12}
            return {"score": keep(lost), "score_as_is": 1 - lost, "standard_error": 0, "num_examples": 12}

        monkeypatch.setattr(FineTuneObjective, "__call__", fine_tune)
        found, stages = search(build(folder), space, **{"max_trials": 12, "num_winners": 5, **settings})
        return found.result, [name for name, _ in stages], rows(folder / "trials.jsonl")

    return ask


def fastest(trials, promised):
    """The least latency among trials of `world` that promise a score."""
    return min(trial["measurement"]["latency_ratio"] for trial in trials if trial["measurement"]["score"] >= promised)


def test_search_goes_on_where_winners_fall_short(world):
    result, stages, trials = world(lambda lost: 1 - 1.6 * lost, required_performance=0.95, num_winners=2)
    scores = [trial.score for trial in result.trials]
    assert len(scores) == 3 and scores[1] < 0.95 <= scores[2], "one falls short, the next keeps the requirement"
    assert result.best is result.trials[2]
    assert stages[0] == "fine-tune the full model"
    assert stages[1:] == ["validate with the supernet", "fine-tune a winner"] * 2 + ["validate with the supernet"]
    assert len(trials) == 15


def test_overshoot_is_used(world, caplog):
    result, _, trials = world(lambda lost: 1 - lost / 2, required_performance=0.95)
    _, first, *_ = result.trials
    assert first.latency_ratio == fastest(trials[:12], 0.95)
    assert result.best.latency_ratio < first.latency_ratio and result.is_feasible(result.best)
    assert result.best.measurement["score_as_is"] < 0.95, "what gains by its fine-tuning may promise less"
    assert "must promise" in caplog.text


def test_best_winner_is_never_lost(world):
    result, *_ = world(lambda lost: 1 - lost / 2 if lost <= 0.05 else 1 - 3 * lost, required_performance=0.95)
    _, first, *faster = result.trials
    assert result.best is first
    assert faster and all(trial.latency_ratio < first.latency_ratio and trial.score < 0.95 for trial in faster)


def test_lower_requirement_in_the_same_folder_finds_a_faster_one(world, caplog):
    strict, *_ = world(required_performance=0.96)
    caplog.clear()
    result, _, trials = world(required_performance=0.9)
    assert result.best.latency_ratio == fastest(trials, 0.9) < strict.best.latency_ratio
    assert len(result.trials) == len(strict.trials) + 1
    assert "nothing left to try" not in caplog.text
    again, *_ = world(required_performance=0.96)
    assert again.best == strict.best, "and the strict answer is still there"


def test_more_trials_in_the_same_folder_find_a_faster_one(world, caplog):
    few, _, trials = world(required_performance=0.95, max_trials=4, num_winners=1)
    assert few.best.latency_ratio == fastest(trials, 0.95)
    many, _, trials = world(required_performance=0.95, max_trials=12, num_winners=1)
    assert many.best.latency_ratio == fastest(trials, 0.95) < few.best.latency_ratio
    assert "nothing left to try" not in caplog.text


def test_finished_question_is_not_asked_again(world, caplog):
    question = {"required_performance": 0.95, "num_winners": 1}
    first, _, trials = world(lambda lost: 1 - lost / 2, **question)
    assert "was not fine-tuned, which promises enough and would be faster: --num_winners are used up" in caplog.text
    again, _, trials_again = world(lambda lost: pytest.fail("trained"), **question)
    assert (again, trials_again) == (first, trials)
    more, *_ = world(lambda lost: 1 - lost / 2, **{**question, "num_winners": 2})
    assert len(more.trials) == 3


def test_time_budget_allows_one_winner(world, tmp_path, caplog):
    journal = tmp_path / "new" / "winners" / "trials.jsonl"

    def is_time_up():
        return journal.exists() and len(rows(journal)) > 1

    result, *_ = world(lambda lost: 1 - lost / 2, required_performance=0.95, is_time_up=is_time_up)
    assert len(result.trials) == 2 and "would be faster: no time is left" in caplog.text


@pytest.fixture
def scored(build, tmp_path, tiny_roberta_two_labels, monkeypatch):
    """Choose the reference of a study of a classifier, or of an encoder, whose scores are given."""

    def make(given, supernet, tuned, has_head=True):
        objective = build(tmp_path / "run", checkpoint=tiny_roberta_two_labels)
        objective.has_head = has_head
        winners = prepare_winners(objective, tiny_roberta_two_labels, 1)
        winners.has_head = True
        scores = {id(objective): given, id(winners): supernet}

        def load(self, schedule):
            model = load_from_encoder(self.checkpoint, **schedule.config, **self.task.head_config)
            # what tells the three models apart
            model.classifier.out_proj.bias.data.fill_(scores[id(self)])
            model.score = scores[id(self)]
            return model

        def fine_tune(model, task, tokenizer, arguments, evaluate_as_is=False, plan=None):
            score_as_is = model.score if evaluate_as_is else None
            if arguments.num_train_epochs > 0:
                model.score = tuned
                model.classifier.out_proj.bias.data.fill_(tuned)
            return FineTuned(model.score, score_as_is, np.full(12, model.score), 1.0, arguments.num_train_epochs)

        monkeypatch.setattr(FineTuneObjective, "load", load)
        monkeypatch.setattr(objective_module, "fine_tune", fine_tune)
        monkeypatch.setattr(reference_module, "fine_tune", fine_tune)
        monkeypatch.setattr("classformer_hf.search.models.compute_score", lambda _, predictions, __: predictions[0])
        monkeypatch.setattr("classformer_hf.search.models.standard_error", lambda *_: 0.02)
        monkeypatch.setattr("classformer_hf.search.models.paired_standard_error", lambda *_: 0.0)
        measured = winners(winners.full)
        model = ClassformerForSequenceClassification.from_pretrained(winners.models.folder(winners.full))
        assert float(model.classifier.out_proj.bias[0].detach()) == pytest.approx(measured["score"]), "that very model"
        return measured

    return make


@pytest.mark.parametrize(
    ("scores", "has_head", "expected"),
    [
        # the majority has 0.5: what a classifier of this task scores is not improved and not made worse
        ((0.7, 0.9, 0.95), True, {"reference": "given", "score": 0.7, "score_as_is": 0.7, "supernet_score": 0.9}),
        ((0.8, 0.6, 0.7), True, {"reference": "given", "score": 0.8, "score_as_is": 0.8, "supernet_score": 0.6}),
        # a head that learned nothing is none
        ((0.52, 0.696, 0.679), True, {"reference": "untuned", "score": 0.696, "score_as_is": 0.696}),
        ((0.9, 0.696, 0.679), False, {"reference": "untuned", "score": 0.696, "score_as_is": 0.696}),
        ((0.9, 0.696, 0.71), False, {"reference": "tuned", "score": 0.71, "score_as_is": 0.696}),
    ],
)
def test_reference_is_what_was_given_or_the_better_one(scored, scores, has_head, expected):
    measured = scored(*scores, has_head)
    assert {name: value for name, value in measured.items() if name in (*expected, "supernet_score")} == expected


@pytest.mark.parametrize(("score", "refused"), [(0.7, True), (0.5, False)])
def test_given_classifier_is_checked_before_anything_is_trained(
    build, space, tmp_path, tiny_roberta_two_labels, monkeypatch, score, refused
):
    """One that is no better than the majority is not the reference, and so no reason to refuse."""

    class Begun(Exception):
        pass

    def train_supernet(*_):
        raise Begun

    def check(stage, trial):
        raise ValueError(f"asked too little of {trial.score}")

    result = FineTuned(score, None, np.zeros(12, int), 1.0, 0)
    monkeypatch.setattr(reference_module, "fine_tune", lambda *_: result)
    described = {"score": score, "standard_error": 0.02}
    monkeypatch.setattr(reference_module, "describe_validation", lambda *_: described)
    monkeypatch.setattr("classformer_hf.search.stages.train_supernet", train_supernet)
    objective = build(tmp_path, checkpoint=tiny_roberta_two_labels)
    with pytest.raises(ValueError if refused else Begun, match="asked too little of 0.7" if refused else None):
        search(objective, space, check_reference=check)


def test_thesis_fine_tunes_its_reference(build, tmp_path, tiny_roberta_two_labels):
    objective = build(tmp_path / "run", checkpoint=tiny_roberta_two_labels)
    assert objective.has_head and objective.original is None
    assert "reference" not in objective(objective.full)


def test_promises_are_shares_of_the_given_classifier(world):
    """It has 0.9 of the supernet's score, so that candidates may score less with the supernet's weights."""
    result, _, trials = world(required_performance=0.95, num_winners=1, full={"score": 0.9, "score_as_is": 0.9})
    assert result.best.latency_ratio == fastest(trials, 0.95 * 0.9)
