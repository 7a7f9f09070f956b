"""The page `search_report.html`: what a search was asked, what it found, how, and what that does not say.

Its sentences stand in the template beside this file; here is what they are made of.
"""

import base64
import json
import re
import shlex
import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from redundancy_hf.command import describe_command
from redundancy_hf.record import TASK_FILE

from ..search import figures
from .constrained import SIGNIFICANT, MonotonicityAudit, audit_monotonicity
from .journal import Journal, Trial
from .loop import SearchResult, observe, summarise
from .reference import describe_reference
from .space import Schedule, SearchSpace

TEMPLATE = Path(__file__).parent / "search_report.html"
EXAMPLE_LENGTH = 512  # tokens, as in thesis table 5.3, where the length of the texts is not told
NUM_REPORTED = 15  # trials in the table
NUM_DRAWN = 3  # schedules beside the full model in the picture of lengths


@dataclass(frozen=True)
class Account:
    """What a report tells: the files of a finished search, read."""

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
    def num_kept(self) -> int:
        """Trials of the search that kept the requirement, the full model among them."""
        return sum(map(self.search.is_feasible, self.search.trials))

    @property
    def metric_name(self) -> str:
        return self.result.reference.measurement.get("metric_name", "score")

    @property
    def required(self) -> str:
        return f"{100 * self.result.required_performance:g} %"

    @property
    def inputs(self) -> dict[str, int]:
        """Input lengths to draw, in tokens."""
        tokens = self.about.get("input_tokens")
        if tokens is None:
            return {"example input": EXAMPLE_LENGTH}
        return {"median input": tokens["median"], "longest input": tokens["longest"]}

    @property
    def lengths(self) -> dict[str, list[int]]:
        """Tokens that leave each layer of the chosen schedule, by input."""
        best = self.result.best.schedule
        named = {f"{name}, {number} tokens": number for name, number in self.inputs.items()}
        return {name: figures.layer_lengths(best, number) for name, number in named.items()}

    @property
    def policy(self) -> list[tuple[str, str]]:
        """Inputs and schedules of a length policy; empty where there is one schedule for all."""
        best = self.result.best.schedule
        if not best.buckets:
            return []
        shorter = [(f"at most {limit} tokens", single.key) for limit, single in best.buckets]
        return [*shorter, ("longer inputs", Schedule(best.gamma, best.eta).key)]

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
        judged = [trial for trial in self.result.trials if trial.is_ok]
        trained = sum(trial.measurement.get("train_seconds", 0.0) for trial in judged)
        rest = max(sum(trial.seconds for trial in judged) - trained, 0.0)
        costs = {"latency table": (self.read_json("latency_table.json") or {}).get("build_seconds", 0.0)}
        if self.has_supernet:
            record = self.read_json("supernet/supernet.json")
            name = "supernet training" if record else "supernet training, earlier"
            costs = {name: (record or self.about.get("supernet", {})).get("train_seconds", 0.0), **costs}
            costs["trials: validation"] = sum(trial.seconds for trial in self.search.trials if trial.is_ok)
            costs["direct timing"] = (self.read_json("direct_latency.json") or {}).get("seconds", 0.0)
            costs |= {"winners: fine-tuning": trained, "winners: validation, timing": rest}
        else:
            costs |= {"fine-tuning": trained, "validation, timing": rest}
        costs["failed trials"] = sum(trial.seconds for trial in self.all_trials if not trial.is_ok)
        return [cost for cost in costs.items() if cost[1] > 0]


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
    audit = audit_trials(account)
    draw_pictures(account, audit, folder)
    pictures = {path.stem: base64.b64encode(path.read_bytes()).decode() for path in folder.iterdir()}
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["hide_paths"] = hide_paths
    text = environment.get_template(TEMPLATE.name).render(
        account=account,
        about=about,
        result=result,
        hardware=result.best.measurement.get("hardware") or {},
        reference=describe_reference(result.reference.measurement),
        error=result.reference.measurement.get("standard_error") or 0.0,
        audit=audit,
        significant=SIGNIFICANT,
        drift=(account.read_json("direct_latency.json") or {}).get("drift"),
        tables=list_tables(account),
        pictures=pictures,
        certificate=account.read_json("best/certificate.json"),
        certificate_command=certificate_command(account),
        is_history_known=(account.read_json(TASK_FILE) or {}).get("rows_read_before", 0) is not None,
        command=describe_command(),
    )
    path = output / "search_report.html"
    path.write_text(text, encoding="utf-8")
    return path


def draw_pictures(account: Account, audit: MonotonicityAudit, folder: Path):
    """Draw every picture that there is something for."""
    search, record = account.search, account.read_json("direct_latency.json")
    floor, behind = account.about["majority_score"], search if account.has_supernet else None
    figures.draw_pareto(folder / "pareto.png", account.result, floor, behind)
    figures.draw_progress(folder / "progress.png", search)
    figures.draw_lengths(folder / "lengths.png", account.schedules_to_draw(), account.inputs)
    if audit.pairs:
        figures.draw_audit(folder / "monotonicity.png", audit)
    if costs := account.costs():
        figures.draw_costs(folder / "costs.png", costs)
    if record and record["drift"]["schedules"]:
        figures.draw_drift(folder / "drift.png", record)


def hide_paths(text: str) -> str:
    """Leave of absolute paths only their last name: where files lie here says nothing elsewhere."""
    return re.sub(r"(?<![\w.:/])(?:~|[A-Za-z]:)?(?:[/\\][^\s/\\'\"<>]+)+[/\\]([^\s/\\'\"<>]+)", r"path/to/\1", text)


def list_tables(account: Account) -> list[dict[str, Any]]:
    """List the judged winners, fastest first, and the best trials, each with title and result."""
    tables = []
    if account.has_supernet:
        judged = sorted((t for t in account.result.trials if t.is_ok), key=lambda trial: trial.latency_ratio)
        tables.append(("Judged after a fine-tuning of their own", judged, account.result))
    ranked = sorted(zip(account.search.rewards, account.search.trials, strict=True), key=lambda pair: -pair[0])
    best = [trial for _, trial in ranked if trial.is_ok][:NUM_REPORTED]
    title = f"The {len(best)} best trials" if len(best) > 1 else "The only trial"
    tables.append((f"{title} with the supernet's weights" if account.has_supernet else title, best, account.search))
    return [{"title": title, "trials": trials, "result": result} for title, trials, result in tables]


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


def audit_trials(account: Account) -> MonotonicityAudit:
    """Compare every two trials of which one has no layer longer than the other has."""
    search = account.search
    trials = [trial for trial in search.trials if trial.is_ok and not trial.schedule.buckets]
    observations = []
    for trial in trials:
        observation = observe(trial, search.reference, search.required_performance, "latency_ratio")
        if observation.standard_error is None:
            # that of the score is the best guess
            error = trial.measurement.get("standard_error", 0.0) / search.reference.score
            observation = replace(observation, standard_error=error)
        observations.append(observation)
    lengths, schedules = list(account.inputs.values()), [trial.schedule for trial in trials]
    space = SearchSpace(len(search.reference.schedule.gamma), max(*lengths, 2))
    features = dict(zip(schedules, space.log2_lengths(schedules, lengths), strict=True))
    return audit_monotonicity(observations, features)
