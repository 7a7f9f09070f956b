r"""Choose a cascade: a fast schedule for every text, and a fuller one for those whose margin is small.

    redundancy-hf cascade --model_name_or_path runs/sst2/supernet \
        --required_performance 0.95 0.97 --output_dir runs/sst2-cascade --results_file cascade.json
    redundancy-hf cascade --model_name_or_path runs/mrpc/supernet \
        --required_performance 0.95 --output_dir runs/mrpc-cascade

The model should be one that was trained for many schedules, such as the supernet that a search leaves. On the
validation split the fastest single schedule is chosen that keeps the share of the full model's score, then the cascade
with the shortest expected time that is at least as good there. On the test split, read once, both are scored,
certified and timed beside each other on texts drawn from it. OUTPUT_DIR/95 (97, ...) then holds a model folder with the
cascade in its config: any `pipeline("text-classification", folder, trust_remote_code=True)` runs it.
"""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from redundancy_hf.certificate import certify
from redundancy_hf.command import parse_arguments, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import predict
from redundancy_hf.folders import save_folder
from redundancy_hf.labels import SINGLE_LABEL
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score
from redundancy_hf.readings import Evidence, choose_arguments, gather_evidence, open_model, record_reading
from redundancy_hf.record import make_flags
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import Target, hardware_fingerprint, measure_latency, sample_inputs

from ..checkpoints import load_from_encoder, reconfigure
from ..latency import LatencyTable, build_latency_table
from ..search import Schedule, SearchSpace
from ..search.cascade import choose_cascade, margins_of
from ..search.supernet import mean_flops, predict_schedules

TABLE_ROUNDS = 30


@dataclass
class CascadeArguments:
    model_name_or_path: str = field(metadata={"help": "Folder of a Classformer that was trained for many schedules."})
    output_dir: str = field(metadata={"help": "Folder for the latency table and the models."})
    required_performance: list[float] = field(
        default_factory=lambda: [0.95, 0.97, 0.99], metadata={"help": "Shares of the full model's score."}
    )
    num_schedules: int = field(default=120, metadata={"help": "Schedules to choose from, evenly spaced in operations."})
    max_reduction: float = field(default=16, metadata={"help": "Cap of the space: longest input to shortest state."})
    latency_table: str | None = field(
        default=None, metadata={"help": "latency_table.json of this machine; by default one is built, in 3 minutes."}
    )
    num_inputs: int = field(default=200, metadata={"help": "Texts of the test split that are timed."})
    rounds: int = field(default=10, metadata={"help": "Rounds of interleaved timing."})
    unseen: bool = field(
        default=False,
        metadata={"help": "Your word that a model without a task.json was not trained or chosen on the test split."},
    )
    read_again: bool = field(
        default=False, metadata={"help": "Certify although the test split was read before; takes more evidence."}
    )
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the comparison."})


def list_schedules(arguments: CascadeArguments, config: Any, lengths: list[int]) -> list[Schedule]:
    """Give the full model and schedules that are evenly spaced in operations."""
    space = SearchSpace(
        config.num_hidden_layers, max(lengths), (1, 2, 4, 8), (0, 2), True, 512, arguments.max_reduction
    )
    schedules = space.enumerate()
    order = np.argsort(mean_flops(config, schedules, lengths))
    kept = np.unique(np.linspace(0, len(order) - 1, arguments.num_schedules).round().astype(int))
    return [space.full, *(schedules[i] for i in order[kept] if schedules[i] != space.full)]


def prepare_table(arguments: CascadeArguments, config: Any, longest: int) -> LatencyTable:
    """Load the latency table, or build and keep it."""
    path = Path(arguments.latency_table or Path(arguments.output_dir) / "latency_table.json")
    is_ours = path.exists() and LatencyTable.load(path).describes_this_machine()
    if arguments.latency_table is None and not is_ours:
        with tqdm(total=1 + TABLE_ROUNDS, desc="latency table") as bar:
            build_latency_table(config, longest, Target(rounds=TABLE_ROUNDS), on_round=bar.update).save(path)
    table = LatencyTable.load(path)
    table.check_fits(config, longest)
    return table


class Chooser:
    """The predictions that a choice is made by, and the texts that it is reported on."""

    def __init__(self, arguments: CascadeArguments, task: Task, tokenizer: Any, evidence: Evidence):
        self.arguments, self.task, self.tokenizer, self.evidence = arguments, task, tokenizer, evidence
        self.model: Any = load_from_encoder(
            arguments.model_name_or_path, output_names=task.output_names, needs_head=True, **task.head_config
        )
        self.model.config.length_buckets = self.model.config.cascade = None
        split = task.splits["validation"]
        lengths = [len(ids) for ids in split["input_ids"]]
        longest = max(len(ids) for name in ("validation", "test") for ids in task.splits[name]["input_ids"])
        self.schedules = list_schedules(arguments, self.model.config, lengths)
        table = prepare_table(arguments, self.model.config, longest)
        values, rows = np.unique(lengths, return_inverse=True)
        by_length = np.stack([table.predict_many(self.schedules, [value]) for value in values], axis=1)
        self.times = by_length[:, rows]  # (S, N)
        self.references = np.asarray(split["labels"])
        with tqdm(total=len(split), desc=f"{len(self.schedules)} schedules", unit="text") as bar:
            self.logits = predict_schedules(self.model, self.schedules, split, tokenizer, on_batch=bar.update)
        self.scores = [compute_score(task.metric_name, one.argmax(-1), self.references) for one in self.logits]

    def choose(self, required: float) -> dict[str, dict]:
        """Choose the single schedule and the cascade; gives settings of a config and what is expected."""
        feasible = [i for i, score in enumerate(self.scores) if score >= required * self.scores[0]]
        single = min(feasible, key=lambda i: self.times[i].mean())
        cascade = choose_cascade(self.logits, self.times, self.references, self.task.metric_name, self.scores[single])
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

    def report(self, required: float) -> dict:
        """Choose, then score, certify and time on the test split."""
        row: dict[str, Any] = {"required_performance": required, **self.choose(required)}
        split, name = self.task.splits["test"], self.task.metric_name
        references = np.asarray(split["labels"])
        models = {"full": reconfigure(self.model, **self.schedules[0].config)}
        full = predict(models["full"], split, self.tokenizer).argmax(-1)
        row["full"] = {"test_score": compute_score(name, full, references)}
        for kind in ("single", "cascade"):
            models[kind] = reconfigure(self.model, **row[kind]["settings"])
            found = predict(models[kind], split, self.tokenizer)
            row[kind]["test_score"] = compute_score(name, found.argmax(-1), references)
            # each choice of each requirement is judged on these texts
            certificate = certify(
                name,
                full,
                found.argmax(-1),
                references,
                required,
                num_candidates=self.evidence.count_candidates(2 * len(self.arguments.required_performance)),
            )
            sentence = certificate.sentence + self.evidence.sentences
            row[kind]["certificate"] = {**asdict(certificate), "sentence": sentence}
        twice = self.share_classified_twice(models["cascade"], split) if row["cascade"]["settings"]["cascade"] else 0.0
        row["cascade"]["classified_twice"] = twice
        inputs, rounds = sample_inputs(split, self.arguments.num_inputs), self.arguments.rounds
        with tqdm(total=rounds + 1, desc="timing", unit="round") as bar:
            timed = measure_latency(models, inputs, "single", rounds, 1, on_round=bar.update)
        for kind, latency in timed.items():
            row[kind]["latency_to_single"] = asdict(latency)
        self.save(models["cascade"], required)
        return row

    def share_classified_twice(self, cascade: Any, split: Any) -> float:
        first = {name: cascade.config.cascade[name] for name in ("gamma", "eta")}
        margins = margins_of(predict(reconfigure(self.model, **first), split, self.tokenizer))
        return float((margins < cascade.config.cascade["margin"]).mean())

    def save(self, model: Any, required: float):
        """Write the cascade as a model folder."""
        folder = Path(self.arguments.output_dir) / f"{100 * required:g}"
        record = self.task.record
        assert record is not None, "load_task makes it"
        # what it is a choice from, and the searches that it belongs to
        record = record.after(self.arguments.model_name_or_path, Path(self.arguments.output_dir))
        save_folder(model, folder, self.tokenizer, record)
        record.write(folder.parent)


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


def main():
    arguments, flags = parse_arguments((CascadeArguments, make_flags(TaskArguments)), __doc__)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if any(not 0 < required <= 1 for required in arguments.required_performance):
        raise ValueError(f"--required_performance is a share, 0 to 1, got {arguments.required_performance}.")
    source = open_model(arguments.model_name_or_path, Path(arguments.model_name_or_path))
    task_arguments = choose_arguments(TaskArguments, [source], vars(flags))
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    task = tokenize(load_task(task_arguments), tokenizer, task_arguments.max_length)
    if task.problem_type != SINGLE_LABEL:
        raise ValueError(f"a cascade needs classes of which one is chosen, and {task.name} is {task.problem_type}.")
    assert task.record is not None and task.record.rows is not None, "load_task makes it"
    test_rows = task.record.rows["test"]
    evidence = gather_evidence([source], test_rows, "test", arguments.unseen, arguments.read_again)
    task.splits["test"] = task.splits["test"].select(evidence.kept)
    chooser = Chooser(arguments, task, tokenizer, evidence)
    rows = [chooser.report(required) for required in arguments.required_performance]
    record_reading([source], test_rows[evidence.kept], True, dataset=task.name, split="test")
    for row in rows:
        print_row(row)
    write_record(
        arguments.results_file,
        dataset=task.name,
        metric_name=task.metric_name,
        num_examples={name: len(split) for name, split in task.splits.items()},
        num_schedules=len(chooser.schedules),
        full_validation_score=chooser.scores[0],
        hardware=hardware_fingerprint(),
        rows=rows,
    )
