r"""Compare Classformer with other ways to make the same classifier cheaper, on the same weights and training budget.

    python experiments/peers.py --model_name_or_path runs/sst2-full/seed-42 --dataset_name sst2 \
        --schedules 1-1-2-1-4-1_eta2 1-2-2-4-1-1_eta0 --num_train_epochs 1 --output_dir runs/peers-sst2 \
        --results_file results/peers_sst2.json

Every method starts from the same trained classifier without reductions and is trained for the same number of epochs,
with two operating points; so is that classifier itself, the reference. Then all are timed together, one text at a time,
and scored on validation and test split. Nothing is chosen by the test split: the operating points are fixed beforehand.
The same command resumes.
"""

import copy
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from classformer_hf import ClassformerConfig, ClassformerForSequenceClassification
from classformer_hf.baselines import check_plain, mark_front, operating_points
from classformer_hf.checkpoints import checkpoint_fingerprint, is_classifier, load_from_encoder, reconfigure
from classformer_hf.search import Schedule
from classformer_hf.training import ClassformerTrainingArguments, fine_tune
from redundancy_hf.command import check_settings, parse_arguments, run_command, write_record
from redundancy_hf.data import load_task, tokenize
from redundancy_hf.evaluation import predict
from redundancy_hf.folders import save_folder
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, majority_score, predictions_from_logits, standard_error
from redundancy_hf.readings import ReadModel, open_model, record_reading
from redundancy_hf.task import Task, TaskArguments
from redundancy_hf.timing import hardware_fingerprint, measure_latency, sample_inputs

logger = logging.getLogger(__name__)

EARLY_EXITS = ("entropy", "patience")


@dataclass
class CompareArguments:
    model_name_or_path: str = field(metadata={"help": "Folder of a trained Classformer without reductions."})
    schedules: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Classformer's own points, as a search names them: 1-2-1_eta0. Fewer factors than layers: only the "
            "first layers run."
        },
    )
    methods: list[str] = field(
        default_factory=list, metadata={"help": "Peers to compare with; all by default. Names as in the table."}
    )
    seeds: int = field(default=1, metadata={"help": "Trainings per point, with --seed, --seed + 1, ..."})
    num_inputs: int = field(default=48, metadata={"help": "Texts that are timed, at quantiles of the length."})
    rounds: int = field(default=20, metadata={"help": "Rounds of interleaved timing."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for all points."})


Builder = Callable[[ClassformerForSequenceClassification], torch.nn.Module]


def build_points(arguments: CompareArguments, model: ClassformerForSequenceClassification) -> dict:
    """Name every method and operating point, with what builds it from the full model."""

    def schedule(key: str) -> Builder:
        settings = Schedule.from_key(key).config
        settings["num_hidden_layers"] = len(settings["gamma"])
        ClassformerConfig(**settings)
        if len(settings["gamma"]) > model.config.num_hidden_layers:
            raise ValueError(f"the model has {model.config.num_hidden_layers} layers, got --schedules {key}.")
        return lambda model: reconfigure(model, **settings)

    points: dict[tuple[str, str], Builder] = {("full", ""): lambda model: model}
    points.update({("classformer", key): schedule(key) for key in arguments.schedules})
    peers = operating_points(model.config.num_hidden_layers)
    unknown = sorted(set(arguments.methods) - set(peers))
    if unknown:
        raise ValueError(f"--methods knows {', '.join(peers)}, got {', '.join(unknown)}.")
    for name in arguments.methods or peers:
        points.update({(name, setting): build for setting, build in peers[name].items()})
    return points


class Comparison:
    """What is compared, and where what is left of it."""

    def __init__(self, arguments: CompareArguments, task: Task, tokenizer: Any, training: ClassformerTrainingArguments):
        self.arguments, self.task, self.tokenizer, self.training = arguments, task, tokenizer, training
        self.output = Path(str(training.output_dir))
        set_seed(training.seed)  # of a head that is fresh
        self.full: Any = load_from_encoder(
            arguments.model_name_or_path, output_names=task.output_names, **task.head_config
        )
        check_plain(self.full)
        self.points = build_points(arguments, self.full)

    def load_full(self) -> ClassformerForSequenceClassification:
        return copy.deepcopy(self.full)

    def folder_of(self, name: str, setting: str, seed: int) -> Path:
        # an early exit is trained for all its thresholds at once
        setting = "" if name in EARLY_EXITS else setting
        return self.output / f"{name}_{setting}".replace(" ", "-").replace("/", "-").strip("_") / f"seed-{seed}"

    def open_models(self) -> list[ReadModel]:
        """Give the points that are model folders, with what they have read."""
        return [open_model(str(folder), folder) for folder in sorted(self.output.glob("*/seed-*/model"))]

    def train(self, name: str, setting: str, seed: int) -> dict[str, Any]:
        """Train a point and score it; a finished one is read."""
        folder = self.folder_of(name, setting, seed)
        row_file, weights = folder / f"row_{setting.replace(' ', '-').replace('/', '-')}.json", folder / "weights.pt"
        if row_file.exists():
            return json.loads(row_file.read_text())
        set_seed(seed)
        model = self.points[name, setting](self.load_full())
        row: dict[str, Any] = {"method": name, "setting": setting, "seed": seed}
        if weights.exists():
            model.load_state_dict(torch.load(weights, weights_only=True))
        else:
            arguments = copy.copy(self.training)
            arguments.output_dir, arguments.seed = str(folder / "checkpoints"), seed
            tuned = fine_tune(model, self.task, self.tokenizer, arguments, resume=True)  # type: ignore[arg-type]
            row["seconds"] = round(tuned.seconds, 1)
            folder.mkdir(parents=True, exist_ok=True)
            # a kill must not leave half of it
            torch.save(model.state_dict(), folder / "weights.tmp")
            (folder / "weights.tmp").replace(weights)
            if isinstance(model, ClassformerForSequenceClassification):
                save_folder(model, folder / "model", self.tokenizer, self.task.record)
                self.task.record.write(self.output)
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        for split in ("validation", "test"):
            references = np.asarray(self.task.splits[split]["labels"])
            logits = predict(model, self.task.splits[split], self.tokenizer)
            predictions = predictions_from_logits(self.task.problem_type, logits)
            row[f"{split}_score"] = compute_score(self.task.metric_name, predictions, references)
            row[f"{split}_standard_error"] = standard_error(self.task.metric_name, predictions, references)
        row_file.write_text(json.dumps(row) + "\n")
        return row

    def time(self, seed: int) -> dict[tuple[str, str], dict[str, Any]]:
        """Time all points together, each with its trained weights, because some choose by them.

        On texts of the test split, like the scores: validation texts may have other lengths.
        """
        models = {}
        for name, setting in self.points:
            folder = self.folder_of(name, setting, seed)
            model = self.points[name, setting](self.load_full())
            model.load_state_dict(torch.load(folder / "weights.pt", weights_only=True))
            models[f"{name} {setting}"] = model.eval()
        inputs = sample_inputs(self.task.splits["test"], self.arguments.num_inputs)
        rounds = self.arguments.rounds
        with tqdm(total=rounds + 2, desc="timing", unit="round", disable=self.training.disable_tqdm) as bar:
            found = measure_latency(models, inputs, "full ", rounds, 2, on_round=bar.update)
        return {point: asdict(found[f"{point[0]} {point[1]}"]) for point in self.points}


def main():
    arguments, task_arguments, training = parse_arguments(
        (CompareArguments, TaskArguments, ClassformerTrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    if arguments.seeds < 1:
        raise ValueError(f"--seeds must be at least 1, got {arguments.seeds}.")
    tokenizer = load_tokenizer(arguments.model_name_or_path)
    task = load_task(task_arguments)
    is_trained = is_classifier(arguments.model_name_or_path, task.num_labels)
    record = task.record.after(arguments.model_name_or_path, Path(str(training.output_dir)), is_trained=is_trained)
    task = tokenize(replace(task, record=record), tokenizer, task_arguments.max_length)
    comparison = Comparison(arguments, task, tokenizer, training)
    settings = {
        "model": checkpoint_fingerprint(arguments.model_name_or_path),
        "dataset": task.fingerprint,
        "recipe": training.describe_recipe(),
    }
    check_settings(comparison.output / "settings.json", settings, is_writer=True)
    seeds = range(training.seed, training.seed + arguments.seeds)
    jobs = [(name, setting, seed) for seed in seeds for name, setting in comparison.points]
    rows = []
    with tqdm(total=len(jobs), desc="training", unit="point", disable=training.disable_tqdm) as bar:
        for number, (name, setting, seed) in enumerate(jobs):
            rows.append(comparison.train(name, setting, seed))
            bar.update()
            logger.info(
                f"{number + 1} of {len(jobs)}: {name} {setting} seed {seed}: {task.metric_name} "
                f"{rows[-1]['validation_score']:.4f} (validation), {rows[-1]['test_score']:.4f} (test)"
            )
    record_reading(comparison.open_models(), task.record.rows["test"], dataset=task.name, split="test")
    latencies = comparison.time(training.seed)
    points = []
    for (name, setting), latency in latencies.items():
        own = [row for row in rows if (row["method"], row["setting"]) == (name, setting)]
        scores = [row["test_score"] for row in own]
        points.append(
            {
                "method": name,
                "setting": setting,
                "test_score": float(np.mean(scores)),
                "validation_score": float(np.mean([row["validation_score"] for row in own])),
                "test_scores": scores,
                "test_standard_error": math.sqrt(float(np.mean([row["test_standard_error"] ** 2 for row in own]))),
                **latency,
            }
        )
    majority = majority_score(task, "test")
    mark_front(points, majority)
    print_table(points, task)
    write_record(
        arguments.results_file,
        dataset=task.name,
        metric_name=task.metric_name,
        num_examples={name: len(split) for name, split in task.splits.items()},
        majority_score=majority,
        seeds=list(seeds),
        hardware=hardware_fingerprint(),
        points=points,
    )


def print_table(points: list[dict[str, Any]], task: Task):
    print(f"{task.name}: test {task.metric_name}, time relative to the full model")
    for point in sorted(points, key=lambda point: point["ratio"]):
        front = "front" if point["is_on_front"] else f"{point['below_front']:.4f} below"
        print(
            f"{point['ratio']:.3f} [{point['ratio_low']:.3f} {point['ratio_high']:.3f}]  {point['test_score']:.4f} "
            f"+- {point['test_standard_error']:.4f}  {front:14}  {point['method']} {point['setting']}"
        )


if __name__ == "__main__":
    run_command(main)
