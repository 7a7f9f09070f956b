r"""Resample cached predictions to see how often a choice, and its certificate, is wrong.

The cached examples are the population. Each resample draws a search sample and a holdout from it, with replacement and
independently, chooses the fastest schedule that keeps the required share on the search sample, and asks for its
certificate on the holdout. A choice violates the requirement if it keeps less over the whole population. A few minutes:

    python experiments/certificate.py --predictions runs/sst2/predictions.npz --num_search 1000 \
        --num_holdout 2000 10000 --results_file results/certificate_study.json

The file has `keys` (S,), the full schedule first or named by `--reference_key`, `predictions` (S, N) of class ids,
`references` (N,) and `latency_ratio` (S,).

With `--simulated_classes` there is no file: macro F1 is judged on samples of a population of so many classes in which
the candidate keeps the required share exactly, which must not be certified in more than 1 - confidence of the samples,
or more. What is already in --results_file is not simulated again. A quarter of an hour:

    python experiments/certificate.py --simulated_classes 2 5 20 77 --num_holdout 200 1000 5000 \
        --required_performance 0.5 0.8 0.95 --num_resamples 2000 --results_file results/certificate_simulation.json
"""

import functools
import itertools
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from scipy import optimize, stats
from tqdm import tqdm

from redundancy_hf.certificate import certify, check_request
from redundancy_hf.command import parse_arguments, run_command, write_record
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
# standard errors above the requirement; below the first nothing is certified, above the second all is, to save time
UNSURE = (1.0, 4.0)


@dataclass
class StudyArguments:
    predictions: str | None = field(default=None, metadata={"help": "The .npz file."})
    reference_key: str | None = field(default=None, metadata={"help": "Key of the full schedule; default the first."})
    required_performance: list[float] = field(
        default_factory=lambda: [0.95, 0.98, 0.99], metadata={"help": "Shares of the full schedule's accuracy to keep."}
    )
    simulated_classes: list[int] | None = field(
        default=None, metadata={"help": "Simulate macro F1 with these numbers of classes instead."}
    )
    num_search: int = field(default=1000, metadata={"help": "Examples of a search sample."})
    num_holdout: list[int] = field(default_factory=lambda: [2000, 10000], metadata={"help": "Examples of a holdout."})
    margins: list[float] = field(
        default_factory=lambda: [0.0, 2.0], metadata={"help": "Standard errors of margin for the choice; 0 is none."}
    )
    confidence: float = field(default=0.95, metadata={"help": "Of a certificate."})
    num_resamples: int = field(default=5000, metadata={"help": "Resamples."})
    seed: int = field(default=0, metadata={"help": "Of the resampling."})
    results_file: str | None = field(default=None, metadata={"help": "JSON file for the result."})


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


def resample(population: Population, arguments: StudyArguments) -> dict[tuple[float, float, int], list[tuple]]:
    """Return for every (requirement, margin, holdout size) the choices and whether each got its certificate."""
    generator = np.random.default_rng(arguments.seed)
    num_examples = population.is_right.shape[1]
    alpha = 1 - arguments.confidence

    @functools.cache
    def is_certified(counts: PairedCounts, required: float) -> bool:
        return exact_p_value(counts, required, alpha, is_decision=True) <= alpha

    outcomes: dict[tuple[float, float, int], list[tuple]] = {}
    for _ in tqdm(range(arguments.num_resamples), unit="resample"):
        searched = population.count_pairs(generator.integers(num_examples, size=arguments.num_search), slice(None))
        choices = {
            (required, margin): choose(population, searched, required, margin)
            for required in arguments.required_performance
            for margin in arguments.margins
        }
        for size in arguments.num_holdout:
            chosen = np.unique(list(choices.values()))
            held_out = population.count_pairs(generator.integers(num_examples, size=size), chosen)
            for (required, margin), choice in choices.items():
                counts = PairedCounts(*held_out[np.searchsorted(chosen, choice)].tolist(), size)
                outcomes.setdefault((required, margin, size), []).append((choice, is_certified(counts, required)))
    return outcomes


def summarise(population: Population, required: float, outcomes: list[tuple], allowed_rate: float) -> dict:
    choices, is_issued = (np.array(values) for values in zip(*outcomes, strict=True))
    accuracy = population.is_right.mean(axis=1)
    is_violation = (accuracy < required * accuracy[0])[choices]
    num_wrong = int((is_violation & is_issued).sum())
    test = stats.binomtest(num_wrong, len(choices), allowed_rate, alternative="greater")
    interval = stats.binomtest(num_wrong, len(choices)).proportion_ci()
    return {
        "choice_violates_rate": float(is_violation.mean()),
        "issued_rate": float(is_issued.mean()),
        "issued_wrongly_rate": num_wrong / len(choices),
        "issued_wrongly_interval": [interval.low, interval.high],
        "issued_wrongly_p_value": float(test.pvalue),
        "violates_among_issued_rate": num_wrong / int(is_issued.sum()) if is_issued.any() else None,
        "full_schedule_chosen_rate": float((choices == 0).mean()),
        "mean_latency_ratio": float(population.latency_ratio[choices].mean()),
    }


def print_rows(rows: list[dict]):
    print(
        "required  margin  holdout   choice violates   issued   issued wrongly [95 %]       p   among issued  latency"
    )
    for row in rows:
        low, high = row["issued_wrongly_interval"]
        among = row["violates_among_issued_rate"]
        print(
            f"{row['required_performance']:8.3f}  {row['margin']:6.1f}  {row['num_holdout']:7}  "
            f"{row['choice_violates_rate']:16.4f}  {row['issued_rate']:7.4f}   "
            f"{row['issued_wrongly_rate']:.4f} [{low:.4f} {high:.4f}]  {row['issued_wrongly_p_value']:6.3f}  "
            f"{'-' if among is None else format(among, '.4f'):>13}  {row['mean_latency_ratio']:7.3f}"
        )


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


def standard_errors_above(sample: tuple[np.ndarray, ...], required: float, num_classes: int) -> float:
    """How far the candidate's macro F1 is above the required one, by the linear approximation of both."""
    *models, references = sample
    gap, influence = 0.0, np.zeros(len(references))
    for predictions, sign in zip(models, (-required, 1.0), strict=True):
        is_right = predictions == references
        either = np.bincount(predictions, minlength=num_classes) + np.bincount(references, minlength=num_classes)
        inverse = 1 / np.maximum(either, 1)
        f1 = 2 * np.bincount(references[is_right], minlength=num_classes) * inverse
        scale = sign / (either > 0).sum()
        gap += scale * f1.sum()
        influence += scale * ((2 * is_right - f1[references]) * inverse[references] - (f1 * inverse)[predictions])
    return gap / (influence.std() * np.sqrt(len(references)) + 1e-12)


def is_certified(sample: tuple[np.ndarray, ...], required: float, alpha: float, num_classes: int, seed: int) -> bool:
    above = standard_errors_above(sample, required, num_classes)
    if not UNSURE[0] < above < UNSURE[1]:
        return above >= UNSURE[1]
    return TiltedBootstrap("macro_f1", *sample, NUM_DRAWN, seed).p_value(required) <= alpha


def measure_seconds(classes: Classes, required: float, size: int, arguments: StudyArguments) -> float:
    """Processor time of one whole certificate, the median of 3."""
    generator, seconds = np.random.default_rng(arguments.seed), []
    for _ in range(3):
        sample = classes.draw(classes.find_accuracy((1 + required) / 2), size, generator)
        start = time.process_time()
        certify("macro_f1", *sample, required, arguments.confidence)
        seconds.append(time.process_time() - start)
    return float(np.median(seconds))


def simulate(classes: Classes, required: float, size: int, arguments: StudyArguments) -> dict:
    """Draw samples of one population, for the level, for both powers, and for the time."""
    generator, alpha = np.random.default_rng(arguments.seed), 1 - arguments.confidence

    def count(share: float, number: int) -> np.ndarray:
        """Which samples are certified, and whether rightly, over the classes that occur."""
        accuracy = classes.find_accuracy(share)
        full_f1, f1 = classes.f1(FULL_ACCURACY), classes.f1(accuracy)
        outcomes = []
        for seed in range(number):
            sample = classes.draw(accuracy, size, generator)
            seen = np.unique(sample)
            keeps = f1[seen].mean() > required * full_f1[seen].mean() * (1 + 1e-9)
            outcomes.append((is_certified(sample, required, alpha, len(classes.shares), seed), keeps))
        return np.array(outcomes)

    is_issued, is_right = count(required, arguments.num_resamples).T
    num_power = max(1, arguments.num_resamples // POWER_SHARE)
    num_wrong, allowed = int((is_issued & ~is_right).sum()), 1 - arguments.confidence
    interval = stats.binomtest(num_wrong, len(is_issued)).proportion_ci()
    return {
        "issued_rate": float(is_issued.mean()),
        "issued_wrongly_rate": num_wrong / len(is_issued),
        "issued_wrongly_interval": [interval.low, interval.high],
        "issued_wrongly_p_value": stats.binomtest(num_wrong, len(is_issued), allowed, alternative="greater").pvalue,
        "issued_halfway_rate": float(count((1 + required) / 2, num_power)[:, 0].mean()),
        "issued_equal_rate": float(count(1.0, num_power)[:, 0].mean()),
        "seconds": measure_seconds(classes, required, size, arguments),
    }


def simulate_all(arguments: StudyArguments, num_classes: list[int]):
    settings = {
        "num_simulations": arguments.num_resamples,
        "num_simulations_power": max(1, arguments.num_resamples // POWER_SHARE),
        "num_resamples": NUM_DRAWN,
        "confidence": arguments.confidence,
        "seed": arguments.seed,
        "full_accuracy": FULL_ACCURACY,
        "errors_won_rate": WON,
    }
    rows = []
    if arguments.results_file is not None and Path(arguments.results_file).exists():
        record = json.loads(Path(arguments.results_file).read_text())
        if {name: record.get(name) for name in settings} == settings:
            rows = record["rows"]
    cells = itertools.product(("even", "1 / rank"), num_classes, arguments.num_holdout, arguments.required_performance)
    names = ("class_shares", "num_classes", "num_examples", "required_performance")
    for cell in tqdm(list(cells), unit="population"):
        named = dict(zip(names, cell, strict=True))
        if any(named.items() <= row.items() for row in rows):
            continue
        shares, number, size, required = cell
        weights = np.ones(number) if shares == "even" else 1 / np.arange(1.0, number + 1)
        rows.append(named | simulate(Classes(weights / weights.sum()), required, size, arguments))
        hardware = hardware_fingerprint()
        write_record(arguments.results_file, note=SIMULATION_NOTE, hardware=hardware, **settings, rows=rows)
        row = rows[-1]
        tqdm.write(
            f"{number} classes, shares {shares}, {size} examples, {required:g}: issued wrongly "
            f"{row['issued_wrongly_rate']:.4f}, halfway {row['issued_halfway_rate']:.2f}, equal "
            f"{row['issued_equal_rate']:.2f}, {row['seconds']:.2f} s"
        )


def main():
    (arguments,) = parse_arguments((StudyArguments,), __doc__)
    for required in arguments.required_performance:
        check_request(required, arguments.confidence, 1)
    sizes = [arguments.num_search, arguments.num_resamples, *arguments.num_holdout]
    if min(sizes) < 1:
        raise ValueError(f"--num_search, --num_resamples and --num_holdout must be at least 1, got {sizes}.")
    if arguments.simulated_classes is not None:
        if min(arguments.simulated_classes) < 2:
            raise ValueError(f"--simulated_classes must be at least 2 each, got {arguments.simulated_classes}.")
        return simulate_all(arguments, arguments.simulated_classes)
    if arguments.predictions is None:
        raise ValueError("give the cached --predictions, or --simulated_classes for a simulation without any.")
    population = load_population(arguments.predictions, arguments.reference_key)
    outcomes = resample(population, arguments)
    rows = [
        {"required_performance": required, "margin": margin, "num_holdout": size}
        | summarise(population, required, values, 1 - arguments.confidence)
        for (required, margin, size), values in outcomes.items()
    ]
    print_rows(rows)
    accuracy = population.is_right.mean(axis=1)
    write_record(
        arguments.results_file,
        note=NOTE,
        hardware=hardware_fingerprint(),
        num_population=population.is_right.shape[1],
        num_search=arguments.num_search,
        num_resamples=arguments.num_resamples,
        confidence=arguments.confidence,
        reference_key=population.keys[0],
        schedules={
            key: {"accuracy": float(score), "performance": float(score / accuracy[0]), "latency_ratio": float(ratio)}
            for key, score, ratio in zip(population.keys, accuracy, population.latency_ratio, strict=True)
        },
        rows=rows,
    )


if __name__ == "__main__":
    run_command(main)
