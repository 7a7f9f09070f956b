"""What cascades save over single schedules, as `redundancy-hf cascade` finds them."""

from frame import describe_runs, format_table, ratio

from classformer_hf.search import Schedule


def table(records: dict) -> str:
    """Cascades against single schedules with the same weights."""
    rows = [
        [record["dataset"].upper(), f"{100 * row['required_performance']:g}", kind, *describe_part(row, kind)]
        for record in records.values()
        for row in record["rows"]
        for kind in ("single", "cascade")
    ]
    header = ["dataset", "asked, %", "", "schedule", "expected, of full", "time, of single", "twice, %"]
    header += ["validation", "test (% of full)", "certificate, %"]
    examples = "; ".join(
        f"{record['dataset'].upper()} {record['num_examples']['validation']} and {record['num_examples']['test']}"
        for record in records.values()
    )
    schedules = " and ".join(f"{r['num_schedules']} ({r['dataset'].upper()})" for r in records.values())
    note = (
        f"Chosen on validation among {schedules} schedules, reported on test ({examples} examples). "
        "Expected: by the latency table over the validation texts, relative to the full model; time: measured on texts "
        "of the test split relative to the single schedule, median and quartiles; twice: texts that are classified "
        "again. Certificate: what share of the full model's score is certain with 95 % confidence where the one asked "
        f"for is refused, corrected for all rows of the dataset. Batch 1. {describe_runs(records)}"
    )
    return format_table(header, rows, note)


def describe_part(row: dict, kind: str) -> list[str]:
    """Give what is found of the single schedule or the cascade of a requirement."""
    part, cascade = row[kind], row[kind]["settings"]["cascade"]
    if kind == "cascade" and not (cascade or {}).get("margin"):
        return ["none is faster", *[""] * 6]
    schedule, certificate = f"`{Schedule.from_config(part['settings']).key}`", part["certificate"]
    if cascade:
        schedule = f"`{Schedule.from_config(cascade).key}`, below {cascade['margin']:.2f} {schedule}"
    return [
        *(schedule, f"{part['expected_ratio']:.3f}", ratio(part["latency_to_single"])),
        *(f"{100 * part['classified_twice']:.0f}" if kind == "cascade" else "", f"{part['validation_score']:.3f}"),
        f"{part['test_score']:.3f} ({100 * part['test_score'] / row['full']['test_score']:.1f})",
        "issued" if certificate["is_issued"] else f"{100 * certificate['performance_lower_bound']:.1f}",
    ]
