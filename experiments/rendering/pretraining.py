"""Views of pretraining for shortened sequences."""

import statistics

from frame import format_table, interval

# the tasks that are at hand and, last, the average over eight of GLUE, in percent
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


def thesis_percent(objective: str, column: str) -> str:
    """Give a cell of table 5.6, empty where the thesis has none."""
    if objective not in THESIS_TABLE_5_6 or column not in THESIS_TASKS:
        return ""
    return f"{THESIS_TABLE_5_6[objective][THESIS_TASKS.index(column)]:g}"


def mean_score(record: dict, objective: str, dataset: str, what: str = "test_score") -> float:
    """Give the mean over seeds, in percent."""
    rows = [row for row in record["rows"] if (row["objective"], row["dataset"]) == (objective, dataset)]
    return 100 * statistics.mean(row[what] for row in rows)


def find_difference(record: dict, objective: str, reference: str, dataset: str) -> dict | None:
    """Find how far an objective is above another, where that was compared."""
    wanted = {"objective": objective, "reference": reference, "dataset": dataset}
    return next((entry for entry in record["differences"] if wanted.items() <= entry.items()), None)


def difference_cell(entry: dict) -> str:
    """Give a difference in points with its interval."""
    return interval(*(100 * value for value in (entry["mean"], *entry["interval"])), digits=1)


def score_cell(record: dict, objective: str, dataset: str) -> str:
    """Give a score and how far it is above no pretraining."""
    score = f"{mean_score(record, objective, dataset):.1f}"
    above = find_difference(record, objective, "none", dataset)
    return f"{score} ({difference_cell(above)})" if above else score


def score_cells(record: dict, objective: str, dataset: str) -> list[str]:
    """Give the score on the test split, on the validation split, and the correlation beside an F1."""
    cells = [score_cell(record, objective, dataset)]
    cells += [f"{mean_score(record, objective, dataset, what):.1f}" for what in extra_scores(record, dataset)]
    return cells


def extra_scores(record: dict, dataset: str) -> dict[str, str]:
    """Say which scores beside the one on the test split there are, and what they are called."""
    row = next(row for row in record["rows"] if row["dataset"] == dataset)
    names = {"validation_score": "validation", "test_mcc": "Matthews correlation"}
    return {what: name for what, name in names.items() if what in row}


def pretraining_table(record: dict) -> str:
    """What every objective costs and gives after fine-tuning, beside the thesis."""
    datasets, spent = record["datasets"], record["pretraining"]
    rows = []
    for objective in ["full", "none", *spent]:
        cost = spent.get(objective)
        rows.append(
            [
                NAMES.get(objective, objective),
                f"{cost['tokens'] / 1e6:.2f}" if cost else "",
                f"{cost['training_flops'] / 1e12:.0f}" if cost else "",
                f"{cost['learning_rate']:g}" if cost else "",
                f"{cost['loss_before']:.3g} to {cost['loss_after']:.3g}" if cost else "",
                *(cell for name in datasets for cell in score_cells(record, objective, name)),
                *(thesis_percent(objective, name) for name in (*datasets, "average")),
            ]
        )
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
        f"{record['hardware']['threads']} thread, {record['hardware']['device_name']}. Command: "
        f"`{record['command']}`\n"
    )
    header = ["objective", "M tokens", "TFLOP", "rate", "loss"]
    for name in datasets:
        header += [f"{name.upper()} test", *(f"{name.upper()} {what}" for what in extra_scores(record, name).values())]
    header += [*(f"{name.upper()} thesis" for name in datasets), "thesis' average"]
    return format_table(header, rows) + "\n" + note


def order_table(record: dict) -> str:
    """Whether each objective is above the one before it in the order of the thesis.

    The intervals are over examples; what seeds do is told apart, by the standard deviation between them.
    """
    pairs = dict.fromkeys((entry["objective"], entry["reference"]) for entry in record["differences"])
    rows = []
    for objective, reference in pairs:
        if "full" in (objective, reference):
            continue
        cells = [f"{NAMES.get(objective, objective)} - {reference}"]
        for dataset in record["datasets"]:
            entry = find_difference(record, objective, reference, dataset)
            assert entry is not None
            low, high = entry["interval"]
            verdict = "above" if low > 0 else "below" if high < 0 else "not resolved"
            agree = sum((one > 0) == (entry["mean"] > 0) for one in entry["by_seed"])
            cells += [difference_cell(entry), f"{verdict}, {agree} of {len(entry['by_seed'])} seeds"]
        here, there = (thesis_percent(name, "average") for name in (objective, reference))
        cells.append(f"{float(here) - float(there):+.1f}" if here and there else "")
        rows.append(cells)
    columns = [cell for name in record["datasets"] for cell in (f"{name.upper()}, points", "over examples")]
    text = format_table(["difference", *columns, "thesis' average"], rows)
    if len(record["seeds"]) < 2:
        return text
    deviations = ", ".join(seed_deviation(record, name) for name in record["datasets"])
    return text + f"\nBetween seeds, pooled over the reduced models: {deviations}.\n"


def seed_deviation(record: dict, dataset: str) -> str:
    """Give the standard deviation between seeds, and what difference of means it lets tell apart, by a t-test."""
    from scipy import stats

    scores: dict[str, list[float]] = {}
    for row in record["rows"]:
        if row["dataset"] == dataset and row["objective"] != "full":
            scores.setdefault(row["objective"], []).append(100 * row["test_score"])
    seeds = len(record["seeds"])
    deviation = statistics.mean(statistics.variance(values) for values in scores.values()) ** 0.5
    width = stats.t.ppf(0.975, len(scores) * (seeds - 1)) * deviation * (2 / seeds) ** 0.5
    return f"{dataset.upper()} a standard deviation of {deviation:.1f}, so that means differ from {width:.1f} points on"


def tokens_table(records: dict) -> str:
    """Scores by tokens of pretraining, and whether they reach none's, and half of what the reductions cost."""
    first = next(iter(records.values()))
    datasets = [name for name in first["datasets"] if all(name in record["datasets"] for record in records.values())]
    budgets: dict[str, list[tuple[int, dict]]] = {}
    for record in records.values():
        for objective, cost in record["pretraining"].items():
            budgets.setdefault(objective, []).append((cost["tokens"], record))
    targets = {}
    for name in datasets:
        none, full = (mean_score(first, objective, name) for objective in ("none", "full"))
        targets |= {(name, "none's"): none, (name, "half way to full"): (none + full) / 2}
    lines = [
        ["none", "0", "0", *(f"{mean_score(first, 'none', name):.1f}" for name in datasets), *("" for _ in targets)]
    ]
    for objective, runs in sorted(budgets.items()):
        if len(runs) == 1:
            continue
        runs.sort(key=lambda run: run[0])
        for tokens, record in runs:
            enough = [
                "reached" if mean_score(record, objective, name) >= target else "missed"
                for (name, _), target in targets.items()
            ]
            lines.append(
                [
                    NAMES.get(objective, objective),
                    f"{tokens / 1e6:.2f}",
                    f"{record['pretraining'][objective]['training_flops'] / 1e12:.0f}",
                    *(score_cell(record, objective, name) for name in datasets),
                    *enough,
                ]
            )
    header = ["objective", "M tokens", "TFLOP", *(name.upper() for name in datasets)]
    header += [f"{name.upper()} {target:.1f}, {what}" for (name, what), target in targets.items()]
    return format_table(header, lines)


def rates_table(records: dict) -> str:
    """STS-B's validation scores by the peak learning rate of pretraining."""
    first = next(iter(records.values()))
    found: dict[str, dict[float, float]] = {}
    for record in records.values():
        for objective, cost in record["pretraining"].items():
            found.setdefault(objective, {})[cost["learning_rate"]] = (
                mean_score(record, objective, "stsb", "validation_score") / 100
            )
    rates = sorted({rate for scores in found.values() for rate in scores})
    lines = [
        [NAMES.get(objective, objective), *(f"{scores[rate]:.3f}" if rate in scores else "" for rate in rates)]
        for objective, scores in found.items()
    ]
    seeds = ", ".join(map(str, first["seeds"]))
    none = mean_score(first, "none", "stsb", "validation_score") / 100
    note = f"STS-B's validation split, seed {seeds}; none has {none:.3f}.\n"
    return format_table(["objective", *(f"{rate:g}" for rate in rates)], lines) + "\n" + note
