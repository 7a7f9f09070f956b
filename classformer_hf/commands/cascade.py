r"""Choose a cascade: a fast schedule for every text, and a fuller one for those whose margin is small.

    redundancy-hf cascade --model_name_or_path runs/sst2/supernet \
        --required_performance 0.95 0.97 --output_dir runs/sst2-cascade --results_file cascade.json
    redundancy-hf cascade --model_name_or_path runs/mrpc/supernet \
        --required_performance 0.95 --output_dir runs/mrpc-cascade

The model should be one that was trained for many schedules, such as the supernet that a search leaves. On the
validation split this first chooses the fastest single schedule that keeps the share of the full model's score, then the
cascade with the shortest expected time that is at least as good. It reads the test split once to score, certify and
time both on texts drawn from it. OUTPUT_DIR/95 (97, ...) then holds a model folder with the
cascade in its config: any `pipeline("text-classification", folder, trust_remote_code=True)` runs it.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict
from tqdm import tqdm

from redundancy_hf.certificate import certify
from redundancy_hf.command import parse_call, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import predict
from redundancy_hf.folders import save_folder
from redundancy_hf.labels import SINGLE_LABEL
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score
from redundancy_hf.plan import Plan
from redundancy_hf.readings import choose_arguments, gather_evidence, open_model, record_reading
from redundancy_hf.task import Task, TaskArguments, TaskFlags
from redundancy_hf.timing import Target, measure_latency, sample_inputs

from ..checkpoints import load_from_encoder, reconfigure
from ..latency import LatencyTable
from ..search import Schedule, SearchSpace
from ..search.cascade import find_cascade, margins_of
from ..search.supernet import mean_flops, predict_schedules
from ..search.target import LatencyMeter, prepare_table


def choose_cascade(
    model_name_or_path: str,
    output_dir: str,
    required_performance: Sequence[float] = (0.95, 0.97, 0.99),
    num_schedules: int = 120,
    max_reduction: float = 16,
    latency_table: str | None = None,
    num_inputs: int = 200,
    rounds: int = 10,
    unseen: bool = False,
    read_again: bool = False,
    results_file: str | None = None,
    task: TaskFlags = TaskFlags(),
) -> dict[str, Any]:
    """Choose, certify and time cascades, and leave each as a model folder.

    Args:
        model_name_or_path: Folder of a Classformer that was trained for many schedules.
        output_dir: Folder for the latency table and the models.
        required_performance: Shares of the full model's score.
        num_schedules: Schedules to choose from, evenly spaced in operations.
        max_reduction: Cap of the space: longest input to shortest state.
        latency_table: latency_table.json of this machine; by default one is built, in 3 minutes.
        num_inputs: Texts of the test split that are timed.
        rounds: Timed rounds.
        unseen: Your word that a model without a task.json was not trained or chosen on the test split.
        read_again: Certify although the test split was read before; the certificate then needs more evidence.
        results_file: JSON file for the comparison.
        task: How the data are read, where that is not as the model's `task.json` says.

    Returns:
        The record: "dataset", "num_schedules", "hardware", ... and, of "rows", one for every required share.

    Raises:
        ValueError: A share is none, the task has no classes of which one is chosen, or no certificate can rest on its
            test split.
    """
    if any(not 0 < required <= 1 for required in required_performance):
        raise ValueError(f"`required_performance` is a share, 0 to 1, got {required_performance}.")
    source = open_model(model_name_or_path, Path(model_name_or_path))
    arguments = choose_arguments(TaskArguments, [source], vars(task))
    tokenizer = load_tokenizer(model_name_or_path)
    data = tokenize(load_task(arguments), tokenizer, arguments.max_length)
    if data.problem_type != SINGLE_LABEL:
        raise ValueError(f"a cascade needs classes of which one is chosen, and {data.name} is {data.problem_type}.")
    assert data.record is not None and data.record.rows is not None, "load_task makes it"
    test_rows = data.record.rows["test"]
    evidence = gather_evidence([source], test_rows, "test", unseen, read_again)
    data = replace(data, splits=DatasetDict({**data.splits, "test": data.splits["test"].select(evidence.kept)}))
    # each choice of each requirement is judged on these texts
    num_candidates = evidence.count_candidates(2 * len(required_performance))
    target = Target(rounds=rounds)
    with target.use_threads():
        chooser = Chooser(model_name_or_path, data, tokenizer, target, Path(output_dir))
        chooser.weigh(num_schedules, max_reduction, latency_table)
        rows = [
            chooser.report(required, num_candidates, evidence.sentences, num_inputs)
            for required in required_performance
        ]
    record_reading([source], test_rows[evidence.kept], True, dataset=data.name, split="test")
    return write_record(
        results_file,
        dataset=data.name,
        metric_name=data.metric_name,
        num_examples={name: len(split) for name, split in data.splits.items()},
        num_schedules=len(chooser.schedules),
        full_validation_score=chooser.scores[0],
        hardware=target.hardware,
        rows=rows,
    )


def main():
    for row in choose_cascade(**parse_call(choose_cascade, __doc__))["rows"]:
        print_row(row)


class Chooser:
    """Chooses among schedules by their predictions and times, and reports on other texts."""

    def __init__(self, source: str, task: Task, tokenizer: Any, target: Target, output: Path):
        self.source, self.task, self.tokenizer, self.target, self.output = source, task, tokenizer, target, output
        model = load_from_encoder(source, output_names=task.output_names, needs_head=True, **task.head_config)
        self.model: Any = reconfigure(model, length_buckets=None, cascade=None)

    def weigh(self, num_schedules: int, max_reduction: float, latency_table: str | None):
        """Predict the validation split with every schedule, and how long each of its texts takes."""
        config, split = self.model.config, self.task.splits["validation"]
        lengths = [len(ids) for ids in split["input_ids"]]
        self.schedules = list_schedules(config, lengths, num_schedules, max_reduction)
        table = self.prepare_table(latency_table)
        values, rows = np.unique(lengths, return_inverse=True)
        by_length = np.stack([table.predict_many(self.schedules, [value]) for value in values], axis=1)
        self.times = by_length[:, rows]  # (S, N)
        self.references = np.asarray(split["labels"])
        with tqdm(total=len(split), desc=f"{len(self.schedules)} schedules", unit="text") as bar:
            self.logits = predict_schedules(self.model, self.schedules, split, self.tokenizer, on_batch=bar.update)
        self.scores = [compute_score(self.task.metric_name, one.argmax(-1), self.references) for one in self.logits]

    def prepare_table(self, given: str | None) -> LatencyTable:
        """Load the latency table, or build and keep it."""
        read = [ids for name in ("validation", "test") for ids in self.task.splits[name]["input_ids"]]
        inputs = sample_inputs(self.task.splits["validation"])
        meter = LatencyMeter(self.schedules[0], lambda: self.model.config, inputs, self.target, Plan(has_bars=True))
        return prepare_table(meter, max(map(len, read)), self.output / "latency_table.json", given)

    def choose(self, required: float) -> dict[str, dict]:
        """Choose the single schedule and the cascade; gives settings of a config and what is expected."""
        feasible = [i for i, score in enumerate(self.scores) if score >= required * self.scores[0]]
        single = min(feasible, key=lambda i: self.times[i].mean())
        cascade = find_cascade(self.logits, self.times, self.references, self.task.metric_name, self.scores[single])
        assert cascade is not None, "the single schedule is one too"
        full_time = self.times[0].mean()
        fast, full = (self.schedules[i] for i in (cascade.fast, cascade.full))
        # where every text is sure, one schedule is all that is needed
        second = {**fast.config, "margin": cascade.margin} if cascade.margin > 0 else None
        return {
            "single": {
                "settings": {**self.schedules[single].config, "cascade": None},
                "validation_score": self.scores[single],
                "expected_ratio": float(self.times[single].mean() / full_time),
            },
            "cascade": {
                "settings": {**full.config, "cascade": second},
                "validation_score": cascade.score,
                "expected_ratio": cascade.time / full_time,
            },
        }

    def report(self, required: float, num_candidates: int, notes: str, num_inputs: int) -> dict[str, Any]:
        """Choose, then score, certify and time on the test split, and save the cascade.

        Args:
            required: Share of the full model's score.
            num_candidates: Choices that are certified on these texts.
            notes: What the certificates add.
            num_inputs: Texts to time.
        """
        row: dict[str, Any] = {"required_performance": required, "full": {}, **self.choose(required)}
        split, name = self.task.splits["test"], self.task.metric_name
        references = np.asarray(split["labels"])
        settings = {kind: row[kind]["settings"] for kind in ("single", "cascade")}
        settings = {"full": {**self.schedules[0].config, "cascade": None}, **settings}
        models = {kind: reconfigure(self.model, **one) for kind, one in settings.items()}
        found = {kind: predict(model, split, self.tokenizer).argmax(-1) for kind, model in models.items()}
        for kind, predictions in found.items():
            row[kind]["test_score"] = compute_score(name, predictions, references)
            if kind != "full":
                certificate = certify(
                    name, found["full"], predictions, references, required, num_candidates=num_candidates
                )
                row[kind]["certificate"] = {**asdict(certificate), "sentence": certificate.sentence + notes}
        cascade = settings["cascade"]["cascade"]
        row["cascade"]["classified_twice"] = self.share_classified_twice(cascade, split) if cascade else 0.0
        with tqdm(total=self.target.rounds + 1, desc="timing", unit="round") as bar:
            inputs = sample_inputs(split, num_inputs)
            timed = measure_latency(models, inputs, "single", self.target.rounds, 1, on_round=bar.update)
        for kind, latency in timed.items():
            row[kind]["latency_to_single"] = asdict(latency)
        self.save(models["cascade"], required)
        return row

    def share_classified_twice(self, cascade: dict[str, Any], split: Any) -> float:
        first = reconfigure(self.model, gamma=cascade["gamma"], eta=cascade["eta"], cascade=None)
        margins = margins_of(predict(first, split, self.tokenizer))
        return float((margins < cascade["margin"]).mean())

    def save(self, model: Any, required: float):
        """Write the cascade as a model folder."""
        assert self.task.record is not None, "load_task makes it"
        # what it is a choice from, and the searches that it belongs to
        record = self.task.record.after(self.source, self.output)
        save_folder(model, self.output / f"{100 * required:g}", self.tokenizer, record)
        record.write(self.output)


def list_schedules(config: Any, lengths: list[int], num_schedules: int, max_reduction: float) -> list[Schedule]:
    """Give the full model and schedules that are evenly spaced in operations."""
    space = SearchSpace(config.num_hidden_layers, max(lengths), (1, 2, 4, 8), (0, 2), True, 512, max_reduction)
    schedules = space.enumerate()
    order = np.argsort(mean_flops(config, schedules, lengths))
    kept = np.unique(np.linspace(0, len(order) - 1, num_schedules).round().astype(int))
    return [space.full, *(schedules[i] for i in order[kept] if schedules[i] != space.full)]


def print_row(row: dict):
    print(f"{100 * row['required_performance']:g} % of {row['full']['test_score']:.4f} (test):")
    for kind in ("single", "cascade"):
        part, latency = row[kind], row[kind]["latency_to_single"]
        print(
            f"  {kind:8} {part['test_score']:.4f}, time {latency['ratio']:.3f} [{latency['ratio_low']:.3f} "
            f"{latency['ratio_high']:.3f}] of the single schedule's, expected {part['expected_ratio']:.3f} of the full "
            f"model's, {part['settings']}"
        )
        print(f"           {part['certificate']['sentence']}")
    if row["cascade"]["settings"]["cascade"] is None:
        print("  no cascade is faster than the fastest single schedule")
    else:
        print(f"  {100 * row['cascade']['classified_twice']:.1f} % of the texts are classified twice")
