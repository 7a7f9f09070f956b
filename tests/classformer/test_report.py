"""The report of a search, on made-up journals: both kinds of search, and what may be missing in them."""

import json
import re
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from huggingface_hub import EvalResult

from classformer_hf.search import Journal, Schedule, SearchResult, SearchSpace, Trial
from classformer_hf.search.figures import layer_lengths
from classformer_hf.search.loop import summarise
from classformer_hf.search.page import write_report
from classformer_hf.search.report import (
    describe_finding,
    describe_table,
    format_table,
    summary,
    tabulate,
    write_card,
    write_result_folder,
)
from redundancy_hf.cards import add_results
from redundancy_hf.record import TaskRecord

SPACE = SearchSpace(6, 96, (1, 2, 4), (0, 8), max_reduction=8)
HARDWARE = {"device_name": "a processor", "threads": 1, "dtype": "float32"}
ABOUT = {
    "dataset": "mrpc",
    "base_model": "all-MiniLM-L6-v2",
    "strategy": "constrained",
    "num_train_examples": 3668,
    "num_validation_examples": 408,
    "truncated": {"train": 3, "validation": 0},
    "majority_score": 0.68,
    "input_tokens": {"median": 48, "longest": 96},
}
PICTURES = ["pareto.png", "progress.png", "lengths.png", "monotonicity.png", "costs.png"]
POLICY = Schedule(
    (1, 2, 1, 2, 1, 1), 2, buckets=((32, Schedule((1, 1, 1, 2, 1, 1))), (64, Schedule((1, 1, 2, 2, 1, 1))))
)


@cache
def latency_of(schedule: Schedule) -> float:
    lengths, full = layer_lengths(schedule, 96), layer_lengths(SPACE.full, 96)
    return float(0.25 + 0.75 * sum(lengths) / sum(full))


def score_of(schedule: Schedule, generator: np.random.Generator) -> float:
    lost = np.log2(96 / np.array(layer_lengths(schedule, 96)[:-1])) @ [0.022, 0.014, 0.009, 0.006, 0.003]
    return float(max(0.68, 0.86 - lost + 0.008 * generator.normal() * (schedule != SPACE.full)))


def make_trial(number: int, schedule: Schedule, origin: str, generator: np.random.Generator, is_timed: bool) -> Trial:
    """Make up a trial, either of a fine-tuning that was timed or of a supernet and a table."""
    ratio = latency_of(schedule)
    error = 0.0 if schedule == SPACE.full else 0.011
    measurement = {
        "score": score_of(schedule, generator),
        "standard_error": 0.018,
        "paired_standard_error": error,
        "metric_name": "accuracy",
        "num_examples": 408,
        "latency_ratio": ratio,
        "latency_milliseconds": 25 * ratio,
    }
    if not is_timed:
        return Trial(number, schedule, origin, "ok", measurement | {"latency_source": "table"}, seconds=1.9)
    times = {"wall_p50_ms": 25 * ratio, "wall_p90_ms": 28 * ratio}
    measurement |= {
        "score_as_is": None,
        "num_epochs": 2.0,
        "train_seconds": 95.0 + number,
        "stock_latency_ratio": 1.09,
        "latency": {
            "candidate": {"ratio": ratio, "ratio_low": ratio - 0.012, "ratio_high": ratio + 0.015, **times},
            "stock": {"ratio": 1.09, "ratio_low": 1.07, "ratio_high": 1.1},
        },
        "flops_ratio": 0.9 * ratio,
        "hardware": HARDWARE,
    }
    return Trial(number, schedule, origin, "ok", measurement, seconds=120.0 + number)


def make_trials(number: int, is_timed: bool, seed: int = 0) -> list[Trial]:
    """Make up a journal: the full model, random schedules, then fast ones; every 17th fails."""
    generator = np.random.default_rng(seed)
    schedules = [s for s in SPACE.enumerate() if s != SPACE.full]
    near = [s for s in schedules if 0.4 < latency_of(s) < 0.8]
    chosen: dict[Schedule, str] = {SPACE.full: "reference"}
    while len(chosen) < number:
        is_random = len(chosen) < 12
        pool = schedules if is_random else near
        chosen.setdefault(pool[generator.integers(len(pool))], "random" if is_random else "model")
    trials = []
    for index, (schedule, origin) in enumerate(chosen.items()):
        trial = make_trial(index, schedule, origin, generator, is_timed)
        if index % 17 == 16:
            why = "FloatingPointError: loss is NaN, see /" + "home/someone/runs/x/log.txt"
            trial = replace(trial, status="failed", measurement={}, error=why)
        trials.append(trial)
    return trials


def write_journal(path: Path, trials: list[Trial]) -> Path:
    journal = Journal(path, {"dataset": "made up"})
    for trial in trials:
        journal.append(trial)
    return path


def fine_tuning_study(output: Path, number: int = 40, required: float = 0.95) -> SearchResult:
    """Leave what a search by fine-tuning leaves."""
    trials = make_trials(number, is_timed=True)
    write_journal(output / "trials.jsonl", trials)
    return summarise(trials, required)


def supernet_study(output: Path, number: int = 50, required: float = 0.95, winners: list[Trial] | None = None):
    """Leave what a search with a supernet leaves."""
    search = summarise(make_trials(number, is_timed=False), required)
    write_journal(output / "trials.jsonl", search.trials)
    feasible = [t for t in search.trials if search.is_feasible(t) and t is not search.reference]
    feasible.sort(key=lambda trial: trial.latency_ratio)
    generator = np.random.default_rng(1)
    if winners is None:
        queue = [SPACE.full, *(trial.schedule for trial in feasible[:3])]
        origins = ["reference", "winner", "winner", "winner"]
        winners = [make_trial(i, s, o, generator, True) for i, (s, o) in enumerate(zip(queue, origins, strict=False))]
    write_journal(output / "winners" / "trials.jsonl", winners)
    (output / "supernet").mkdir()
    (output / "supernet" / "supernet.json").write_text(json.dumps({"train_seconds": 1130.0}))
    (output / "latency_table.json").write_text(json.dumps({"build_seconds": 141.0}))
    rows, latency = [], {}
    for trial in [search.reference, *feasible[:10]]:
        direct = trial.latency_ratio * (1 + 0.02 * generator.normal())
        latency[trial.schedule.key] = {"ratio": direct, "ratio_low": direct - 0.008, "ratio_high": direct + 0.008}
        rows.append({**trial.schedule.config, "predicted": trial.latency_ratio, "direct": direct})
    drift = {"schedules": rows, "mean_relative_error": 0.017, "max_relative_error": 0.041, "has_drifted": False}
    (output / "direct_latency.json").write_text(json.dumps({"seconds": 88.0, "latency": latency, "drift": drift}))
    return summarise(winners, required)


@pytest.fixture(scope="module")
def one_shot(tmp_path_factory) -> tuple[Path, SearchResult]:
    output = tmp_path_factory.mktemp("one_shot")
    result = supernet_study(output)
    write_report(output, result, ABOUT)
    return output, result


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory) -> tuple[Path, SearchResult]:
    output = tmp_path_factory.mktemp("fine_tuned")
    result = fine_tuning_study(output)
    write_report(output, result, ABOUT)
    return output, result


class Page(HTMLParser):
    """What of a page matters here."""

    def __init__(self, folder: Path):
        super().__init__()
        self.links: list[str] = []
        self.tags: list[str] = []
        self.images: list[dict] = []
        self.text = ""
        self.raw = (folder / "search_report.html").read_text()
        self.feed(self.raw)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        attributes = dict(attrs)
        self.links += [attributes[name] for name in ("src", "href") if name in attributes]
        if tag == "img":
            self.images.append(attributes)

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("study", ["one_shot", "fine_tuned"])
def test_page_needs_no_other_file(study, request):
    output, _ = request.getfixturevalue(study)
    page = Page(output)
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert not re.search(r"url\(|@import|https?://", re.sub(r"base64,[^\"]*", "", page.raw))
    assert not {"script", "link", "iframe"} & set(page.tags)
    assert len(page.images) == len(list((output / "report").glob("*.png")))
    assert all(len(image["alt"]) > 40 for image in page.images)
    assert page.tags.count("table") == (3 if study == "one_shot" else 2)
    assert "th" in page.tags


@pytest.mark.parametrize(("study", "more"), [("one_shot", ["drift.png"]), ("fine_tuned", [])])
def test_pictures_show_something(study, more, request):
    from matplotlib.image import imread

    output, _ = request.getfixturevalue(study)
    assert sorted(path.name for path in (output / "report").iterdir()) == sorted(PICTURES + more)
    for path in (output / "report").iterdir():
        pixels = imread(path)
        assert pixels.shape[1] == 900 and pixels.std() > 0.05
        # nothing runs out of the picture
        assert (pixels[[0, -1]] == 1).all() and (pixels[:, [0, -1]] == 1).all(), path.name


@pytest.mark.parametrize("study", ["one_shot", "fine_tuned"])
def test_page_names_no_place_of_this_machine(study, request):
    output, _ = request.getfixturevalue(study)
    text = Page(output).text
    assert "loss is NaN, see path/to/log.txt" in text
    assert "/home/" not in text and str(output.parent) not in text
    assert not re.search(r"(?<![\w.])/(tmp|home|work|root|usr|var|private|Users)/", text)


def test_page_says_what_was_found_and_how(one_shot):
    output, result = one_shot
    page, best = Page(output), result.best
    assert (
        f"Feasible: {best.schedule.key} is {1 / best.latency_ratio:.2f} times as fast as the full model and keeps "
        f"{100 * best.score / result.reference.score:.1f} % of its accuracy"
    ) in page.text
    assert "of 50 trials kept the requirement" in page.text
    assert "a processor" in page.text and "float32" in page.text and "3,668" in page.text
    assert f"accuracy {result.reference.score:.3f}, after its own fine-tuning" in page.text
    assert "a call from Python" in page.text
    name = output.name
    assert f"redundancy-hf evaluate path/to/{name}/full path/to/{name}/best --required_performance 0.95" in page.text
    # the loss that is allowed is above the standard error, and so nothing is said about it
    assert "is smaller than the standard error" not in page.text


def test_page_says_that_nothing_is_feasible(tmp_path):
    generator = np.random.default_rng(0)
    slow_learner = replace(make_trial(1, Schedule((4, 4, 1, 1, 1, 1)), "winner", generator, True))
    full = make_trial(0, SPACE.full, "reference", generator, True)
    result = supernet_study(tmp_path, 20, 0.99, [full, slow_learner])
    write_report(tmp_path, result, ABOUT)
    text = Page(tmp_path).text
    assert "Not feasible: nothing faster than the full model kept 99 % of its accuracy" in text
    assert "Feasible:" not in text
    assert "is smaller than the standard error of one score" in text


def test_costs_add_up(one_shot, fine_tuned):
    from classformer_hf.search.page import Account

    output, result = one_shot
    costs = dict(Account(output, result, ABOUT).costs())
    trials = Journal(output / "trials.jsonl", {}, is_writer=False).trials
    winners = Journal(output / "winners" / "trials.jsonl", {}, is_writer=False).trials
    assert costs["supernet training"] == 1130.0 and costs["latency table"] == 141.0 and costs["direct timing"] == 88.0
    spent = sum(trial.seconds for trial in [*trials, *winners])
    assert sum(costs.values()) == pytest.approx(1130 + 141 + 88 + spent)
    output, result = fine_tuned
    costs = dict(Account(output, result, ABOUT).costs())
    assert sum(costs.values()) == pytest.approx(sum(trial.seconds for trial in result.trials))
    assert costs["fine-tuning"] > costs["validation, timing"] > 0 and costs["failed trials"] > 0


def test_reused_supernet_is_paid_for_earlier(tmp_path):
    from classformer_hf.search.page import Account

    result = supernet_study(tmp_path, 10)
    (tmp_path / "supernet" / "supernet.json").unlink()
    account = Account(tmp_path, result, ABOUT | {"supernet": {"train_seconds": 7.0}})
    assert account.costs()[0] == ("supernet training, earlier", 7.0)


def test_audit_marks_what_contradicts_monotonicity(tmp_path):
    from classformer_hf.search.page import Account, audit_trials

    generator = np.random.default_rng(0)
    schedules = [SPACE.full, Schedule((1, 1, 2, 1, 1, 1)), Schedule((1, 1, 2, 2, 1, 1)), Schedule((2, 1, 1, 1, 1, 1))]
    scores = [0.86, 0.80, 0.85, 0.70]
    trials = []
    for number, (schedule, score) in enumerate(zip(schedules, scores, strict=True)):
        trial = make_trial(number, schedule, "reference" if number == 0 else "model", generator, True)
        trials.append(replace(trial, measurement=trial.measurement | {"score": score}))
    audit = audit_trials(Account(tmp_path, summarise(trials, 0.9), ABOUT))
    assert audit.violations == [(schedules[2], schedules[1])]
    # three with the full model, 2 under 1, 3 under 1; at no layer but the last two is 2 longer than 3
    assert len(audit.pairs) == 5
    marked = audit.pairs.index(audit.violations[0])
    assert audit.halvings[marked] > 0 and audit.gains[marked] == pytest.approx(0.05 / 0.86 / np.hypot(0.011, 0.011))


def test_only_the_full_model(tmp_path):
    result = fine_tuning_study(tmp_path, 1)
    about = ABOUT | {"base_model": None}
    about.pop("input_tokens")
    write_report(tmp_path, result, about)
    page = Page(tmp_path)
    assert "Not feasible" in page.text and "The only trial" in page.text
    assert "--dataset_name" not in page.text
    assert len(page.images) == 4, "no pair to compare"


def test_bare_measurements_are_enough(tmp_path):
    """The least that an objective may return."""
    trials = [
        Trial(0, SPACE.full, "reference", "ok", {"score": 0.9, "latency_ratio": 1.0}),
        Trial(1, Schedule((2, 1, 1, 1, 1, 1)), "model", "ok", {"score": 0.89, "latency_ratio": 0.6}),
        Trial(2, Schedule((4, 1, 1, 1, 1, 1)), "model", "failed", error="broken"),
    ]
    write_journal(tmp_path / "trials.jsonl", trials)
    result = summarise(trials, 0.95)
    write_report(tmp_path, result, ABOUT)
    assert "Feasible: 2-1-1-1-1-1_eta0" in Page(tmp_path).text


def test_report_is_written_anew(tmp_path):
    result = fine_tuning_study(tmp_path, 2)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old.png").write_bytes(b"")
    write_report(tmp_path, result, ABOUT)
    assert not (tmp_path / "report" / "old.png").exists()


@pytest.fixture
def predicted() -> SearchResult:
    """Winners judged for another machine: their latency comes from its table."""
    generator = np.random.default_rng(0)
    trials = [
        make_trial(0, SPACE.full, "reference", generator, False),
        make_trial(1, POLICY, "winner", generator, False),
        Trial(2, Schedule((2, 1, 1, 1, 1, 1)), "winner", "failed", error="broken"),
    ]
    trials[1] = replace(trials[1], measurement=trials[1].measurement | {"score": 0.855, "hardware": HARDWARE})
    return summarise(trials, 0.95)


def test_summary_of_predicted_latency(predicted):
    data = summary(predicted, ABOUT)
    assert data["latency_source"] == "table"
    unknown = ["latency_ratio_quartiles", "latency_p50_milliseconds", "latency_p90_milliseconds", "flops_ratio"]
    unknown += ["speedup_schedule_only_quartiles", "speedup_against_stock", "speedup_against_stock_range"]
    assert [data[name] for name in unknown] == [None] * 7
    assert data["speedup_schedule_only"] == pytest.approx(1 / predicted.best.latency_ratio)
    assert [bucket["max_tokens"] for bucket in data["length_buckets"]] == [32, 64]
    assert data["length_buckets"][0]["gamma"] == [1, 1, 1, 2, 1, 1]
    json.dumps(data, allow_nan=False)


def test_summary_of_measured_latency(fine_tuned):
    _, result = fine_tuned
    data = summary(result, ABOUT)
    candidate = result.best.measurement["latency"]["candidate"]
    assert data["latency_source"] == "direct" and data["length_buckets"] == []
    assert data["latency_ratio_quartiles"] == [candidate["ratio_low"], candidate["ratio_high"]]
    assert data["speedup_against_stock"] == pytest.approx(1.09 / result.best.latency_ratio)
    low, high = data["speedup_against_stock_range"]
    assert low * candidate["ratio_high"] == pytest.approx(1.07)
    assert high * candidate["ratio_low"] == pytest.approx(1.1)
    assert data["full_standard_error"] == result.reference.measurement["standard_error"]


def test_table_shows_what_is_unknown(predicted):
    header, _, *rows = format_table(predicted).splitlines()
    full_row = next(row for row in rows if "reference" in row)
    assert full_row.split()[3:] == ["-", "0.860", "100.0", "1.000", "[-]", "1.00", "-"]
    assert len(full_row) == len(header)
    assert "failed: broken" in format_table(predicted)


def test_finding_in_words(fine_tuned, predicted):
    _, result = fine_tuned
    found = describe_finding(result, has_supernet=False)
    gamma = list(result.best.schedule.gamma)
    assert found.startswith(f"found: gamma {gamma}, eta {result.best.schedule.eta}: 0.") and found.endswith(" %")
    trials = [t for t in predicted.trials if t.schedule == SPACE.full]
    slower = make_trial(1, Schedule((2, 1, 1, 1, 1, 1)), "winner", np.random.default_rng(0), False)
    low = replace(slower, measurement=slower.measurement | {"score": 0.5})
    nothing = describe_finding(summarise([*trials, low], 0.95), has_supernet=True)
    assert nothing.startswith("found: nothing that is faster and keeps so much, so the result is the full model; ")
    assert f"the closest, {low.schedule.key}, is " in nothing and f"keeps {100 * 0.5 / 0.86:.1f} %" in nothing
    assert "--required_performance" in nothing and "--num_winners" in nothing and "gamma" not in nothing
    assert "closest" not in describe_finding(summarise(trials, 0.95), has_supernet=True)


def test_legend_names_the_weights_that_were_judged_as_they_are():
    assert "score of the supernet's weights" in " ".join(describe_table(has_supernet=True).split())
    assert "score of the checkpoint's weights" in " ".join(describe_table(has_supernet=False).split())


def test_record_of_predicted_latency(predicted):
    rows = json.loads(json.dumps(tabulate(predicted)))
    assert [row["latency_ratio"] is None for row in rows] == [False, False, True]
    assert rows[1]["latency_ratio_quartiles"] is None and rows[1]["speedup_against_stock"] is None


def test_card_of_a_length_policy(predicted, tmp_path):
    write_card(summary(predicted, ABOUT), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "`gamma = [1, 2, 1, 2, 1, 1]`, `eta = 2` for inputs longer than these:" in card
    assert "\n- at most 32 tokens: `gamma = [1, 1, 1, 2, 1, 1]`, `eta = 0`\n- at most 64 tokens: " in card
    assert "predicted by a latency table" in card and "faster than the stock model" not in card
    assert "None" not in card and "FLOPs" not in card


def test_card_cuts_texts_as_in_training(predicted, tmp_path):
    record = TaskRecord("text-classification", "mrpc", {"max_length": 96}, ["no", "yes"], {})
    for one, call in (
        (record, "truncation=True, max_length=96))\n```\n\nLonger texts were cut to 96 tokens in training, too.\n\n`"),
        (None, "truncation=True))\n```\n\n`"),
    ):
        write_card(summary(predicted, ABOUT), tmp_path, one)
        assert call in (tmp_path / "README.md").read_text()


def test_card_of_a_measured_schedule(fine_tuned, tmp_path):
    write_card(summary(fine_tuned[1], ABOUT), tmp_path)
    card = (tmp_path / "README.md").read_text()
    assert "quartiles" in card and "| FLOPs, relative | " in card and "faster than the stock model" in card
    assert "at most" not in card and "|\n| FLOPs" in card


def test_card_says_when_too_little_was_asked(fine_tuned, tmp_path):
    words = "**A model that learned nothing would come close to the score that was asked**"
    for floor, is_said in ((0.0, False), (0.99, True)):
        write_card(summary(fine_tuned[1], {**ABOUT, "majority_score": floor}), tmp_path)
        assert (words in (tmp_path / "README.md").read_text()) == is_said


def test_page_of_a_length_policy_for_another_machine(predicted, tmp_path):
    result = supernet_study(tmp_path, 10, winners=predicted.trials)
    (tmp_path / "direct_latency.json").unlink()
    write_report(tmp_path, result, ABOUT)
    text = Page(tmp_path).text
    assert "Feasible: a model with 3 schedules by input length is predicted to be" in text
    assert "at most 32 tokens: 1-1-1-2-1-1_eta0" in text and "longer inputs: 1-2-1-2-1-1_eta2" in text
    assert "comes from a table of another machine" in text


def make_model(folder: Path, content: bytes) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.safetensors").write_bytes(content)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.fixture
def write_best(fine_tuned, tmp_path):
    """Write a search's result folder with weights of some content."""
    study, result = fine_tuned
    (tmp_path / "table.json").write_text("{}")
    files = {
        "trials.jsonl": study / "trials.jsonl",
        "latency_table.json": tmp_path / "table.json",
        "direct_latency.json": tmp_path / "missing.json",
    }

    def write(content: bytes, about: dict = ABOUT) -> Path:
        model = make_model(tmp_path / "model", content)
        write_result_folder(result, model, tmp_path / "best", about, files)
        return tmp_path / "best"

    return write


def test_result_folder_takes_other_files(write_best):
    written = {path.name for path in write_best(b"weights").iterdir()}
    assert {"model.safetensors", "trials.jsonl", "search.json", "pareto.png", "README.md"} <= written
    assert "latency_table.json" in written and "direct_latency.json" not in written


def add_an_export(best: Path):
    (best / "onnx").mkdir()
    (best / "onnx" / "graph.onnx").write_bytes(b"graph")
    (best / "certificate.json").write_text('{"sentence": "kept"}')


def test_what_was_added_stays_beside_the_same_model(write_best, caplog):
    best = write_best(b"weights")
    add_an_export(best)
    weights = best / "model.safetensors"
    inode = weights.stat().st_ino
    write_best(b"weights", ABOUT | {"strategy": "tpe"})
    assert (best / "onnx" / "graph.onnx").read_bytes() == b"graph"
    assert json.loads((best / "certificate.json").read_text()) == {"sentence": "kept"}
    assert json.loads((best / "search.json").read_text())["strategy"] == "tpe", "the search's own files are renewed"
    assert weights.stat().st_ino == inode
    assert not caplog.messages and sorted(path.name for path in best.parent.glob("best*")) == ["best"]


def test_what_was_added_moves_aside_with_its_model(write_best, caplog):
    best = write_best(b"weights")
    for number, content in ((1, b"Weights"), (2, b"WEIGHTS")):
        before = (best / "model.safetensors").read_bytes()
        add_an_export(best)
        write_best(content)
        assert not (best / "onnx").exists() and not (best / "certificate.json").exists()
        assert (best / "model.safetensors").read_bytes() == content
        earlier = best.with_name(f"best-earlier-{number}")
        assert (earlier / "model.safetensors").read_bytes() == before
        assert (earlier / "onnx" / "graph.onnx").exists() and (earlier / "certificate.json").exists()
        assert "added to it since: certificate.json, onnx." in caplog.text and str(earlier) in caplog.text
        caplog.clear()
    write_best(b"other")
    assert not caplog.messages and not best.with_name("best-earlier-3").exists(), "nothing was added"


def test_scores_that_were_added_to_the_card_stay(write_best):
    best = write_best(b"weights")
    first = (best / "README.md").read_text()
    write_best(b"weights", ABOUT | {"dataset": "other"})
    assert (best / "README.md").read_text() != first, "the search's own card is renewed"
    add_results(best, [EvalResult("text-classification", "mrpc", "mrpc", "f1", 0.8, dataset_split="test")])
    scored = (best / "README.md").read_text()
    write_best(b"weights")
    assert (best / "README.md").read_text() == scored
    write_best(b"Weights")
    assert (best.with_name("best-earlier-1") / "README.md").read_text() == scored


def test_certificate_is_shown(tmp_path):
    result = fine_tuning_study(tmp_path, 3)
    (tmp_path / "best").mkdir()
    certificate = {"sentence": "The candidate keeps at least 95 %.", "dataset": "mrpc", "split": "test"}
    (tmp_path / "best" / "certificate.json").write_text(json.dumps(certificate))
    write_report(tmp_path, result, ABOUT)
    text = Page(tmp_path).text
    assert "Certificate (mrpc, test split): The candidate keeps at least 95 %." in text
    assert "evaluate_model.py" not in text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("cannot open /srv/a b/x.txt", "cannot open path/to/a b/x.txt"),
        (
            "[Errno 2] No such file: '/srv/runs/model.safetensors'",
            "[Errno 2] No such file: 'path/to/model.safetensors'",
        ),
        ("1/2 of runs/x and score 3 / 4", "1/2 of runs/x and score 3 / 4"),
        ("~/runs/x is full", "path/to/x is full"),
    ],
)
def test_absolute_paths_are_hidden(text, expected):
    from classformer_hf.search.page import hide_paths

    assert hide_paths(text) == expected
