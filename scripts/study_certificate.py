r"""Resample cached predictions to see how often a choice, and its certificate, is wrong.

The cached examples are the population. Each resample draws a search sample and a holdout from it, with replacement and
independently, chooses the fastest schedule that keeps the required share on the search sample, and asks for its
certificate on the holdout. A choice violates the requirement if it keeps less over the whole population. A few minutes:

    python scripts/study_certificate.py --predictions runs/sst2/predictions.npz --num_search 1000 \
        --num_holdout 2000 10000 --results_file results/certificate_study.json

The file has `keys` (S,), the full schedule first or named by `--reference_key`, `predictions` (S, N) of class ids,
`references` (N,) and `latency_ratio` (S,).
"""

import functools
from dataclasses import dataclass, field
from zipfile import BadZipFile

import numpy as np
from scipy import stats
from tqdm import tqdm

from classformer_hf.command import parse_arguments, run_command, write_record
from classformer_hf.cost import hardware_fingerprint
from classformer_hf.search.certificate import check_request
from classformer_hf.search.paired import EXTRA_DISAGREEMENTS, PairedCounts, exact_p_value

NOTE = (
    "margin: standard errors by which the choice must keep more than required on the search sample, 0 is the plain "
    "rule; violates: the choice keeps less than required over the population; issued wrongly: it violates and gets a "
    "certificate; p_value: exact one-sided binomial test that certificates are issued wrongly more often than allowed."
)


@dataclass
class StudyArguments:
    predictions: str = field(metadata={"help": "The .npz file."})
    reference_key: str | None = field(default=None, metadata={"help": "Key of the full schedule; default the first."})
    required_performance: list[float] = field(
        default_factory=lambda: [0.95, 0.98, 0.99], metadata={"help": "Shares of the full schedule's accuracy to keep."}
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


def main():
    (arguments,) = parse_arguments((StudyArguments,), __doc__)
    for required in arguments.required_performance:
        check_request(required, arguments.confidence, 1)
    sizes = [arguments.num_search, arguments.num_resamples, *arguments.num_holdout]
    if min(sizes) < 1:
        raise ValueError(f"--num_search, --num_resamples and --num_holdout must be at least 1, got {sizes}.")
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
