"""Render the JSON files in results/ into the documents, so that no number is typed by hand.

A document marks a place with `<!-- results: NAME.json VIEW -->` and `<!-- end -->`; what stands between is replaced.
Views: search_table, search_headline, evaluation_table, evaluation_headline and load_table.

    python scripts/render_results.py           # write
    python scripts/render_results.py --check   # change nothing, exit 1 if a document differs
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from classformer_hf.command import parse_arguments, run_command

BLOCK = re.compile(r"(<!-- results: (\S+) (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


@dataclass
class RenderArguments:
    documents: list[str] = field(
        default_factory=lambda: ["README.md", "docs/thesis.md"], metadata={"help": "Documents with marked places."}
    )
    results: str = field(default="results", metadata={"help": "Folder of the JSON files."})
    check: bool = field(default=False, metadata={"help": "Write nothing; fail if a document differs."})


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def interval(middle: float, low: float, high: float, digits: int = 2) -> str:
    return f"{middle:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def search_table(record: dict) -> str:
    """All trials, fastest first, then what was chosen."""
    rows = []
    for row in sorted(record["trials"], key=lambda row: row["latency_ratio"] or float("inf")):
        if row["status"] != "ok":
            rows.append([str(row["number"]), row["key"], row["origin"], "failed", "", "", "", ""])
            continue
        ratio = interval(row["latency_ratio"], *row["latency_ratio_quartiles"], digits=3)
        rows.append(
            [
                f"{'**' if row['chosen'] else ''}{row['number']}{'**' if row['chosen'] else ''}",
                f"`{row['key']}`",
                row["origin"],
                f"{row['score']:.4f}",
                f"{100 * row['performance']:.1f}",
                ratio,
                f"{row['speedup_schedule_only']:.2f}",
                f"{row['speedup_against_stock']:.2f}",
            ]
        )
    summary, hardware = record["summary"], record["summary"]["hardware"]
    lengths = next(value for name, value in summary.items() if name.startswith("layer_lengths"))
    note = (
        f"Validation {summary['metric_name']}, n = {summary['num_validation_examples']}, seed {record['seed']}; the "
        f"majority class has {summary['majority_score']:.4f}, the requirement was {summary['required_score']:.4f}; "
        "latency relative to the full model in the same rounds (median and quartiles), batch 1, "
        f"{hardware['threads']} thread, {hardware['dtype']}, {hardware['device_name']}. Bold: chosen for "
        f"{100 * summary['required_performance']:g} %; of 512 tokens its layers pass on {lengths}. "
        f"Command: `{record['command']}`\n"
    )
    header = ["trial", "gamma and eta", "proposed by", "score", "% of full", "latency ratio", "x full", "x stock"]
    return table(header, rows) + "\n" + note


def search_headline(record: dict) -> str:
    """One sentence for the README."""
    data = record["summary"]
    low, high = data["speedup_schedule_only_quartiles"]
    return (
        f"Measured: {data['base_model']} on {data['dataset'].upper()}, asked for "
        f"{100 * data['required_performance']:g} % of the full model's {data['metric_name']}: "
        f"**{data['speedup_against_stock']:.2f}x** faster than the stock model "
        f"({data['speedup_schedule_only']:.2f}x [{low:.2f}, {high:.2f}] by the schedule alone) at "
        f"{100 * data['performance']:.1f} % on the validation split, batch 1 on one CPU thread "
        f"({data['num_trials']} trials, n = {data['num_validation_examples']}, one seed).\n"
    )


def evaluation_headline(record: dict) -> str:
    """One sentence that compares the last model with the first."""
    first, *_, last = record["models"]
    errors = f"{last['standard_error']:.3f} and {first['standard_error']:.3f}"
    kept = f"{100 * last['score'] / first['score']:.1f} % is kept there"
    return (
        f"On the test split (n = {record['num_examples']}), which no search saw, the searched model has "
        f"{last['metric_name']} {last['score']:.3f} and the full one {first['score']:.3f} (standard errors {errors}): "
        f"{kept}. The majority class has {record['majority_score']:.3f}.\n"
    )


def evaluation_table(record: dict) -> str:
    rows = [
        [row["model"], f"{row['score']:.4f}", f"{row['standard_error']:.4f}", str(record["num_examples"])]
        for row in record["models"]
    ]
    rows.append(["majority class", f"{record['majority_score']:.4f}", "", str(record["num_examples"])])
    metric = record["models"][0]["metric_name"]
    return table([f"model, {record['dataset']} {record['split']}", metric, "standard error", "n"], rows)


def load_table(record: dict) -> str:
    """Relative latency of five schedules, alone and beside busy processes."""
    rows = []
    for name, quiet in record["quiet"]["latencies"].items():
        busy = record["busy"]["latencies"][name]
        rows.append(
            [
                name,
                interval(quiet["ratio"], quiet["ratio_low"], quiet["ratio_high"], digits=3),
                interval(busy["ratio"], busy["ratio_low"], busy["ratio_high"], digits=3),
                f"{busy['wall_ratio']:.3f}",
                f"{quiet['wall_p50_ms']:.0f}",
                f"{busy['wall_p50_ms']:.0f}",
            ]
        )
    header = ["schedule", "ratio before", "ratio, two busy processes", "by wall clock", "before, ms", "busy, ms"]
    loads = [f"{record[state]['load_average_before'][0]:.1f}" for state in ("quiet", "busy")]
    note = (
        f"{record['sequence_length_tokens']} tokens, batch 1, one thread, {record['hardware']['device_name']}; "
        f"ratios of processor time, median and quartiles of {record['quiet']['latencies']['full']['rounds']} rounds; "
        f"load average before: {loads[0]} and {loads[1]}. Order kept by processor time: {record['is_cpu_order_kept']}, "
        f"by wall clock: {record['is_wall_order_kept']}. Command: `{record['command']}`\n"
    )
    return table(header, rows) + "\n" + note


VIEWS: dict[str, Callable[[dict], str]] = {
    "search_table": search_table,
    "search_headline": search_headline,
    "evaluation_headline": evaluation_headline,
    "evaluation_table": evaluation_table,
    "load_table": load_table,
}


def render(text: str, results: Path) -> str:
    """Fill the marked places of a document.

    Raises:
        ValueError: A result is missing, or has no such view.
    """

    def fill(match: re.Match) -> str:
        start, name, view, end = match.groups()
        try:
            record = json.loads((results / name).read_text())
        except (OSError, json.JSONDecodeError) as error:
            raise ValueError(f"{results / name} cannot be read: {error}.") from error
        if view not in VIEWS:
            raise ValueError(f"there is no view {view}, only {sorted(VIEWS)}.")
        try:
            return start + VIEWS[view](record) + end
        except KeyError as error:
            raise ValueError(f"{name} does not suit the view {view}: it has no {error}.") from error

    return BLOCK.sub(fill, text)


def main() -> int:
    (arguments,) = parse_arguments([RenderArguments], __doc__)
    stale = []
    for document in map(Path, arguments.documents):
        text = document.read_text()
        rendered = render(text, Path(arguments.results))
        if rendered != text:
            stale.append(document)
            if not arguments.check:
                document.write_text(rendered)
                print(f"rendered {document}")
    if arguments.check and stale:
        print(f"differs from results/: {', '.join(map(str, stale))}; run scripts/render_results.py")
        return 1
    return 0


if __name__ == "__main__":
    run_command(main)
