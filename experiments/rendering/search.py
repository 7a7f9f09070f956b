"""Views of searches, evaluations and what they are worth."""

from frame import describe_machine, format_table, interval, percent

TAUS = ("tau_supernet_individual", "tau_ceiling")


def supernet_table(record: dict) -> str:
    """Supernet against individual fine-tuning, schedule by schedule, then tau, its ceiling, the winner and the cost."""
    header = ["schedule", "operations", "supernet", *(f"individual, seed {seed}" for seed in record["seeds"])]
    rows = [
        [
            f"`{row['key']}`",
            f"{row['flops_ratio']:.2f}",
            f"{row['supernet']:.3f}",
            *(f"{value:.3f}" for value in row["individual"]),
        ]
        for row in record["schedules"]
    ]
    taus = [interval(*(record[name][key] for key in ("tau", "low", "high"))) for name in TAUS]
    each = " and ".join(f"{one['tau']:.2f}" for one in record["tau_supernet_each_seed"])
    winner = record["winner"]
    note = (
        f"{record['dataset'].upper()}, {record['metric_name']} on {record['num_evaluation_examples']} examples "
        f"(majority {record['majority_score']:.3f}), {record['num_train_examples']} training examples, the same epochs "
        f"on both sides. **Kendall's tau, supernet against individual: {taus[0]}** ({each} with single seeds); its "
        f"ceiling, seed against seed: {taus[1]}; intervals: bootstrap over the schedules, 95 %. A supernet costs the "
        f"training operations of {percent(record['cost']['fraction_of_50_trials'])} % of 50 fine-tunings. "
    )
    if winner is not None:
        twins = " and ".join(f"{score:.3f}" for score in winner["twins"])
        note += (
            f"The search's winner `{winner['key']}`, after {winner['num_epochs']:g} epoch of its own, has "
            f"{winner['score']:.3f}; fine-tuned individually {twins}: **gap {percent(winner['gap'], 2)} points** "
            f"(standard error {percent(winner['standard_error'], 2)}, {winner['standard_error_kind']}). "
        )
    return format_table(header, rows) + f"\n{note}Command: `{record['command']}`\n"


def race_table(record: dict) -> str:
    """Evaluations to 99 % of the optimum, by sampler and requirement."""
    rows = []
    for required, result in record["required"].items():
        for name, summary in result["samplers"].items():
            reach = summary["evaluations_to_99%"]
            numbers = ["more" if reach[key] is None else f"{reach[key]:.0f}" for key in ("median", "low", "high")]
            rows.append(
                [
                    f"{percent(float(required), 0)} %",
                    name,
                    f"{numbers[0]} [{numbers[1]}, {numbers[2]}]",
                    percent(reach["reached"], 0),
                    str(reach["runs"]),
                    f"{summary['reward']['median'][9]:.3f}",
                    f"{summary['reward']['median'][-1]:.3f}",
                ]
            )
    header = [
        "keep",
        "sampler",
        "evaluations to 99 % of the optimum",
        "runs there, %",
        "runs",
        "reward at 10",
        "at the end",
    ]
    sizes = [one["schedules"] for result in record["required"].values() for one in result["tables"]]
    note = (
        f"{record['table']}: {sizes[0]} schedules; median and 95 % interval over runs, `more` is more than "
        f"{record['max_trials']}; reward of equation 5.4, median. Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


def certificate_table(record: dict) -> str:
    """How often the plain rule's choice is wrong, and how often a wrong one gets its certificate."""
    rows = [
        [
            f"{percent(row['required_performance'], 0)} %",
            f"{row['margin']:g}",
            str(row["num_holdout"]),
            percent(row["choice_violates_rate"]),
            percent(row["issued_rate"]),
            interval(*(100 * value for value in (row["issued_wrongly_rate"], *row["issued_wrongly_interval"]))),
            f"{row['issued_wrongly_p_value']:.2f}",
        ]
        for row in record["rows"]
    ]
    header = ["keep", "margin", "holdout", "choice violates, %", "issued, %", "issued wrongly, % [95 %]", "p above 5 %"]
    note = (
        f"{record['num_resamples']} resamples of a population of {record['num_population']} texts and "
        f"{len(record['schedules'])} schedules, {record['num_search']} texts to choose on; "
        f"{record['hardware']['device_name']}. "
        f"Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


def certificate_simulation_table(record: dict) -> str:
    """How often simulated candidates are certified: those at the requirement, those above it, equally good ones."""
    populations: dict[tuple, list[dict]] = {}
    for row in record["rows"]:
        key = (row["class_shares"], row["num_classes"], row["num_examples"])
        populations.setdefault(key, []).append(row)
    rows = []
    for (shares, num_classes, num_examples), cells in populations.items():
        wrong, halfway, equal = (
            [cell[name] for cell in cells]
            for name in ("issued_wrongly_rate", "issued_halfway_rate", "issued_equal_rate")
        )
        limits = [cell["issued_wrongly_interval"][1] for cell in cells]
        wrong = [f"{percent(rate)} [{percent(limit)}]" for rate, limit in zip(wrong, limits, strict=True)]
        power = [" / ".join(percent(rate, 0) for rate in rates) for rates in (halfway, equal)]
        seconds = f"{max(cell['seconds'] for cell in cells):.1f}"
        rows.append([shares, str(num_classes), str(num_examples), *wrong, *power, seconds])
    required = [f"{percent(cell['required_performance'], 0)} %" for cell in cells]
    header = [
        *("share of classes", "classes", "examples"),
        *(f"wrongly at {value}, % [at most]" for value in required),
        *("certified halfway to 1, %", "certified where equal, %", "s"),
    ]
    rates = [row["issued_wrongly_rate"] for row in record["rows"]]
    lowest = min(row["issued_wrongly_p_value"] for row in record["rows"])
    note = (
        f"Macro F1 with {percent(record['confidence'], 0)} % confidence, {record['num_simulations']} samples per cell "
        f"({record['num_simulations_power']} for either power, at {' / '.join(required)}); in brackets the upper end "
        f"of the exact 95 % interval. Issued wrongly over all {len(rates)} cells: "
        f"{percent(sum(rates) / len(rates), 2)} %; the smallest p-value of more than "
        f"{percent(1 - record['confidence'], 0)} % is {lowest:.2g}, of {len(rates)}. "
        f"Seconds: one certificate, the slowest of the three. {describe_machine(record['hardware'])}. "
        f"Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


def certificate_sentence(record: dict) -> str:
    """What the one reading of a test split said of every candidate."""
    sentences = [model["certificate"]["sentence"] for model in record["models"] if "certificate" in model]
    warning = f" But {record['warning']}" if "warning" in record else ""
    return "".join(f"- {record['dataset'].upper()}: {sentence}{warning}\n" for sentence in sentences)
