"""The page `search_report.html`: what a search was asked, what it found, how, and what that does not say."""

import base64
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from redundancy_hf.command import describe_command
from redundancy_hf.record import FILE as TASK_FILE

from ..search import figures
from .constrained import SIGNIFICANT, SMALLEST_ERROR, MonotonicityAudit, audit_monotonicity, is_shorter
from .figures import latency_quartiles, latency_source, speedup_against_stock
from .journal import Journal, Trial
from .loop import SearchResult, observe, summarise
from .reference import describe_reference
from .space import Schedule, SearchSpace

TEMPLATE = Path(__file__).parent / "search_report.html"
EXAMPLE_LENGTH = 512  # tokens, as in thesis table 5.3, where the length of the texts is not told
NUM_REPORTED = 15  # trials in the table
VALIDATION = "a validation with weights that were trained once for all schedules (a supernet); its latency is looked up"
NUM_DRAWN = 3  # schedules beside the full model in the picture of lengths


@dataclass(frozen=True)
class Account:
    """What a report tells: the files of a finished search, read.

    Attributes:
        output: The folder of the search.
        result: What was judged in the end: the winners of a search with a supernet, else every trial.
        about: As in `write_report`.
    """

    output: Path
    result: SearchResult
    about: dict[str, Any]

    @property
    def all_trials(self) -> list[Trial]:
        """The trials of the search and, with a supernet, of its winners."""
        return [*self.search.trials, *(self.result.trials if self.has_supernet else [])]

    @cached_property
    def search(self) -> SearchResult:
        """Every trial of the search; with a supernet these are validations with its weights."""
        if not self.has_supernet:
            return self.result
        trials = Journal(self.output / "trials.jsonl", {}, is_writer=False).trials
        return summarise(trials, self.result.required_performance)

    @property
    def has_supernet(self) -> bool:
        return (self.output / "winners" / "trials.jsonl").exists()

    @property
    def is_feasible(self) -> bool:
        """Whether something faster than the full model kept the requirement."""
        best = self.result.best
        return best.schedule != self.result.reference.schedule and self.result.is_feasible(best)

    @property
    def metric_name(self) -> str:
        return self.result.reference.measurement.get("metric_name", "score")

    @property
    def finding(self) -> str:
        """What was found, in one sentence."""
        best, required = self.result.best, f"{100 * self.result.required_performance:g} %"
        if not self.is_feasible:
            return (
                f"Not feasible: nothing faster than the full model kept {required} of its {self.metric_name}, so the "
                "full model stays."
            )
        how = "is predicted to be" if latency_source(best) == "table" else "is"
        return (
            f"Feasible: {describe_schedule(best.schedule)} {how} {1 / best.latency_ratio:.2f} times as fast as the "
            f"full model and keeps {100 * self.result.performance(best):.1f} % of its {self.metric_name} "
            f"({best.score:.3f} against {self.result.reference.score:.3f}); {required} was asked."
        )

    @property
    def search_finding(self) -> str | None:
        """What was found with the supernet's weights, in one sentence; `None` without one."""
        if not self.has_supernet:
            return None
        kept = [trial for trial in self.search.trials if self.search.is_feasible(trial)]
        judged = len([trial for trial in self.result.trials if trial is not self.result.reference])
        return (
            f"With the supernet's weights {len(kept)} of {len(self.search.trials)} trials kept the requirement, the "
            f"full model among them; {judged} {'was' if judged == 1 else 'were'} then fine-tuned individually and "
            "judged, as was the full model."
        )

    @property
    def inputs(self) -> dict[str, int]:
        """Input lengths to draw, in tokens."""
        tokens = self.about.get("input_tokens")
        if tokens is None:
            return {"example input": EXAMPLE_LENGTH}
        return {"median input": tokens["median"], "longest input": tokens["longest"]}

    def read_json(self, name: str) -> Any:
        """Read a file of the search; `None` where there is none."""
        path = self.output / name
        return json.loads(path.read_text()) if path.exists() else None

    def schedules_to_draw(self) -> dict[str, Schedule]:
        """Name the chosen schedule, those that were judged or came next, and the full model."""
        trials = [trial for trial in self.result.trials if trial.is_ok and trial is not self.result.reference]
        if not self.has_supernet:
            trials = [trial for trial in trials if self.result.is_feasible(trial)]
        trials.sort(key=lambda trial: (trial is not self.result.best, trial.latency_ratio))
        named = {
            f"{'chosen' if trial is self.result.best else f'trial {trial.number}'}, "
            f"{1 / trial.latency_ratio:.2f}x, {100 * self.result.performance(trial):.1f} %": trial.schedule
            for trial in trials[:NUM_DRAWN]
        }
        return named | {"full model": self.result.reference.schedule}

    def costs(self) -> list[tuple[str, float]]:
        """List where the seconds went."""
        table = self.read_json("latency_table.json")
        costs = [("latency table", table["build_seconds"])] if table else []
        trained = sum(trial.measurement.get("train_seconds", 0.0) for trial in self.result.trials)
        failed = sum(trial.seconds for trial in self.all_trials if not trial.is_ok)
        rest = max(sum(trial.seconds for trial in self.result.trials if trial.is_ok) - trained, 0.0)
        if self.has_supernet:
            record = self.read_json("supernet/supernet.json")
            name = "supernet training" if record else "supernet training, earlier"
            record = record or self.about.get("supernet", {})
            direct = self.read_json("direct_latency.json") or {}
            validated = sum(trial.seconds for trial in self.search.trials if trial.is_ok)
            costs = [(name, record.get("train_seconds", 0.0)), *costs, ("trials: validation", validated)]
            costs += [("direct timing", direct.get("seconds", 0.0))]
            costs += [("winners: fine-tuning", trained), ("winners: validation, timing", rest)]
        else:
            costs += [("fine-tuning", trained), ("validation, timing", rest)]
        return [cost for cost in [*costs, ("failed trials", failed)] if cost[1] > 0]


def write_report(output: Path, result: SearchResult, about: dict[str, Any]) -> Path:
    """Write `search_report.html`, one file that needs no other, and its pictures into the folder `report`.

    Args:
        output: The folder of the search, with the files that its stages left.
        result: What was judged in the end: the winners of a search with a supernet, else every trial.
        about: What was searched on: dataset, checkpoint and their sizes. Its entry `input_tokens`, with "median" and
            "longest", says how long the texts are.

    Returns:
        The path of the report.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    account = Account(output, result, about)
    folder = output / "report"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    pictures = list(draw_pictures(account, folder))
    for shown in pictures:
        content = base64.b64encode((folder / shown["file"]).read_bytes()).decode()
        shown["source"] = f"data:image/png;base64,{content}"
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template(TEMPLATE.name).render(
        account=account,
        about=about,
        policy=describe_policy(result.best.schedule),
        facts=list_facts(account),
        tables=list_tables(account),
        failed=[
            (trial.number, trial.schedule.key, hide_paths(trial.error or ""))
            for trial in account.all_trials
            if not trial.is_ok
        ],
        pictures=pictures,
        certificate=account.read_json("best/certificate.json"),
        certificate_command=certificate_command(account),
        is_history_known=(account.read_json(TASK_FILE) or {}).get("rows_read_before", 0) is not None,
        doubts=list_doubts(account),
        command=describe_command(),
    )
    path = output / "search_report.html"
    path.write_text(text, encoding="utf-8")
    return path


def describe_schedule(schedule: Schedule) -> str:
    """Name a schedule in a sentence; one with length buckets is not what a reader wants to spell."""
    if not schedule.buckets:
        return schedule.key
    return f"a model with {len(schedule.buckets) + 1} schedules by input length"


def describe_policy(schedule: Schedule) -> list[tuple[str, str]]:
    """List inputs and schedules of a length policy; empty where there is one schedule for all."""
    if not schedule.buckets:
        return []
    shorter = [(f"at most {limit} tokens", single.key) for limit, single in schedule.buckets]
    return [*shorter, ("longer inputs", Schedule(schedule.gamma, schedule.eta).key)]


def hide_paths(text: str) -> str:
    """Leave of absolute paths only their last name: where files lie here says nothing elsewhere."""
    return re.sub(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>]+)+[/\\]([^\s/\\'\"<>]+)", r"path/to/\1", text)


def list_facts(account: Account) -> list[tuple[str, str]]:
    """List what the search was made with."""
    about, hardware = account.about, account.result.best.measurement.get("hardware") or {}
    full = account.result.reference
    cut = ", ".join(f"{count:,} {name}" for name, count in (about.get("truncated") or {}).items() if count)
    source = {"direct": "timed on this hardware, batch 1, medians of ratios in the same rounds"}
    source["table"] = "predicted for this hardware by its latency table, batch 1"
    num_failed = sum(not trial.is_ok for trial in account.search.trials)
    facts = [
        ("data set", about["dataset"]),
        ("checkpoint", about.get("base_model") or "a small one, trained for the embedded task"),
        ("training examples", f"{about['num_train_examples']:,}"),
        ("validation examples", f"{about['num_validation_examples']:,}"),
        ("truncated texts", cut or "none"),
        ("majority class", f"{account.metric_name} {about['majority_score']:.3f}"),
        ("full model", f"{account.metric_name} {full.score:.3f}, {describe_reference(full.measurement)}"),
        ("strategy", about.get("strategy", "")),
        ("a trial is", VALIDATION if account.has_supernet else "a fine-tuning of its own, then a timing"),
        ("trials", f"{len(account.search.trials)}{f', {num_failed} of them failed' if num_failed else ''}"),
        ("processor", hardware.get("device_name", "")),
        ("threads", str(hardware.get("threads", ""))),
        ("number format", hardware.get("dtype", "")),
        ("latency", source.get(latency_source(account.result.best) or "", "")),
    ]
    return [(name, value) for name, value in facts if value]


def list_tables(account: Account) -> list[dict[str, Any]]:
    """Put the judged winners and the best trials into tables of text: titles, rows, whether anything was timed."""
    tables = []
    if account.has_supernet:
        trials = sorted((t for t in account.result.trials if t.is_ok), key=lambda trial: trial.latency_ratio)
        rows = [_describe_trial(trial, account.result) for trial in trials]
        tables.append(_make_table("Judged after a fine-tuning of their own", rows))
    ranked = zip(account.search.trials, account.search.rewards, strict=True)
    best = sorted((pair for pair in ranked if pair[0].is_ok), key=lambda pair: -pair[1])[:NUM_REPORTED]
    rows = [_describe_trial(trial, account.search) for trial, _ in best]
    title = f"The {len(rows)} best trials" if len(rows) > 1 else "The only trial"
    return [*tables, _make_table(f"{title} with the supernet's weights" if account.has_supernet else title, rows)]


def _make_table(title: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    return {"title": title, "rows": rows, "is_timed": any(row["quartiles"] != "-" for row in rows)}


def _describe_trial(trial: Trial, result: SearchResult) -> dict[str, Any]:
    error, quartiles = trial.measurement.get("paired_standard_error"), latency_quartiles(trial)
    stock = speedup_against_stock(trial)
    return {
        "is_chosen": trial is result.best,
        "number": trial.number,
        "schedule": trial.schedule.key.replace("__", " "),
        "origin": trial.origin,
        "score": f"{trial.score:.3f}",
        "performance": f"{100 * result.performance(trial):.1f}" + (f" ± {100 * error:.1f}" if error else ""),
        "is_kept": "yes" if result.is_feasible(trial) else "no",
        "latency": f"{trial.latency_ratio:.3f}",
        "quartiles": "-" if quartiles is None else f"{quartiles[0]:.3f} to {quartiles[1]:.3f}",
        "speedup": f"{1 / trial.latency_ratio:.2f}",
        "speedup_stock": "-" if stock is None else f"{stock:.2f}",
    }


def certificate_command(account: Account) -> str:
    """Write the command that reads the test split once and certifies the result, or refuses to."""
    output = account.output.resolve()
    # where a folder outside the project lies says nothing elsewhere
    is_inside = output.is_relative_to(Path.cwd())
    shown = output.relative_to(Path.cwd()) if is_inside else Path("path/to", output.name)
    return describe_certification(shown, account.result.required_performance)


def describe_certification(output: Path, required_performance: float) -> str:
    """Write the command that certifies what a search has left in a folder."""
    models = [(output / name).as_posix() for name in ("full", "best")]
    flags = ["--required_performance", f"{required_performance:g}"]
    return shlex.join(["redundancy-hf", "evaluate", *models, *flags])


def list_doubts(account: Account) -> list[str]:
    """Say what the result does not say."""
    result, num = account.result, account.about["num_validation_examples"]
    full, required = result.reference, result.required_performance
    doubts = [
        f"The {num:,} validation examples that judged the schedules also chose among them, so the scores flatter the "
        "chosen one a little. How much of the full model's score it keeps on new texts is not shown here."
    ]
    error, allowed = full.measurement.get("standard_error"), (1 - required) * full.score
    if error and allowed < error:
        doubts.append(
            f"The loss that was allowed, {allowed:.3f}, is smaller than the standard error of one score, {error:.3f}: "
            "with so few examples, which schedules keep the requirement is partly luck."
        )
    if required * full.score <= account.about["majority_score"] + 2 * (error or 0):
        doubts.append("A model that learned nothing would come close to the score that was asked.")
    doubts.append(
        "Everything was trained with one seed; another one moves the scores. Error bars are one standard error of the "
        "examples, and do not contain the seed."
    )
    if latency_source(result.best) == "table":
        doubts.append("The latency comes from a table of another machine; nothing was timed there with whole models.")
    doubts.append(
        "Latency is that of single inputs (batch 1) on the hardware that is named here. Ratios carry over to similar "
        "machines, milliseconds do not; other text lengths change both."
    )
    if result.interrupted:
        doubts.append("The search was stopped by hand before its end; the same command goes on.")
    return doubts


def audit_trials(account: Account) -> tuple[MonotonicityAudit, list[tuple[float, float, bool]]]:
    """Compare every two trials of which one has no layer longer than the other has.

    Returns:
        The audit, and for each pair how many halvings shorter the one is (summed over the layers), how much better it
        scores in standard errors, and whether that is a violation.
    """
    search = account.search
    trials = [trial for trial in search.trials if trial.is_ok and not trial.schedule.buckets]
    observations = [observe(trial, search.reference, search.required_performance, "latency_ratio") for trial in trials]
    # without a paired error that of the score is the best guess
    errors = [
        t.measurement.get("standard_error", 0.0) / search.reference.score
        if o.standard_error is None
        else o.standard_error
        for o, t in zip(observations, trials, strict=True)
    ]
    observations = [replace(o, standard_error=error) for o, error in zip(observations, errors, strict=True)]
    lengths = list(account.inputs.values())
    space = SearchSpace(len(search.reference.schedule.gamma), max(*lengths, 2))
    schedules = [trial.schedule for trial in trials]
    features = space.log2_lengths(schedules, lengths)
    audit = audit_monotonicity(observations, dict(zip(schedules, features, strict=True)))
    performance = np.array([o.performance for o in observations])
    variance = np.maximum(errors, SMALLEST_ERROR) ** 2
    violations = set(audit.violations)
    pairs = []
    for shorter, longer in np.argwhere(is_shorter(features[:, None], features[None])):
        gain = (performance[shorter] - performance[longer]) / np.sqrt(variance[shorter] + variance[longer])
        halvings = float((features[longer] - features[shorter]).sum())
        pairs.append((halvings, float(gain), (schedules[shorter], schedules[longer]) in violations))
    return audit, pairs


def draw_pictures(account: Account, folder: Path) -> Iterator[dict[str, str]]:
    """Draw every picture that there is something for; gives title, file, caption and what it shows in words."""
    yield _draw_pareto(account, folder)
    yield _draw_progress(account, folder)
    yield _draw_lengths(account, folder)
    audit, pairs = audit_trials(account)
    if pairs:
        figures.draw_audit(folder / "monotonicity.png", pairs, SIGNIFICANT)
        counts = (
            f"{audit.num_violations} of {audit.num_pairs} comparable pairs ({100 * audit.rate:.1f} %) are violations: "
            f"the shorter schedule scores higher by more than {SIGNIFICANT:g} standard errors."
        )
        yield {
            "title": "Does less computation ever score better?",
            "file": "monotonicity.png",
            "alt": f"Differences in score of pairs of schedules in standard errors, against how much shorter. {counts}",
            "caption": f"A pair is comparable if one schedule has no layer longer than the other has. {counts} Pairs "
            "share trials, so they are not independent. Where a trial has no paired standard error, that of its score "
            "stands in.",
        }
    if costs := account.costs():
        figures.draw_costs(folder / "costs.png", costs)
        yield {
            "title": "Where the time went",
            "file": "costs.png",
            "alt": "Horizontal bars: " + ", ".join(f"{name} {seconds:,.0f} s" for name, seconds in costs) + ".",
            "caption": "Time of all workers together, as the search's files record them.",
        }
    record = account.read_json("direct_latency.json")
    if record and record["drift"]["schedules"]:
        figures.draw_drift(folder / "drift.png", record)
        mean, largest = (100 * record["drift"][f"{name}_relative_error"] for name in ("mean", "max"))
        verdict = (
            "above 5 %: build the table anew" if record["drift"]["has_drifted"] else "at most 5 %, as it should be"
        )
        yield {
            "title": "The latency table against direct timing",
            "file": "drift.png",
            "alt": f"Predicted against measured latency of {len(record['drift']['schedules'])} schedules.",
            "caption": f"The fastest candidates and the full model, timed side by side. Mean error {mean:.1f} % "
            f"({verdict}), largest {largest:.1f} %.",
        }


def _draw_pareto(account: Account, folder: Path) -> dict[str, str]:
    search = account.search if account.has_supernet else None
    figures.draw_pareto(folder / "pareto.png", account.result, account.about["majority_score"], search)
    marks = (
        "Circles are validations with the supernet's weights, their latency from the table; diamonds, the black square "
        "and the star were fine-tuned and judged. "
    )
    return {
        "title": "Score against latency",
        "file": "pareto.png",
        "alt": f"Share of the full model's score against relative latency of {len(account.all_trials)} trials with "
        f"the Pareto front, the requirement of {100 * account.result.required_performance:g} % and the majority "
        f"class. {account.finding}",
        "caption": f"{marks if account.has_supernet else ''}Further up and further left is better. Bars: quartiles of "
        "the latency and one standard error of the share, where known.",
    }


def _draw_progress(account: Account, folder: Path) -> dict[str, str]:
    search = account.search
    figures.draw_progress(folder / "progress.png", search)
    num_kept = sum(search.is_feasible(trial) for trial in search.trials)
    return {
        "title": "Trials over time",
        "file": "progress.png",
        "alt": f"Speed-up and reward of {len(search.trials)} trials by number with the best so far; {num_kept} kept "
        "the requirement.",
        "caption": "Reward (equation 5.4): the share of the score until it is enough, then also the speed-up. "
        f"{num_kept} of {len(search.trials)} trials kept the requirement, the full model among them.",
    }


def _draw_lengths(account: Account, folder: Path) -> dict[str, str]:
    schedules, inputs = account.schedules_to_draw(), account.inputs
    figures.draw_lengths(folder / "lengths.png", schedules, inputs)
    told = [
        f"{name}, {num_tokens} tokens: "
        + ", ".join(map(str, figures.layer_lengths(account.result.best.schedule, num_tokens)))
        for name, num_tokens in inputs.items()
    ]
    return {
        "title": "Tokens that leave each layer",
        "file": "lengths.png",
        "alt": f"Bars of the lengths per layer of {len(schedules)} schedules. Chosen schedule, {'; '.join(told)}.",
        "caption": "Light bars: the full model, whose last layer too computes only the position that is classified.",
    }
