r"""Fine-tune what every pretraining objective left, on several tasks with several seeds (thesis table 5.6).

    redundancy-hf pretrain --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --dataset_name my/wikitext --gamma 2 1 2 1 1 1 --objectives first_k last_k gamma_th dense funnel distillation \
        --output_dir runs/pretraining
    python experiments/pretraining.py --model_name_or_path sentence-transformers/all-MiniLM-L6-v2 \
        --pretrained runs/pretraining --dataset_names stsb cola --seeds 2 --num_train_epochs 2 \
        --output_dir runs/pretraining-tuned --results_file results/pretraining.json

Compared are the checkpoint itself without reductions (full), with the schedule but no pretraining (none), and every
folder in --pretrained, also one of redundancy-hf multitask that is named multitask. A seed decides head, dropout and
order of the data. Scores are of the test split; only the number of epochs, fixed beforehand, could have been chosen by
it. The same command resumes.
"""

import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from frame import command_of, format_table, interval, name_command
from tuning import describe_task, fine_tune_all

from classformer_hf import ClassformerModel, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.pretraining import OBJECTIVES
from classformer_hf.training import ClassformerTrainingArguments
from redundancy_hf.command import write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.metrics import compute_score, resample_scores
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint
from redundancy_hf.training import list_seeds

NUM_RESAMPLES = 500
# the thesis' averages rise along it; the last is ours
ORDER = ("none", "last_k", "first_k", "dense", "funnel", "distillation")
# of the tasks that are at hand and, last, the average over eight of GLUE, in percent
THESIS_TASKS = ("cola", "qqp", "sst2", "mrpc", "rte", "stsb", "average")
THESIS_TABLE_5_6 = {
    "none": (6.0, 78.9, 85.6, 85.5, 65.7, 78.2, 69.3),
    "first_k": (7.1, 81.1, 85.9, 86.1, 65.6, 83.9, 71.2),
    "last_k": (3.1, 81.2, 87.4, 86.7, 64.3, 84.7, 70.9),
    "gamma_th": (0.0, 0.0, 50.9, 81.2, 52.7, -5.5, 33.2),
    "dense": (13.2, 82.0, 88.0, 87.7, 69.3, 83.6, 73.3),
    "funnel": (23.1, 81.8, 88.6, 88.1, 73.4, 83.6, 75.5),
}
NAMES = {"distillation": "distillation (ours)", "multitask": "several tasks"}


def read_pretrained(folder: Path, start: str) -> tuple[dict[str, dict[str, Any]], dict[str, Any]]:
    """Give what every objective's pretraining, from a checkpoint, reported, and the schedule of all.

    Raises:
        ValueError: None is finished, one began with another checkpoint, or has another schedule.
    """
    paths = {name: folder / name / "pretrain_results.json" for name in (*OBJECTIVES, "multitask")}
    rows = {name: json.loads(path.read_text()) for name, path in paths.items() if path.is_file()}
    if not rows:
        raise ValueError(f"--pretrained {folder} holds no finished objective; run redundancy-hf pretrain.")
    schedules = {}
    for name, row in rows.items():
        settings, config = (json.loads((folder / name / f"{file}.json").read_text()) for file in ("settings", "config"))
        if settings["checkpoint"] != checkpoint_fingerprint(start):
            raise ValueError(f"{folder / name} was not pretrained from {start}; give what it started from.")
        row["learning_rate"] = float(settings["recipe"]["learning_rate"])
        schedules[name] = {"gamma": config["gamma"], "eta": config["eta"]}
    first, *others = schedules
    if other := [name for name in others if schedules[name] != schedules[first]]:
        raise ValueError(f"{', '.join(other)} in {folder} has another schedule than {first}; compare like with like.")
    return rows, schedules[first]


def load_start(checkpoint: str, folder: Path | None, schedule: dict[str, Any], task: Task) -> Any:
    """Load what fine-tuning starts from; of a pretrained folder the encoder only, since heads start alike."""
    model: Any = load_from_encoder(checkpoint, **task.head_config, **schedule)
    if folder is not None:
        encoder: Any = ClassformerModel.from_pretrained(folder, add_pooling_layer=False)
        model.roberta.load_state_dict(encoder.state_dict())
    return model


def compare(task: Task, objective: str, reference: str, predictions: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """Give how far an objective is above another, in the mean over seeds, with a 95 % interval.

    The interval is over test examples, by the bootstrap, and pairs the same examples and seeds.
    """
    references = np.asarray(task.splits["test"]["labels"])
    own, other = (
        [compute_score(task.metric_name, one, references) for one in predictions[n]] for n in (objective, reference)
    )
    by_seed = np.subtract(own, other)
    models = [*predictions[objective], *predictions[reference]]
    resampled = resample_scores(task.metric_name, models, references, 0, NUM_RESAMPLES)
    means = resampled[: len(own)].mean(axis=0) - resampled[len(own) :].mean(axis=0)
    return {
        "objective": objective,
        "reference": reference,
        "dataset": task.name,
        "by_seed": by_seed.tolist(),
        "mean": float(by_seed.mean()),
        "interval": np.quantile(means, [0.025, 0.975]).tolist(),
    }


def list_comparisons(objectives: list[str]) -> list[tuple[str, str]]:
    """Pair all with none, and each with the one before it in the order of the thesis."""
    ordered = [name for name in ORDER if name in objectives]
    pairs = [(objective, "none") for objective in objectives if objective != "none"]
    return pairs + [pair for pair in zip(ordered[1:], ordered, strict=False) if pair not in pairs]


def run(
    model_name_or_path: str,
    pretrained: str,
    dataset_names: list[str],
    training: ClassformerTrainingArguments,
    max_length: int = 128,
    max_train_samples: int | None = None,
    seeds: int = 2,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Fine-tune and compare.

    Args:
        model_name_or_path: The checkpoint that pretraining started from.
        pretrained: Output folder of redundancy-hf pretrain.
        dataset_names: Tasks: GLUE names, folders, files or standard_library (embedded).
        training: The recipe.
        max_length: Longer texts are cut to so many tokens.
        max_train_samples: Train on at most so many examples.
        seeds: Fine-tunings of each, with --seed, --seed + 1, ...
        results_file: JSON file for the scores.
    """
    torch.set_num_threads(1)
    spent, schedule = read_pretrained(Path(pretrained), model_name_or_path)
    folders = {"full": None, "none": None, **{name: Path(pretrained) / name for name in spent}}
    variants, settings = {}, {}
    for name, folder in folders.items():
        own = {} if name == "full" else schedule
        variants[name] = lambda task, folder=folder, own=own: load_start(model_name_or_path, folder, own, task)
        fingerprint = None if folder is None else checkpoint_fingerprint(str(folder))
        settings[name] = {"pretrained": fingerprint, "schedule": schedule}
        settings[name]["checkpoint"] = checkpoint_fingerprint(model_name_or_path)
    tokenizer = load_tokenizer(model_name_or_path)
    tasks = load_tasks(dataset_names, tokenizer, max_length, max_train_samples)
    rows, predictions = [], {task.name: {name: [] for name in variants} for task in tasks}
    for name, folder, task, row in fine_tune_all(variants, tasks, tokenizer, training, seeds, settings):
        predictions[task.name][name].append(np.load(folder / "predictions.npy"))
        if task.metric_name == "f1":  # which rises with the share of positive predictions alone
            given = predictions[task.name][name][-1], task.splits["test"]["labels"]
            row["test_mcc"] = compute_score("matthews_correlation", *given)
        rows.append({"objective": name, **row})
    differences = [
        compare(task, *pair, predictions[task.name]) for task in tasks for pair in list_comparisons(list(variants))
    ]
    return write_record(
        results_file,
        model=Path(model_name_or_path).name,
        schedule=schedule,
        pretraining=spent,
        datasets={task.name: describe_task(task) for task in tasks},
        differences=differences,
        seeds=list(list_seeds(training.seed, seeds)),
        hardware=hardware_fingerprint(),
        rows=rows,
    )


def thesis_percent(objective: str, column: str) -> str:
    if objective not in THESIS_TABLE_5_6 or column not in THESIS_TASKS:
        return ""
    return f"{THESIS_TABLE_5_6[objective][THESIS_TASKS.index(column)]:g}"


def mean_score(record: dict, objective: str, dataset: str, what: str = "test_score") -> float:
    rows = [row for row in record["rows"] if (row["objective"], row["dataset"]) == (objective, dataset)]
    return 100 * statistics.mean(row[what] for row in rows)


def write_difference(record: dict, objective: str, reference: str, dataset: str) -> str:
    """Give how far an objective is above another, in points with the interval; empty where that was not compared."""
    for entry in record["differences"]:
        if (entry["objective"], entry["reference"], entry["dataset"]) == (objective, reference, dataset):
            return interval(*(100 * value for value in (entry["mean"], *entry["interval"])), digits=1)
    return ""


def write_score(record: dict, objective: str, dataset: str) -> str:
    above = write_difference(record, objective, "none", dataset)
    return f"{mean_score(record, objective, dataset):.1f}" + (f" ({above})" if above else "")


def list_extras(record: dict, dataset: str) -> dict[str, str]:
    """Say which scores beside the one on the test split there are, and what they are called."""
    row = next(row for row in record["rows"] if row["dataset"] == dataset)
    names = {"validation_score": "validation", "test_mcc": "Matthews correlation"}
    return {what: name for what, name in names.items() if what in row}


def table(record: dict) -> str:
    """What every objective costs and gives after fine-tuning, beside the thesis."""
    datasets, rows, header = record["datasets"], [], ["objective", "M tokens", "TFLOP", "rate", "loss"]
    for objective in ["full", "none", *record["pretraining"]]:
        cells = ["", "", "", ""]
        if cost := record["pretraining"].get(objective):
            cells = [f"{cost['tokens'] / 1e6:.2f}", f"{cost['training_flops'] / 1e12:.0f}"]
            cells += [f"{cost['learning_rate']:g}", f"{cost['loss_before']:.3g} to {cost['loss_after']:.3g}"]
        for name in datasets:
            extras = [f"{mean_score(record, objective, name, what):.1f}" for what in list_extras(record, name)]
            cells += [write_score(record, objective, name), *extras]
        thesis = [thesis_percent(objective, name) for name in (*datasets, "average")]
        rows.append([NAMES.get(objective, objective), *cells, *thesis])
    for name in datasets:
        header += [f"{name.upper()} {what}" for what in ("test", *list_extras(record, name).values())]
    header += [*(f"{name.upper()} thesis" for name in datasets), "thesis' average"]
    metrics = {row["dataset"]: row["metric_name"] for row in record["rows"]}
    tasks = ", ".join(
        f"{name.upper()} {metrics[name]} on the test split (n = {task['num_examples']['test']}, trained on "
        f"{task['num_examples']['train']})"
        for name, task in datasets.items()
    )
    majority = ", ".join(f"{name.upper()} {100 * task['majority_score']:.1f}" for name, task in datasets.items())
    note = (
        f"{record['model']}, gamma {record['schedule']['gamma']}, eta {record['schedule']['eta']}; {tasks}; the "
        f"majority class has {majority}; mean of seeds {', '.join(map(str, record['seeds']))}. In "
        "brackets: how far above `none`, with a 95 % interval over "
        "examples (bootstrap, paired; not over seeds). Rate: peak learning rate of pretraining. "
        "Loss: cross entropy on validation blocks; of distillation the "
        "mean squared difference of states there; of several tasks on train, first and last twentieth, relative to "
        "guessing. The thesis: RoBERTa-base, two reductions by 2, over 100 M tokens, development sets. "
        f"{record['hardware']['threads']} thread, {record['hardware']['device_name']}. {name_command(record)}"
    )
    return format_table(header, rows, note)


def order_table(record: dict) -> str:
    """Whether each objective is above the one before it in the order of the thesis.

    The intervals are over examples; what seeds do is told apart, by the standard deviation between them.
    """
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in record["differences"]:
        objective, reference = pair = entry["objective"], entry["reference"]
        if "full" not in pair:
            (low, high), seeds = entry["interval"], entry["by_seed"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not resolved"
            agree = sum((one > 0) == (entry["mean"] > 0) for one in seeds)
            cells = rows.setdefault(pair, [f"{NAMES.get(objective, objective)} - {reference}"])
            cells.append(write_difference(record, objective, reference, entry["dataset"]))
            cells.append(f"{verdict}, {agree} of {len(seeds)} seeds")
    for pair, cells in rows.items():
        here, there = (thesis_percent(name, "average") for name in pair)
        cells.append(f"{float(here) - float(there):+.1f}" if here and there else "")
    columns = [f"{name.upper()}, points" if i == 0 else "over examples" for name in record["datasets"] for i in (0, 1)]
    note = ""
    if len(record["seeds"]) > 1:
        deviations = ", ".join(write_deviation(record, name) for name in record["datasets"])
        note = f"Between seeds, pooled over the reduced models: {deviations}.\n"
    return format_table(["difference", *columns, "thesis' average"], rows.values(), note)


def write_deviation(record: dict, dataset: str) -> str:
    """Give the standard deviation between seeds, and what difference of means it lets tell apart, by a t-test."""
    from scipy import stats

    scores: dict[str, list[float]] = {}
    for row in record["rows"]:
        if row["dataset"] == dataset and row["objective"] != "full":
            scores.setdefault(row["objective"], []).append(100 * row["test_score"])
    num_seeds = len(record["seeds"])
    deviation = statistics.mean(map(statistics.variance, scores.values())) ** 0.5
    width = stats.t.ppf(0.975, len(scores) * (num_seeds - 1)) * deviation * (2 / num_seeds) ** 0.5
    return f"{dataset.upper()} a standard deviation of {deviation:.1f}, so that means differ from {width:.1f} points on"


def tokens_table(records: dict) -> str:
    """Scores by tokens of pretraining, and whether they reach none's, and half of what the reductions cost."""
    first = next(iter(records.values()))
    datasets = [name for name in first["datasets"] if all(name in record["datasets"] for record in records.values())]
    targets = {}
    for name in datasets:
        none, full = (mean_score(first, objective, name) for objective in ("none", "full"))
        targets |= {(name, "none's"): none, (name, "half way to full"): (none + full) / 2}
    nothing = [f"{mean_score(first, 'none', name):.1f}" for name in datasets]
    rows: list[list[str]] = [["none", "0", "0", *nothing, *[""] * len(targets)]]
    for objective in sorted({name for record in records.values() for name in record["pretraining"]}):
        runs = [record for record in records.values() if objective in record["pretraining"]]
        for record in (
            sorted(runs, key=lambda record: record["pretraining"][objective]["tokens"]) if len(runs) > 1 else ()
        ):
            cost = record["pretraining"][objective]
            about = [
                NAMES.get(objective, objective),
                f"{cost['tokens'] / 1e6:.2f}",
                f"{cost['training_flops'] / 1e12:.0f}",
            ]
            enough = [mean_score(record, objective, name) >= target for (name, _), target in targets.items()]
            verdicts = ["reached" if one else "missed" for one in enough]
            rows.append([*about, *(write_score(record, objective, name) for name in datasets), *verdicts])
    header = ["objective", "M tokens", "TFLOP", *(name.upper() for name in datasets)]
    return format_table(
        [*header, *(f"{name.upper()} {target:.1f}, {what}" for (name, what), target in targets.items())], rows
    )


def rates_table(records: dict) -> str:
    """STS-B's validation scores by the peak learning rate of pretraining."""
    first = next(iter(records.values()))
    found: dict[str, dict[float, str]] = {}
    for record in records.values():
        for objective, cost in record["pretraining"].items():
            score = mean_score(record, objective, "stsb", "validation_score") / 100
            found.setdefault(objective, {})[cost["learning_rate"]] = f"{score:.3f}"
    rates = sorted({rate for scores in found.values() for rate in scores})
    rows = [[NAMES.get(name, name), *(scores.get(rate, "") for rate in rates)] for name, scores in found.items()]
    none = mean_score(first, "none", "stsb", "validation_score") / 100
    note = f"STS-B's validation split, seed {', '.join(map(str, first['seeds']))}; none has {none:.3f}.\n"
    return format_table(["objective", *(f"{rate:g}" for rate in rates)], rows, note)


main = command_of(run, __doc__, show=order_table)
