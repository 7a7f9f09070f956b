r"""Fine-tune fixed schedules, without a search: what each keeps and saves (thesis figures 5.6, 5.7, 5.12 and 5.17).

    python experiments/schedules.py --model_name_or_path FacebookAI/roberta-base --dataset_names mrpc rte \
        --families single constrained random_weights --factors 4 --num_train_epochs 2 --output_dir runs/schedules \
        --results_file results/schedules.json
    python experiments/schedules.py --draw results/schedules.json --last_layers docs/images/last_layers.png

Families, all beside the full model:

- single: one reduction, by each of --factors at each layer in turn; figure 5.17. Reduced at the n-th layer from the end
  is what figures 5.6 and 5.7 call the last n layers.
- constrained: three reductions by 2, the first at each layer in turn, the others evenly spaced to the output; figure
  5.12.
- random_weights: no reduction, and nothing pretrained; table 5.1.

Every model starts from the same checkpoint without further pretraining. Scores are of the test split, which chooses
nothing. With --rounds all schedules are timed together, batch 1, on texts of the test split. The same command
resumes, and one with more tasks or families adds them.

--draw takes records of different tasks and makes a picture per option: --single, score by the layer that reduces
(figure 5.17); --last_layers, share of the full model's score by the number of last layers that are reduced (figures 5.6
and 5.7); --constrained, score by time of the schedules with one parameter (figure 5.12). Bars: a standard error of the
score over test examples.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from frame import (
    around,
    command_of,
    describe_machine,
    format_table,
    interval,
    list_commands,
    open_panels,
    ratio,
    read_results,
    refuse_twice,
    save_figure,
)
from tuning import describe_task, fine_tune_all, take_turns

from classformer_hf import ClassformerForSequenceClassification, load_from_encoder
from classformer_hf.checkpoints import checkpoint_fingerprint
from classformer_hf.search.space import Schedule, SearchSpace
from classformer_hf.training import ClassformerTrainingArguments
from redundancy_hf.command import write_record
from redundancy_hf.data import load_tasks
from redundancy_hf.limits import load_tokenizer
from redundancy_hf.task import Task
from redundancy_hf.timing import hardware_fingerprint, sample_inputs
from redundancy_hf.training import list_seeds

FAMILIES = ("single", "constrained", "random_weights")
# RoBERTa-base on development sets, table 5.1: the author's run, random weights
THESIS_TABLE_5_1 = {
    "cola": (63.0, 60.4),
    "sst2": (94.8, 79.8),
    "mrpc": (91.8, 83.4),
    "stsb": (90.9, 45.8),
    "qqp": (88.8, 72.0),
    "rte": (83.4, 52.7),
}
# the thesis: 7 tasks, share kept against training size and against mean length
THESIS_PREDICTION = {"training texts": (-0.25, 0.59), "mean length": (-0.17, 0.71)}


class Variant(NamedTuple):
    """What is fine-tuned; `layer` is the index of the first one that reduces, from 0."""

    family: str
    schedule: Schedule
    layer: int | None = None
    factor: int = 1

    @property
    def name(self) -> str:
        return "random-weights" if self.family == "random_weights" else self.schedule.key

    def start(self, checkpoint: str, task: Task) -> Any:
        model: Any = load_from_encoder(checkpoint, **self.schedule.config, **task.head_config)
        return ClassformerForSequenceClassification(model.config) if self.family == "random_weights" else model


def list_variants(families: Sequence[str], factors: Sequence[int], num_layers: int, max_tokens: int) -> list[Variant]:
    """List the full model and what the families hold.

    No reduction is at the last layer, where a classifier computes position 0 only.

    Raises:
        ValueError: A family or a factor is out of range.
    """
    if unknown := sorted(set(families) - set(FAMILIES)):
        raise ValueError(f"--families has unknown {', '.join(unknown)}; there are {', '.join(FAMILIES)}.")
    if min(factors) < 2:
        raise ValueError(f"--factors must be at least 2, got {list(factors)}.")
    full, layers = Schedule((1,) * num_layers), range(num_layers - 1)
    variants = [Variant("full", full)]
    if "single" in families:
        for factor in sorted(set(factors)):
            gammas = [tuple(factor if index == layer else 1 for index in range(num_layers)) for layer in layers]
            variants += [Variant("single", Schedule(gamma), layer, factor) for layer, gamma in enumerate(gammas)]
    if "constrained" in families:
        space = SearchSpace(num_layers, max_tokens)
        variants += [Variant("constrained", space.constrained(layer), layer, 2) for layer in layers]
    return variants + ([Variant("random_weights", full)] if "random_weights" in families else [])


def time(starts: dict[str, Callable[[Task], Any]], task: Task, num_inputs: int, rounds: int) -> dict[str, dict]:
    """Time all schedules together; the weights do not matter."""
    models = {name: start(task).eval() for name, start in starts.items() if name != "random-weights"}
    inputs = sample_inputs(task.splits["test"], num_inputs)
    return take_turns(models, inputs, next(iter(models)), rounds, what=f"timing {task.name}")


def run(
    model_name_or_path: str,
    dataset_names: list[str],
    training: ClassformerTrainingArguments,
    families: Sequence[str] = ("single",),
    factors: Sequence[int] = (2, 4, 8),
    max_length: int = 128,
    max_train_samples: int | None = None,
    seeds: int = 1,
    rounds: int = 0,
    num_inputs: int = 16,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Fine-tune all schedules on all tasks, and time them.

    Args:
        model_name_or_path: Folder or Hub name of the checkpoint to start from.
        dataset_names: Tasks: GLUE names, folders, files or standard_library (embedded).
        training: The recipe.
        families: What to fine-tune: single, constrained, random_weights.
        factors: Of the family single.
        max_length: Longer texts are cut to so many tokens.
        max_train_samples: Train on at most so many examples.
        seeds: Fine-tunings of each, with --seed, --seed + 1, ...
        rounds: Rounds of interleaved timing; 0 times nothing.
        num_inputs: Texts that are timed, at evenly spaced lengths.
        results_file: JSON file for the scores.
    """
    torch.set_num_threads(1)
    if rounds < 0 or num_inputs < 1:
        raise ValueError("--rounds must be at least 0 and --num_inputs at least 1.")
    config, tokenizer = load_from_encoder(model_name_or_path).config, load_tokenizer(model_name_or_path)
    variants = list_variants(families, factors, config.num_hidden_layers, config.max_position_embeddings)
    numbers = list_seeds(training.seed, seeds)
    tasks = load_tasks(dataset_names, tokenizer, max_length, max_train_samples)
    # one schedule may be in two families
    starts = {variant.name: partial(variant.start, model_name_or_path) for variant in variants}
    settings = dict.fromkeys(starts, {"checkpoint": checkpoint_fingerprint(model_name_or_path)})
    tuned = {
        (task.name, row["seed"], name): row
        for name, _, task, row in fine_tune_all(starts, tasks, tokenizer, training, seeds, settings)
    }
    return write_record(
        results_file,
        model=Path(model_name_or_path).name,
        datasets={
            task.name: {
                **describe_task(task),
                "mean_length": float(np.mean([len(ids) for ids in task.splits["train"]["input_ids"]])),
            }
            for task in tasks
        },
        latency={task.name: time(starts, task, num_inputs, rounds) for task in tasks} if rounds else None,
        seeds=list(numbers),
        hardware=hardware_fingerprint(),
        rows=[
            {**one._asdict(), "schedule": one.schedule.key, "gamma": list(one.schedule.gamma)}
            | tuned[task.name, seed, one.name]
            for task in tasks
            for seed in numbers
            for one in variants
        ],
    )


@dataclass(frozen=True)
class TaskResults:
    """What a record says of one task."""

    name: str
    task: dict[str, Any]
    record: dict[str, Any]

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [row for row in self.record["rows"] if row["dataset"] == self.name]

    def select(self, **wanted: Any) -> list[dict[str, Any]]:
        return [row for row in self.rows if wanted.items() <= row.items()]

    def mean(self, **wanted: Any) -> float | None:
        scores = [row["test_score"] for row in self.select(**wanted)]
        return 100 * statistics.mean(scores) if scores else None

    def error(self, **wanted: Any) -> float:
        """Give the standard error over examples of a variant's score, in percent; of several seeds, the largest."""
        return 100 * max(row["test_standard_error"] for row in self.select(**wanted))

    def interval(self, family: str = "full") -> str:
        return interval(*around(self.mean(family=family) or 0.0, self.error(family=family)), digits=1)

    def list_values(self, family: str, name: str) -> list[Any]:
        """Give the layers or the factors of a family, in their order.

        Raises:
            ValueError: The family was not run.
        """
        if not self.select(family=family):
            raise ValueError(f"{self.name} has no schedules to draw; run it with --families {family}.")
        return sorted({row[name] for row in self.select(family=family)})

    def collect(self, family: str, factor: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Give the layers that a factor was tried at, scores and their standard errors, in percent.

        Raises:
            ValueError: The factor, or the family, was not run.
        """
        factors = self.list_values(family, "factor")
        if factor not in factors:
            measured = ", ".join(map(str, factors))
            raise ValueError(f"{self.name} has no reductions by {factor}; --last_layers_factor can be {measured}.")
        layers = sorted({row["layer"] for row in self.select(family=family, factor=factor)})
        variants = [{"family": family, "factor": factor, "layer": layer} for layer in layers]
        scores, errors = ([measure(**variant) for variant in variants] for measure in (self.mean, self.error))
        return np.array(layers), np.array(scores), np.array(errors)

    @property
    def full(self) -> float:
        return self.mean(family="full") or 0.0  # it is always there

    @property
    def majority(self) -> float:
        return 100 * self.task["majority_score"]


def list_results(records: dict, family: str = "full") -> list[TaskResults]:
    """Give what records with rows of a family say of every task."""
    return [
        TaskResults(name, task, record)
        for record in records.values()
        if family in {row["family"] for row in record["rows"]}
        for name, task in record["datasets"].items()
    ]


def single_table(records: dict) -> str:
    """The share of the full model's score that one reduction leaves, by layer and factor."""
    rows, num_layers = [], 0
    for one in list_results(records):
        num_layers = len(one.rows[0]["gamma"])
        for factor in sorted({row["factor"] for row in one.select(family="single")}):
            scores = [one.mean(family="single", factor=factor, layer=layer) for layer in range(num_layers - 1)]
            shares = ["" if score is None else f"{100 * score / one.full:.1f}" for score in scores]
            majority = f"{100 * one.majority / one.full:.1f}"
            about = [one.name.upper(), one.task["metric_name"], f"{factor}x", one.interval()]
            rows.append([*about, *shares, majority])
    layers = (f"layer {layer + 1} (n = {num_layers - layer}), %" for layer in range(num_layers - 1))
    header = ["task", "metric", "factor", "full score", *layers, "majority class, %"]
    return format_table(header, rows, f"n: last layers that are shorter. {describe(records)}")


def constrained_table(records: dict) -> str:
    """Score and time of the schedules with one parameter."""
    rows, family = [], "constrained"
    for one in list_results(records, family):
        timed, of = (one.record["latency"] or {}).get(one.name, {}), [one.name.upper(), one.task["metric_name"]]
        rows.append([*of, "full model", "", one.interval(), "100.0", "1.00"])
        for layer, schedule in sorted({row["layer"]: row["schedule"] for row in one.select(family=family)}.items()):
            score = one.mean(family=family, layer=layer) or 0.0
            time = ratio(timed[schedule]) if schedule in timed else "not measured"
            rows.append([*of, layer + 1, f"`{schedule}`", f"{score:.1f}", f"{100 * score / one.full:.1f}", time])
        majority = [f"{one.majority:.1f}", f"{100 * one.majority / one.full:.1f}"]
        rows.append([*of, "majority class", "", *majority, ""])
    header = ["task", "metric", "k", "gamma and eta", "test score", "% of full", "time relative to the full model"]
    note = "Times: a text of the test split at a time, float32; in brackets quartiles over the rounds. "
    return format_table(header, rows, note + describe(records, family))


def random_weights_table(records: dict) -> str:
    """Pretrained against random weights, beside table 5.1."""
    rows = []
    for one in list_results(records, "random_weights"):
        about = [one.name.upper(), one.task["metric_name"], one.task["num_examples"]["test"]]
        thesis = [f"{value:g}" for value in THESIS_TABLE_5_1.get(one.name, ())] or ["", ""]
        rows.append([*about, one.interval(), one.interval("random_weights"), f"{one.majority:.1f}", *thesis])
    header = ["task", "metric", "n", "pretrained", "random weights", "majority class"]
    return format_table([*header, "thesis, pretrained", "thesis, random"], rows, describe(records, "random_weights"))


def prediction_table(records: dict) -> str:
    """Whether training size or length foretell what a reduction by four at the second layer leaves."""
    from scipy import stats

    points, at_chance = {}, []
    for one in list_results(records):
        score = one.mean(family="single", factor=4, layer=1)
        if score is None:
            continue
        if one.full - one.majority <= 2 * one.error(family="full"):
            at_chance.append(one.name.upper())  # what has learned nothing has nothing to lose
            continue
        share, gain = score / one.full, (score - one.majority) / (one.full - one.majority)
        points[one.name.upper()] = (one.task["num_examples"]["train"], one.task["mean_length"], share, gain)
    if len(points) < 3:
        return "Not measured: a regression needs three tasks.\n"
    sizes, lengths, shares, gains = zip(*points.values(), strict=True)
    rows = []
    for what, kept in (("score", shares), ("score above the majority class", gains)):
        for against, values in (("training texts", sizes), ("mean length", lengths)):
            fit, ranks = stats.linregress(values, kept), stats.spearmanr(values, kept)
            numbers = [f"{fit.rvalue:.2f}", p_value(fit.pvalue), f"{ranks.statistic:.2f}", p_value(ranks.pvalue)]
            thesis = "{} (p = {})".format(*THESIS_PREDICTION[against]) if kept is shares else ""
            rows.append([what, against, len(kept), *numbers, thesis])
    each = "; ".join(
        f"{name} {100 * share:.0f} and {100 * gain:.0f} % ({length:.0f} tokens)"
        for name, (_, length, share, gain) in points.items()
    )
    note = (
        "Kept at 4x in the second layer, of the score and of what it is above the majority class, and mean length "
        f"after cutting: {each}. "
    )
    if at_chance:
        note += f"Left out, within two standard errors of the majority class: {', '.join(at_chance)}. "
    header = ["share kept of the", "against", "n", "Pearson's r", "its p", "Spearman's", "its p", "thesis, r"]
    return format_table(header, rows, note + describe(records))


def p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def describe(records: dict, family: str = "full") -> str:
    """Say how the scores of records with a family came about."""
    results = list_results(records, family)
    used = list({id(one.record): one.record for one in results}.values())
    machines = sorted({describe_machine(record["hardware"]) for record in used})
    seeds = sorted({seed for record in used for seed in record["seeds"]})
    trained = ", ".join(
        f"{one.name.upper()} {one.task['num_examples']['train']:,} training and "
        f"{one.task['num_examples']['test']:,} test examples"
        for one in results
    )
    return (
        f"{', '.join(sorted({record['model'] for record in used}))}; {trained}; test split, seed "
        f"{', '.join(map(str, seeds))}; scores in percent, 95 % intervals over test examples in brackets; "
        f"{' and '.join(machines)}.\n\n{list_commands(used)}"
    )


def draw_single(panel: Any, result: TaskResults):
    """Draw the score by the layer that reduces, a line per factor."""
    panel.axhline(result.full, color="black", label="no reduction")
    panel.axhline(result.majority, color="0.6", linestyle=":", label="majority class")
    for factor in result.list_values("single", "factor"):
        layers, scores, errors = result.collect("single", factor)
        panel.errorbar(layers + 1, scores, yerr=errors, marker="o", capsize=2, label=f"{factor}x")
    panel.set(xlabel="layer that reduces", ylabel=f"test {result.task['metric_name']}, %")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.legend(fontsize=8, loc="lower right", framealpha=0.6)


def draw_constrained(panel: Any, result: TaskResults):
    """Draw score against time, each point named by its first layer."""
    times = (result.record["latency"] or {}).get(result.name)
    if not times:
        raise ValueError(f"{result.name} has no times; run it with --rounds.")
    constrained = zip(*result.collect("constrained", 2), strict=True)
    schedules = {row["layer"]: row["schedule"] for row in result.rows if row["family"] in ("constrained", "full")}
    for layer, score, error in [(None, result.full, result.error(family="full")), *constrained]:
        time = times[schedules[layer]]["ratio"]
        panel.errorbar([time], [score], yerr=[error], marker="o", color="C0", capsize=2)
        name = "full" if layer is None else f"k = {layer + 1}"
        panel.annotate(name, (time, score), (5, 5), textcoords="offset points", fontsize=8)
    panel.axhline(result.majority, color="0.6", linestyle=":")
    panel.margins(x=0.12)  # names stand to the right of their points
    panel.set(xlabel="time of a text, relative to the full model", ylabel=f"test {result.task['metric_name']}, %")


def draw_panels(results: list[TaskResults], draw_panel: Callable[[Any, TaskResults], None], path: str):
    """Draw a panel per task."""
    figure, panels = open_panels(len(results), 3, (5.2, 4.2))
    for panel, result in zip(panels, results, strict=True):
        draw_panel(panel, result)
        panel.set_title(f"{result.name.upper()} (n = {result.task['num_examples']['test']:,})")
        panel.grid(alpha=0.3)
    save_figure(figure, path)


def draw_last_layers(results: list[TaskResults], factor: int, path: str):
    """Draw the share of the full score by the number of last layers that are reduced, a line per task."""
    figure, (panel,) = open_panels(1, 1, (7, 4.6))
    for result in results:
        layers, *percents = result.collect("single", factor)
        scores, errors = (100 * values / result.full for values in percents)
        last = len(result.rows[0]["gamma"]) - layers
        line = panel.errorbar(last, scores, yerr=errors, marker="o", capsize=2, label=result.name.upper())
        share = 100 * result.majority / result.full
        panel.axhline(share, color=line[0].get_color(), linestyle=":", linewidth=0.8)
    panel.set(xlabel=f"last layers whose length is reduced by {factor}", ylabel="% of the full model's test score")
    panel.xaxis.get_major_locator().set_params(integer=True)
    panel.grid(alpha=0.3)
    panel.legend(fontsize=8)
    save_figure(figure, path)


def draw(
    records: list[str],
    single: str | None = None,
    last_layers: str | None = None,
    last_layers_factor: int = 4,
    constrained: str | None = None,
):
    """Draw what this experiment found, all tasks of all records in one picture.

    Args:
        records: JSON files of this experiment, of different tasks.
        single: PNG file.
        last_layers: PNG file.
        last_layers_factor: The reduction that --last_layers shows.
        constrained: PNG file.

    Raises:
        ValueError: There is nothing to draw, or two records have the same task.
    """
    if single is last_layers is constrained is None:
        raise ValueError("nothing to draw: give --single, --last_layers or --constrained.")
    results = [
        result for path in records for result in list_results({path: read_results(path, "experiments/schedules.py")})
    ]
    refuse_twice([result.name for result in results])
    if single:
        draw_panels(results, draw_single, single)
    if last_layers:
        draw_last_layers(results, last_layers_factor, last_layers)
    if constrained:
        draw_panels(results, draw_constrained, constrained)


main = command_of(run, __doc__, draw=draw)
