"""Views of searches, evaluations and what they are worth."""

from frame import describe_machine, format_table, interval, percent

TAUS = ("tau_supernet_individual", "tau_ceiling")


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
    return format_table(header, rows) + "\n" + note


def search_headline(record: dict) -> str:
    """One sentence for the README."""
    data = record["summary"]
    low, high = data["speedup_schedule_only_quartiles"]
    trials = f"{data['num_trials']} trials"
    if "num_search_trials" in data:
        trials = f"{data['num_search_trials']} schedules validated, {data['num_trials']} fine-tuned"
    return (
        f"Measured: {data['base_model']} on {data['dataset'].upper()}, asked for "
        f"{100 * data['required_performance']:g} % of the full model's {data['metric_name']}: "
        f"**{data['speedup_against_stock']:.2f}x** faster than the stock model "
        f"({data['speedup_schedule_only']:.2f}x [{low:.2f}, {high:.2f}] by the schedule alone) at "
        f"{100 * data['performance']:.1f} % on the validation split, batch 1 on one CPU thread "
        f"({trials}, n = {data['num_validation_examples']}, one seed).\n"
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
    return format_table([f"model, {record['dataset']} {record['split']}", metric, "standard error", "n"], rows)


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
    return format_table(header, rows) + "\n" + note


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


def latency_check(record: dict) -> str:
    """One row: the table against direct measurement beside direct against direct."""
    ours, direct = record["table_against_direct"], record["direct_against_direct"]
    rows = [
        [
            name,
            percent(one["mean_relative_error"]),
            percent(one["max_relative_error"]),
            f"{one['kendall_tau']:.3f}",
            str(one["num_pairs"]),
        ]
        for name, one in (("table against direct", ours), ("direct against direct", direct))
    ]
    header = ["comparison", "mean error, %", "largest error, %", "Kendall's tau", "pairs"]
    note = (
        f"{len(record['schedules'])} schedules, {record['busy_processes']} busy processes beside (load average before: "
        f"{record['load_average_before'][0]:.1f}), table built in {record['table']['build_seconds']:.0f} s; pairs "
        f"whose latencies differ by more than 5 %; {record['hardware']['device_name']}, "
        f"{record['hardware']['threads']} thread, {record['hardware']['dtype']}. Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note


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


def cross_table(record: dict) -> str:
    """Speed-up of the winner for one target, timed on another."""
    names = list(record["ratios"])
    rows = []
    for target in record["targets"]:
        cells = []
        for other in names:
            one = record["ratios"][target["name"]][other]
            cells.append(interval(*(1 / one[key] for key in ("ratio", "high", "low"))))
        seconds = f"{target['answer_seconds']:.0f}" if target["is_reused"] else "trained"
        texts = f"{min(target['lengths'])} to {max(target['lengths'])}"
        about = [f"{target['threads']}, {target['dtype']}, {texts}", f"`{target['winner']}`"]
        rows.append([target["name"], *about, percent(target["performance"]), seconds, *cells])
    note = (
        f"Speed-up over the full model on that target, median and quartiles of {record['rounds']} rounds in which all "
        "winners took turns. Tokens: of the texts that are timed. Kept: of the full model's score on the validation "
        "split. Answered: seconds from the latency table to the candidates, before their fine-tuning; trained: the "
        "search whose weights the others reuse. "
        f"{record['hardware']['device_name']}. Command: `{record['command']}`\n"
    )
    header = ["winner for", "threads, dtype, tokens", "schedule", "kept, %", "answered, s"]
    return format_table([*header, *(f"timed on {name}" for name in names)], rows) + "\n" + note


def policy_table(record: dict) -> str:
    """A schedule per length bucket against the best single one."""
    rows = []
    for row in record["requirements"]:
        single, policy = row["single"]["test"], row["policy"]["test"]
        rows.append(
            [
                f"{percent(row['required_performance'], 0)} %",
                f"`{single['key']}`",
                f"{single['latency_ratio']:.3f}",
                percent(single["performance"]),
                f"`{policy['key']}`",
                f"{policy['latency_ratio']:.3f}",
                percent(policy["performance"]),
                f"{100 * row['test_latency_change']:+.1f}",
            ]
        )
    header = ["keep", "single", "latency", "kept, %", "by length", "latency", "kept, %", "change, %"]
    quantiles = " / ".join(f"{value:.0f}" for value in record["length_quantiles_tokens"])
    note = (
        f"Chosen on {record['num_validation_examples']} texts, reported on {record['num_test_examples']} others; "
        f"latency by the table, relative to the full model, {record['hardware']['device_name']}; lengths at "
        f"5/25/50/75/95 %: {quantiles} tokens. "
        f"Command: `{record['command']}`\n"
    )
    return format_table(header, rows) + "\n" + note
