r"""Resample cached predictions to see how often a choice, and its certificate, is wrong.

The cached examples are the population. Each resample draws a search sample and a holdout from it, with replacement and
independently, chooses the fastest schedule that keeps the required share on the search sample, and asks for its
certificate on the holdout. A choice violates the requirement if it keeps less over the whole population. A few minutes:

    python experiments/certificate.py --predictions runs/sst2/predictions.npz --num_search 1000 \
        --num_holdout 1000 4000 --results_file results/certificate_sst2.json

The file has `keys` (S,), the full schedule first or named by `--reference_key`, `predictions` (S, N) of class ids,
`references` (N,) and `latency_ratio` (S,); classformer_hf.search.supernet.predict_schedules predicts them.

With `--simulated_classes` there is no file: macro F1 is judged on samples of a population of so many classes in which
the candidate keeps the required share exactly, which must not be certified in more than 1 - confidence of the samples,
or more. What is already in --results_file is not simulated again, so it may be stopped:

    python experiments/certificate.py --simulated_classes 2 5 20 77 --num_holdout 200 1000 5000 \
        --required_performance 0.5 0.8 0.95 --num_resamples 2000 --results_file results/certificate_simulation.json
"""

import functools
import itertools
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
from frame import command_of, describe_machine, format_table, interval, name_command, percent
from scipy import optimize, stats
from tqdm import tqdm

from redundancy_hf.certificate import certify, check_request
from redundancy_hf.command import write_record
from redundancy_hf.significance import EXTRA_DISAGREEMENTS, PairedCounts, exact_p_value
from redundancy_hf.tilting import TiltedBootstrap
from redundancy_hf.timing import hardware_fingerprint

NOTE = (
    "margin: standard errors by which the choice must keep more than required on the search sample, 0 is the plain "
    "rule; violates: the choice keeps less than required over the population; issued wrongly: it violates and gets a "
    "certificate; p_value: exact one-sided binomial test that certificates are issued wrongly more often than allowed."
)
SIMULATION_NOTE = (
    "issued: certificates of a candidate that keeps exactly the required share of the full model's macro F1 over the "
    "population; issued wrongly: of these, where it keeps no more over the classes that occur in the sample either, "
    "with an exact 95 % interval and the p_value of a one-sided binomial test that they are more than 1 - confidence; "
    "issued halfway: of one that keeps the share halfway from the required one to 1; issued equal: of one as good as "
    "the full model; seconds: processor time of one whole certificate with 10,000 resamples, the median of 3."
)
FULL_ACCURACY, WON = 0.85, 0.3  # of the simulated full model; share of its errors that the candidate has right
POWER_SHARE = 10  # samples for either power are so many times fewer
NUM_DRAWN = 500  # resamples of a simulated certificate


@dataclass(frozen=True)
class Sampling:
    """How often which samples are drawn."""

    required_performance: Sequence[float]
    num_holdout: Sequence[int]
    confidence: float
    num_resamples: int
    seed: int

    @property
    def alpha(self) -> float:
        return 1 - self.confidence

    @property
    def num_power(self) -> int:
        return max(1, self.num_resamples // POWER_SHARE)


@dataclass
class Population:
    """Which schedule is right on which example, 0 or 1, (S, N), and how fast it is, (S,); the full one is first."""

    keys: list[str]
    is_right: np.ndarray
    latency_ratio: np.ndarray

    def count_pairs(self, rows: np.ndarray, schedules: np.ndarray | slice) -> np.ndarray:
        """Of a sample: examples that the full schedule and each one have right, only the former, only the latter."""
        counts = np.bincount(rows, minlength=self.is_right.shape[1]).astype(np.float32)
        counts_where_full = counts * self.is_right[0]
        some = self.is_right[schedules]
        right, both = some @ counts, some @ counts_where_full  # whole numbers below 2 ** 24 stay exact
        return np.stack([both, counts_where_full.sum() - both, right - both], axis=1).astype(int)  # (S, 3)


def load_population(path: str, reference_key: str | None) -> Population:
    try:
        with np.load(path) as data:
            keys = [str(key) for key in data["keys"]]
            predictions, references, latency = data["predictions"], data["references"], data["latency_ratio"]
    except (OSError, KeyError, ValueError, BadZipFile) as error:
        raise ValueError(f"{path} must be an .npz file as --help describes it, got {error}.") from error
    if predictions.shape != (len(keys), len(references)) or latency.shape != (len(keys),):
        raise ValueError(
            f"predictions must be (keys, references) and latency_ratio (keys,), got {predictions.shape} and "
            f"{latency.shape} for {len(keys)} keys and {len(references)} references."
        )
    if reference_key is not None and reference_key not in keys:
        raise ValueError(
            f"--reference_key must be one of the file's keys, got {reference_key!r}; the first is {keys[0]!r}."
        )
    first = 0 if reference_key is None else keys.index(reference_key)
    order = [first, *(index for index in range(len(keys)) if index != first)]
    return Population(
        [keys[index] for index in order], (predictions == references)[order].astype(np.float32), latency[order]
    )


def choose(population: Population, counts: np.ndarray, required: float, margin: float) -> int:
    """The fastest schedule that keeps the required share by some standard errors; the full one is always allowed."""
    both, only_full, only_candidate = counts.T
    gap = (1 - required) * both + only_candidate - required * only_full
    error = np.sqrt(required * (only_full + only_candidate + EXTRA_DISAGREEMENTS))
    is_allowed = gap >= margin * error - 1e-9
    is_allowed[0] = True
    return int(np.where(is_allowed, population.latency_ratio, np.inf).argmin())


def resample(
    population: Population, sampling: Sampling, num_search: int, margins: Sequence[float]
) -> dict[tuple[float, float, int], list[tuple]]:
    """Return for every (requirement, margin, holdout size) the choices and whether each got its certificate."""
    generator = np.random.default_rng(sampling.seed)
    num_examples = population.is_right.shape[1]

    @functools.cache
    def is_certified(counts: PairedCounts, required: float) -> bool:
        return exact_p_value(counts, required, sampling.alpha, is_decision=True) <= sampling.alpha

    outcomes: dict[tuple[float, float, int], list[tuple]] = {}
    for _ in tqdm(range(sampling.num_resamples), unit="resample"):
        searched = population.count_pairs(generator.integers(num_examples, size=num_search), slice(None))
        rules = itertools.product(sampling.required_performance, margins)
        choices = {rule: choose(population, searched, *rule) for rule in rules}
        for size in sampling.num_holdout:
            chosen = np.unique(list(choices.values()))
            held_out = population.count_pairs(generator.integers(num_examples, size=size), chosen)
            for (required, margin), choice in choices.items():
                counts = PairedCounts(*held_out[np.searchsorted(chosen, choice)].tolist(), size)
                outcomes.setdefault((required, margin, size), []).append((choice, is_certified(counts, required)))
    return outcomes


def count_wrong(is_issued: np.ndarray, is_wrong: np.ndarray, alpha: float) -> dict[str, Any]:
    """Say how often certificates are issued, and issued wrongly, with what that says about their confidence."""
    number = int((is_issued & is_wrong).sum())
    limits = stats.binomtest(number, len(is_issued)).proportion_ci()
    return {
        "issued_rate": float(is_issued.mean()),
        "issued_wrongly_rate": number / len(is_issued),
        "issued_wrongly_interval": [limits.low, limits.high],
        "issued_wrongly_p_value": stats.binomtest(number, len(is_issued), alpha, alternative="greater").pvalue,
    }


def summarise(population: Population, required: float, outcomes: list[tuple], alpha: float) -> dict[str, Any]:
    choices, is_issued = (np.array(values) for values in zip(*outcomes, strict=True))
    accuracy = population.is_right.mean(axis=1)
    is_violation = (accuracy < required * accuracy[0])[choices]
    return {
        "choice_violates_rate": float(is_violation.mean()),
        **count_wrong(is_issued, is_violation, alpha),
        "violates_among_issued_rate": float(is_violation[is_issued].mean()) if is_issued.any() else None,
        "full_schedule_chosen_rate": float((choices == 0).mean()),
        "mean_latency_ratio": float(population.latency_ratio[choices].mean()),
    }


@dataclass
class Classes:
    """A population in which a model is right with one probability, and wrong in favour of any other class alike."""

    shares: np.ndarray  # of the classes, (K,)

    def f1(self, accuracy: float) -> np.ndarray:
        """F1 of every class of a model with that accuracy, (K,)."""
        other = (1 - accuracy) / (len(self.shares) - 1) * (1 - self.shares)
        return 2 * self.shares * accuracy / (self.shares * (1 + accuracy) + other)

    def find_accuracy(self, share: float) -> float:
        """Accuracy with which a model keeps a share of the full model's macro F1."""
        wanted = share * self.f1(FULL_ACCURACY).mean()
        return optimize.brentq(lambda accuracy: self.f1(accuracy).mean() - wanted, 1e-6, FULL_ACCURACY, xtol=1e-14)

    def draw(self, accuracy: float, size: int, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
        """Predictions of the full model and of a candidate of an accuracy, and references; (N,) each."""
        num_classes, won = len(self.shares), WON * (1 - FULL_ACCURACY)
        lost = 1 - (accuracy - won) / FULL_ACCURACY
        references = generator.choice(num_classes, size, p=self.shares)
        wrong, other = ((references + generator.integers(1, num_classes, size)) % num_classes for _ in range(2))
        full = np.where(generator.random(size) < FULL_ACCURACY, references, wrong)
        candidate = np.where(generator.random(size) < lost, other, references)
        again = np.where(generator.random(size) < WON, references, wrong)
        return full, np.where(full == references, candidate, again), references


def measure_seconds(classes: Classes, required: float, size: int, sampling: Sampling) -> float:
    """Processor time of one whole certificate, the median of 3."""
    generator, seconds = np.random.default_rng(sampling.seed), []
    for _ in range(3):
        sample = classes.draw(classes.find_accuracy((1 + required) / 2), size, generator)
        start = time.process_time()
        certify("macro_f1", *sample, required, sampling.confidence)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def simulate(classes: Classes, required: float, size: int, sampling: Sampling) -> dict[str, Any]:
    """Draw samples of one population, for the level, for both powers, and for the time."""
    generator = np.random.default_rng(sampling.seed)

    def judge(share: float, number: int) -> np.ndarray:
        """Which samples are certified, and whether rightly, over the classes that occur."""
        accuracy = classes.find_accuracy(share)
        full_f1, f1 = classes.f1(FULL_ACCURACY), classes.f1(accuracy)
        outcomes = []
        for seed in range(number):
            sample = classes.draw(accuracy, size, generator)
            seen = np.unique(sample)
            keeps = f1[seen].mean() > required * full_f1[seen].mean() * (1 + 1e-9)
            p_value = TiltedBootstrap("macro_f1", *sample, NUM_DRAWN, seed).p_value(required)
            outcomes.append((p_value <= sampling.alpha, keeps))
        return np.array(outcomes)

    is_issued, is_right = judge(required, sampling.num_resamples).T
    return {
        **count_wrong(is_issued, ~is_right, sampling.alpha),
        "issued_halfway_rate": float(judge((1 + required) / 2, sampling.num_power)[:, 0].mean()),
        "issued_equal_rate": float(judge(1.0, sampling.num_power)[:, 0].mean()),
        "seconds": measure_seconds(classes, required, size, sampling),
    }


def simulate_all(sampling: Sampling, num_classes: Sequence[int], results_file: str | None) -> dict[str, Any]:
    """Simulate every population that the record lacks."""
    record: dict[str, Any] = {
        "num_simulations": sampling.num_resamples,
        "num_simulations_power": sampling.num_power,
        "num_resamples": NUM_DRAWN,
        "confidence": sampling.confidence,
        "seed": sampling.seed,
        "full_accuracy": FULL_ACCURACY,
        "errors_won_rate": WON,
    }
    rows = []
    if results_file is not None and Path(results_file).exists():
        earlier = json.loads(Path(results_file).read_text())
        rows = earlier["rows"] if record.items() <= earlier.items() else []
    hardware = hardware_fingerprint()
    write = functools.partial(write_record, results_file, note=SIMULATION_NOTE, hardware=hardware, **record, rows=rows)
    cells = itertools.product(("even", "1 / rank"), num_classes, sampling.num_holdout, sampling.required_performance)
    for cell in tqdm(list(cells), unit="population"):
        named = dict(zip(("class_shares", "num_classes", "num_examples", "required_performance"), cell, strict=True))
        if any(named.items() <= row.items() for row in rows):
            continue
        shares, number, size, required = cell
        weights = np.ones(number) if shares == "even" else 1 / np.arange(1.0, number + 1)
        rows.append(named | simulate(Classes(weights / weights.sum()), required, size, sampling))
        write()
    return write()


def run(
    predictions: str | None = None,
    reference_key: str | None = None,
    required_performance: Sequence[float] = (0.95, 0.98, 0.99),
    simulated_classes: Sequence[int] | None = None,
    num_search: int = 1000,
    num_holdout: Sequence[int] = (2000, 10000),
    margins: Sequence[float] = (0.0, 2.0),
    confidence: float = 0.95,
    num_resamples: int = 5000,
    seed: int = 0,
    results_file: str | None = None,
) -> dict[str, Any]:
    """Resample cached predictions, or simulate.

    Args:
        predictions: The .npz file.
        reference_key: Key of the full schedule; default the first.
        required_performance: Shares of the full schedule's accuracy to keep.
        simulated_classes: Simulate macro F1 with these numbers of classes instead.
        num_search: Examples of a search sample.
        num_holdout: Examples of a holdout.
        margins: Standard errors of margin for the choice; 0 is none.
        confidence: Of a certificate.
        num_resamples: Resamples.
        seed: Of the resampling.
        results_file: JSON file for the result.
    """
    for required in required_performance:
        check_request(required, confidence, 1)
    sizes = [num_search, num_resamples, *num_holdout]
    if min(sizes) < 1:
        raise ValueError(f"--num_search, --num_resamples and --num_holdout must be at least 1, got {sizes}.")
    sampling = Sampling(required_performance, num_holdout, confidence, num_resamples, seed)
    if simulated_classes is not None:
        if min(simulated_classes) < 2:
            raise ValueError(f"--simulated_classes must be at least 2 each, got {simulated_classes}.")
        return simulate_all(sampling, simulated_classes, results_file)
    if predictions is None:
        raise ValueError("give the cached --predictions, or --simulated_classes for a simulation without any.")
    population = load_population(predictions, reference_key)
    rows = [
        dict(zip(("required_performance", "margin", "num_holdout"), key, strict=True))
        | summarise(population, key[0], values, sampling.alpha)
        for key, values in resample(population, sampling, num_search, margins).items()
    ]
    accuracy = population.is_right.mean(axis=1)
    record = write_record(
        results_file,
        note=NOTE,
        hardware=hardware_fingerprint(),
        num_population=population.is_right.shape[1],
        num_search=num_search,
        num_resamples=num_resamples,
        confidence=confidence,
        reference_key=population.keys[0],
        schedules={
            key: {"accuracy": float(score), "performance": float(score / accuracy[0]), "latency_ratio": float(ratio)}
            for key, score, ratio in zip(population.keys, accuracy, population.latency_ratio, strict=True)
        },
        rows=rows,
    )
    return record


def table(record: dict) -> str:
    """How often the plain rule's choice is wrong, and how often a wrong one gets its certificate."""
    rows = []
    for row in record["rows"]:
        wrong = interval(*(100 * value for value in (row["issued_wrongly_rate"], *row["issued_wrongly_interval"])))
        rates = [percent(row[name]) for name in ("choice_violates_rate", "issued_rate")]
        about = [f"{percent(row['required_performance'], 0)} %", f"{row['margin']:g}", row["num_holdout"]]
        rows.append([*about, *rates, wrong, f"{row['issued_wrongly_p_value']:.2f}"])
    header = ["keep", "margin", "holdout", "choice violates, %", "issued, %", "issued wrongly, % [95 %]", "p above 5 %"]
    note = (
        f"{record['num_resamples']} resamples of a population of {record['num_population']} texts and "
        f"{len(record['schedules'])} schedules, {record['num_search']} texts to choose on; "
        f"{record['hardware']['device_name']}. {name_command(record)}"
    )
    return format_table(header, rows, note)


def simulation_table(record: dict) -> str:
    """How often simulated candidates are certified: those at the requirement, those above it, equally good ones."""
    populations: dict[tuple, list[dict]] = {}
    for row in record["rows"]:
        key = (row["class_shares"], row["num_classes"], row["num_examples"])
        populations.setdefault(key, []).append(row)
    rows = []
    for key, cells in populations.items():
        wrong = [
            f"{percent(cell['issued_wrongly_rate'])} [{percent(cell['issued_wrongly_interval'][1])}]" for cell in cells
        ]
        power = [
            " / ".join(percent(cell[f"issued_{which}_rate"], 0) for cell in cells) for which in ("halfway", "equal")
        ]
        rows.append([*key, *wrong, *power, f"{max(cell['seconds'] for cell in cells):.1f}"])
    required = [f"{percent(cell['required_performance'], 0)} %" for cell in cells]
    header = ["share of classes", "classes", "examples", *(f"wrongly at {value}, % [at most]" for value in required)]
    rates = [row["issued_wrongly_rate"] for row in record["rows"]]
    lowest = min(row["issued_wrongly_p_value"] for row in record["rows"])
    note = (
        f"Macro F1 with {percent(record['confidence'], 0)} % confidence, {record['num_simulations']} samples per cell "
        f"({record['num_simulations_power']} for either power, at {' / '.join(required)}); in brackets the upper end "
        f"of the exact 95 % interval. Issued wrongly over all {len(rates)} cells: "
        f"{percent(sum(rates) / len(rates), 2)} %; the smallest p-value of more than "
        f"{percent(1 - record['confidence'], 0)} % is {lowest:.2g}, of {len(rates)}. "
        f"Seconds: one certificate, the slowest of the three. {describe_machine(record['hardware'])}. "
        f"{name_command(record)}"
    )
    return format_table([*header, "certified halfway to 1, %", "certified where equal, %", "s"], rows, note)


def show(record: dict) -> str:
    return simulation_table(record) if "num_simulations" in record else table(record)


main = command_of(run, __doc__, show=show)
