"""Views of pretraining for shortened sequences."""

import statistics

from .tables import interval, table

# averages over eight GLUE tasks, and the two columns that are measured here, in percent
THESIS_TABLE_5_6 = {
    "none": {"average": 69.3, "cola": 6.0, "stsb": 78.2},
    "first_k": {"average": 71.2, "cola": 7.1, "stsb": 83.9},
    "last_k": {"average": 70.9, "cola": 3.1, "stsb": 84.7},
    "gamma_th": {"average": 33.2, "cola": 0.0, "stsb": -5.5},
    "dense": {"average": 73.3, "cola": 13.2, "stsb": 83.6},
    "funnel": {"average": 75.5, "cola": 23.1, "stsb": 83.6},
}
NAMES = {"distillation": "distillation (ours)", "multitask": "several tasks"}


def mean_score(record: dict, objective: str, dataset: str) -> float:
    """Give the mean test score over seeds, in percent."""
    rows = [row for row in record["rows"] if (row["objective"], row["dataset"]) == (objective, dataset)]
    return 100 * statistics.mean(row["test_score"] for row in rows)


def score_cell(record: dict, objective: str, dataset: str) -> str:
    """Give a score and how far it is above no pretraining."""
    score = f"{mean_score(record, objective, dataset):.1f}"
    above = {(entry["objective"], entry["dataset"]): entry for entry in record["above_none"]}.get((objective, dataset))
    if above is None:
        return score
    return f"{score} ({interval(*(100 * value for value in (above['mean'], *above['interval'])), digits=1)})"


def pretraining_table(record: dict) -> str:
    """What every objective costs and gives after fine-tuning, beside the thesis."""
    datasets, spent = record["datasets"], record["pretraining"]
    rows = []
    for objective in ["full", "none", *spent]:
        cost, thesis = spent.get(objective), THESIS_TABLE_5_6.get(objective, {})
        loss = f"{cost['loss_before']:.2f} to {cost['loss_after']:.2f}" if cost else ""
        rows.append(
            [
                NAMES.get(objective, objective),
                f"{cost['tokens'] / 1e6:.2f}" if cost else "",
                f"{cost['training_flops'] / 1e12:.0f}" if cost else "",
                loss,
                *(score_cell(record, objective, name) for name in datasets),
                *(f"{thesis[name]:g}" if thesis else "" for name in datasets),
                f"{thesis['average']:g}" if thesis else "",
            ]
        )
    metrics = {row["dataset"]: row["metric_name"] for row in record["rows"]}
    tasks = ", ".join(
        f"{name.upper()} {metrics[name]} on the test split (n = {task['num_examples']['test']}, trained on "
        f"{task['num_examples']['train']})"
        for name, task in datasets.items()
    )
    note = (
        f"all-MiniLM-L6-v2, gamma {record['schedule']['gamma']}, eta {record['schedule']['eta']}; {tasks}; mean of "
        f"seeds {', '.join(map(str, record['seeds']))}. In brackets: how far above `none`, with a 95 % interval over "
        "examples (bootstrap, paired; not over seeds). Loss on validation blocks, for several tasks on train, relative "
        f"to guessing. {record['hardware']['threads']} thread, {record['hardware']['device_name']}. Command: "
        f"`{record['command']}`\n"
    )
    header = ["objective", "M tokens", "TFLOP", "loss", *(f"{name.upper()} here" for name in datasets)]
    header += [*(f"{name.upper()} thesis" for name in datasets), "thesis' average"]
    return table(header, rows) + "\n" + note


def tokens_table(records: dict) -> str:
    """Scores by tokens of pretraining."""
    rows = []
    for record in records.values():
        for objective, cost in record["pretraining"].items():
            scores = [score_cell(record, objective, name) for name in record["datasets"]]
            rows.append((objective, cost["tokens"], f"{cost['training_flops'] / 1e12:.0f}", scores))
    repeated = {objective for objective, *_ in rows if sum(row[0] == objective for row in rows) > 1}
    first = next(iter(records.values()))
    lines = [
        [NAMES.get(objective, objective), f"{tokens / 1e6:.2f}", flops, *scores]
        for objective, tokens, flops, scores in sorted(rows)
        if objective in repeated
    ]
    none = [f"{mean_score(first, 'none', name):.1f}" for name in first["datasets"]]
    header = ["objective", "M tokens", "TFLOP", *(name.upper() for name in first["datasets"])]
    return table(header, [["none", "0", "0", *none], *lines])
