"""What a search leaves behind: tables, a model folder that anyone can load, and a report that anyone can open."""

import filecmp
import itertools
import json
import logging
import shutil
import textwrap
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from redundancy_hf.cards import add_results, latency_results, name_dataset
from redundancy_hf.certificate import TUNED
from redundancy_hf.folders import digest, find_weights, follow_umask
from redundancy_hf.readings import copy_readings
from redundancy_hf.record import TASK_FILE, TaskRecord

from ..configuration_classformer import ClassformerConfig
from .figures import draw_pareto, layer_lengths
from .journal import Trial
from .loop import SearchResult, pareto_front
from .page import EXAMPLE_LENGTH
from .reference import describe_reference

logger = logging.getLogger(__name__)

CARD_TEMPLATE = Path(__file__).parent.parent / "model_card.md"
# entry of `search.json` that tells whether others have changed the card
CARD_DIGEST = "card_sha256"


def tabulate(result: SearchResult) -> list[dict[str, Any]]:
    """Put every trial into numbers, in their order; what is not known, or failed, is `None`."""
    rows = []
    for trial in result.trials:
        row: dict[str, Any] = {"number": trial.number, "origin": trial.origin, "status": trial.status}
        row |= {"seconds": trial.seconds, "key": trial.schedule.key, "chosen": trial is result.best}
        row |= {"error": trial.error, "latency_ratio": None}
        if trial.is_ok:
            row |= {"score": trial.score, "performance": result.performance(trial), **describe_latency(trial)}
            names = ("standard_error", "score_as_is", "flops_ratio", "num_epochs")
            row |= {name: trial.measurement.get(name) for name in names}
        rows.append(row)
    return rows


def describe_latency(trial: Trial) -> dict[str, Any]:
    """Put the latency of a trial into numbers; what is not known is `None`."""
    quartiles = trial.latency_quartiles
    return {
        "latency_ratio": trial.latency_ratio,
        "latency_ratio_quartiles": quartiles and list(quartiles),
        "latency_source": trial.latency_source,
        "speedup_schedule_only": 1 / trial.latency_ratio,
        "speedup_against_stock": trial.speedup_against_stock,
        "speedup_against_stock_range": trial.speedup_against_stock_range,
    }


def format_table(result: SearchResult) -> str:
    """Write all trials as a text table, fastest first; `*` marks the best one. `describe_table` says what it shows."""
    header = (
        f"{'':1} {'#':>3} {'schedule':<34} {'origin':<9} {'as is':>6} {'tuned':>6} {'% full':>6} "
        f"{'latency [quartiles]':>20} {'x full':>6} {'x stock':>7}"
    )
    lines = [header, "-" * len(header)]
    for row in sorted(tabulate(result), key=lambda row: row["latency_ratio"] or float("inf")):
        start = f"{'*' if row['chosen'] else ' '} {row['number'] + 1:>3} {row['key']:<34} {row['origin']:<9}"
        if row["status"] != "ok":
            lines.append(f"{start} failed: {row['error']}")
            continue
        span = " ".join(format(value, ".3f") for value in row["latency_ratio_quartiles"] or ()) or "-"
        latency = f"{row['latency_ratio']:.3f} [{span}]"
        lines.append(
            f"{start} {_number(row['score_as_is'], '.3f'):>6} {row['score']:>6.3f} {100 * row['performance']:>6.1f} "
            f"{latency:>20} {row['speedup_schedule_only']:>6.2f} "
            f"{_number(row['speedup_against_stock'], '.2f'):>7}"
        )
    return "\n".join(lines)


def describe_table(has_supernet: bool) -> str:
    """Say what stands in the table of `format_table`."""
    weights = "the checkpoint's weights (where its head is the task's)"
    if has_supernet:
        weights = "the supernet's weights (schedules that were only validated with those are in the report)"
    return textwrap.fill(
        f"as is, tuned: validation score of {weights} and after fine-tuning; latency: batch 1, relative to the full "
        "model in the same rounds; x full: speed-up by the schedule alone, the full model also computing only position "
        "0 in its last layer; x stock: against the model without that. Names give gamma per layer; a factor as large "
        "as the longest input keeps one position beside the first eta; - is not known.",
        width=118,
    )


def describe_finding(result: SearchResult, has_supernet: bool) -> str:
    """Say what was found or, where that is the full model, what can be done."""
    best, full = result.best, result.reference
    error, number = best.measurement.get("standard_error"), best.measurement.get("num_examples")
    score = f"{best.score:.3f} (standard error {error:.3f}, n = {number})" if error else f"{best.score:.3f}"
    if best.schedule != full.schedule:
        settings = [f"{key} {value}" for key, value in best.schedule.config.items() if key != "length_buckets"]
        return f"found: {', '.join(settings)}: {score}, {100 * result.performance(best):.1f} %"
    others = [trial for trial in result.trials if trial.is_ok and trial is not full]
    closest = max(others, key=lambda trial: trial.score, default=None)
    more = "--max_trials or --num_winners" if has_supernet else "--max_trials"
    text = "found: nothing that is faster and keeps so much, so the result is the full model"
    if closest is not None:
        text += f"; the closest, {closest.schedule.key}, is {1 / closest.latency_ratio:.2f}x as fast"
        text += f" and keeps {100 * result.performance(closest):.1f} %"
    return (
        f"{text}. Ask for less (--required_performance), let it try more ({more}) or train longer (--num_train_epochs)"
    )


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def summary(result: SearchResult, about: dict[str, Any]) -> dict[str, Any]:
    """Put a result into plain data, for `search.json`."""
    best, full = result.best, result.reference.measurement
    candidate = best.measurement.get("latency", {}).get("candidate", {})
    quartiles = best.latency_quartiles
    return {
        **about,
        "required_performance": result.required_performance,
        "required_score": result.required_performance * result.reference.score,
        "metric_name": best.measurement.get("metric_name"),
        "gamma": list(best.schedule.gamma),
        "eta": best.schedule.eta,
        "length_buckets": best.schedule.config.get("length_buckets", []),
        f"layer_lengths_for_{EXAMPLE_LENGTH}_tokens": layer_lengths(best.schedule, EXAMPLE_LENGTH),
        "score": best.score,
        "full_score": result.reference.score,
        "reference": full.get("reference", TUNED),
        "full_standard_error": full.get("standard_error"),
        "performance": result.performance(best),
        **describe_latency(best),
        "latency_p50_milliseconds": candidate.get("wall_p50_ms"),
        "latency_p90_milliseconds": candidate.get("wall_p90_ms"),
        "speedup_schedule_only_quartiles": quartiles and [1 / quartiles[1], 1 / quartiles[0]],
        "flops_ratio": best.measurement.get("flops_ratio"),
        "num_trials": len(result.trials),
        "num_failed_trials": sum(not trial.is_ok for trial in result.trials),
        "hardware": best.measurement.get("hardware"),
    }


def prune_models(models: Path, result: SearchResult):
    """Delete the trained models that are not on the Pareto front; the best one for any requirement is on it."""
    kept = {trial.schedule.key for trial in [*pareto_front(result.trials), result.reference, result.best]}
    for folder in models.glob("*"):
        if folder.name not in kept:
            shutil.rmtree(folder, ignore_errors=True)


def write_result_folder(
    result: SearchResult,
    model_folder: Path,
    output: Path,
    about: dict[str, Any],
    files: Mapping[str, Path],
    record: TaskRecord | None = None,
):
    """Write the folder that is the search's product; an earlier one is replaced only when the new one is whole.

    Where the model is the same, what others have put there stays: exports, certificates, a card with more scores. Where
    it is another, an earlier folder that holds such things is moved aside, because they are not of the new model.

    Args:
        result: What the search found.
        model_folder: The trained best model with its tokenizer.
        output: The folder to write: model, code, tokenizer, `search.json`, `pareto.png`, `task.json`, model card.
        about: Goes into `search.json` and the card.
        files: Of the search, by the name that they get; those that do not exist are left out.
        record: How the data were read.
    """
    is_same = _is_same_model(output, model_folder)
    staging = _stage(output, model_folder, record, is_same)
    for name, path in files.items():
        if path.exists():
            shutil.copy(path, staging / name)
    data = summary(result, about)
    draw_pareto(staging / "pareto.png", result, about["majority_score"])
    write_card(data, staging, record)
    _write_summary(data, staging)
    if is_same:
        _renew(output, staging)
    else:
        _replace(output, staging, files)


def _stage(output: Path, model_folder: Path, record: TaskRecord | None, is_same: bool = False) -> Path:
    """Copy a model, or its configuration alone, from which the card is written, to where its folder is prepared."""
    staging = output.with_name(output.name + ".partial")
    shutil.rmtree(staging, ignore_errors=True)
    if is_same:
        staging.mkdir()
        shutil.copy2(model_folder / "config.json", staging)
    else:
        shutil.copytree(model_folder, staging)
        follow_umask(staging)
    if record is not None:
        record.write(staging)
    return staging


def _write_summary(data: dict[str, Any], folder: Path):
    """Write `search.json`, with the digest of the card beside it."""
    data[CARD_DIGEST] = digest(folder / "README.md")
    (folder / "search.json").write_text(json.dumps(data, indent=2) + "\n")


def write_full_folder(
    result: SearchResult, model_folder: Path, output: Path, about: dict[str, Any], record: TaskRecord | None = None
):
    """Write the folder of the full model, which the result is compared with; where it is there already, it stays."""
    if _is_same_model(output, model_folder) and (output / "README.md").exists():
        if record is not None and not (output / TASK_FILE).exists():
            record.write(output)
        return
    staging, full = _stage(output, model_folder, record), result.reference.measurement
    add_results(staging, [_validation_result(about["dataset"], full, record)], _hub_name(about))
    data = {name: full.get(name) for name in ("metric_name", "score", "standard_error", "num_examples")}
    _write_summary({"dataset": about["dataset"], **data, "reference": full.get("reference", TUNED)}, staging)
    _replace(output, staging, ())


def _validation_result(dataset: str, measurement: Mapping[str, Any], record: TaskRecord | None) -> EvalResult:
    """Say a validation score as a model-index does."""
    return EvalResult(
        task_type="text-classification",
        metric_type=measurement["metric_name"],
        metric_value=round(measurement["score"], 4),
        **name_dataset(dataset, record.arguments if record else {}),
        dataset_split="validation",
    )


def _hub_name(about: Mapping[str, Any]) -> str | None:
    """Give the base model's name; a local folder's is all that is known of it, and may be another's on the Hub."""
    return about["base_model"] if "/" in (about["base_model"] or "") else None


def _is_same_model(folder: Path, other: Path) -> bool:
    # a copy keeps the time of the last change, by which two files of one size are told apart without reading them
    names = ["config.json", *(path.name for path in find_weights(other))]
    return filecmp.cmpfiles(folder, other, names)[0] == names


def _has_foreign_card(folder: Path) -> bool:
    """Say whether somebody has written into the card, or into that of a search which did not note its digest."""
    card = folder / "README.md"
    if not card.exists():
        return False
    with suppress(OSError, ValueError):
        return digest(card) != json.loads((folder / "search.json").read_text()).get(CARD_DIGEST)
    return True


def _renew(output: Path, staging: Path):
    """Renew the search's own files in a folder; all others stay."""
    if _has_foreign_card(output):
        logger.info("%s has been changed since the search wrote it, and stays.", output / "README.md")
        (staging / "README.md").unlink()
    for path in staging.iterdir():
        path.replace(output / path.name)
    staging.rmdir()


def _replace(output: Path, staging: Path, search_files: Iterable[str]):
    """Put a new model's folder in the place of the earlier one, which is kept if anything was added to it."""
    added = []
    if output.exists():
        copy_readings(output, staging)
        names = {path.name for path in output.iterdir()} - {path.name for path in staging.iterdir()}
        added = sorted(names - set(search_files)) + ["README.md"] * _has_foreign_card(output)
    candidates = (output.with_name(f"{output.name}-earlier-{number}") for number in itertools.count(1))
    old = next(path for path in candidates if not path.exists()) if added else output.with_name(f"{output.name}.old")
    if added:
        logger.warning(
            "%s holds another model now. The one before is in %s, with what was added to it since: %s. Make that again "
            "for the new one by the commands that made it, such as `redundancy-hf export` or "
            "`redundancy-hf evaluate`.",
            output,
            old,
            ", ".join(added),
        )
    else:
        shutil.rmtree(old, ignore_errors=True)
    # at no moment is there neither the old nor the new one
    if output.exists():
        output.rename(old)
    staging.rename(output)
    if not added:
        shutil.rmtree(old, ignore_errors=True)


def write_card(data: dict[str, Any], folder: Path, record: TaskRecord | None = None):
    """Render the model card from the content of `search.json` and of `task.json`."""
    results = [_validation_result(data["dataset"], data, record)]
    found = {quantile: data[f"latency_{quantile}_milliseconds"] for quantile in ("p50", "p90")}
    if data["hardware"] and None not in found.values():
        results += latency_results("text-classification", data["dataset"], found, data["hardware"])
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="text-classification",
        tags=["classformer", "sequence-length-reduction", "text-classification"],
        base_model=_hub_name(data),
        model_name=folder.name.removesuffix(".partial"),
        eval_results=results,
    )
    # an input as long as the model reads
    config = ClassformerConfig.from_pretrained(folder)
    tokens = min(EXAMPLE_LENGTH, config.max_position_embeddings - (config.pad_token_id or 0) - 1)
    example: Any = {"example_tokens": tokens, "example_lengths": config.layer_lengths(tokens, cls_only=True)}
    example["reference_text"] = describe_reference(data)
    example["max_length"] = record.arguments.get("max_length") if record else None
    card = ModelCard.from_template(card_data, template_path=str(CARD_TEMPLATE), **data, **example)
    card.save(folder / "README.md")
