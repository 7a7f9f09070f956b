"""What a model card says: the text it begins with, results and sections, and metadata checked as the Hub does."""

import difflib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from .folders import EXPORT_INDEX, is_export
from .splits import GLUE_REPOSITORY, GLUE_TASKS

# https://huggingface.co/docs/hub/repositories-licenses, as the Hub names them where it refuses another
LICENCES = tuple(
    """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    other""".split()
)
REPOSITORY = re.compile(r"(?!.*(--|\.\.))[A-Za-z0-9][\w.-]*(/[A-Za-z0-9_][\w.-]*)?")
# what may be one text or several, and what is one
TEXTS = ("license", "language", "tags", "datasets", "metrics", "base_model")
SINGLE_TEXTS = ("library_name", "pipeline_tag", "license_name", "license_link")
# data sets that come with a library
EMBEDDED = ("standard_library", "digits")
GENERATED = "[More Information Needed]"
PLACEHOLDER = "path/or/name/of/this/model"
PIPELINES = {"SequenceClassification": "text-classification", "MaskedLM": "fill-mask"}
PIPELINES |= {"ImageClassification": "image-classification"}
LOADING = {
    "text-classification": ('pipeline("text-classification", model=name, trust_remote_code=True)', "pipeline"),
    "image-classification": ('pipeline("image-classification", model=name, trust_remote_code=True)', "pipeline"),
    "fill-mask": ("AutoModelForMaskedLM.from_pretrained(name, trust_remote_code=True)", "AutoModelForMaskedLM"),
    None: ("AutoModel.from_pretrained(name, trust_remote_code=True)", "AutoModel"),
}
CASCADE = (
    "Every text is classified with `gamma = {gamma}`, `eta = {eta}` first; where the probabilities of its two "
    "likeliest classes differ by less than {margin:g}, the schedule above classifies it again. Same weights; leave it "
    "out with "
    "`AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, cascade=None)`."
)
EXPORT_LOADING = "from transformers import pipeline\n\nfrom redundancy_hf.runtimes import ExportedClassifier\n"
EXPORT_CALL = (
    "model = ExportedClassifier.from_pretrained(folder, num_threads=1)\n"
    'classify = pipeline("text-classification", model=model, tokenizer=folder)'
)


def load_card(path: Path) -> Any:
    """Read a model card.

    Raises:
        ValueError: Its metadata cannot be read.
    """
    try:
        return ModelCard.load(path)
    except Exception as error:  # of the card's parser, of many kinds
        raise ValueError(f"README.md has unreadable metadata: {' '.join(str(error).split())}") from error


def find_card_defects(path: Path) -> list[str]:
    """Name what the Hub would refuse of a card's metadata."""
    try:
        data = load_card(path).data.to_dict()
    except ValueError as error:
        return [str(error)]
    defects = [f"{key} must be a text, got {data[key]!r}" for key in SINGLE_TEXTS if not _is_text(data.get(key, "-"))]
    for key in TEXTS:
        values = data.get(key, [])
        for value in values if isinstance(values, list) else [values]:
            defect = _find_value_defect(key, value) if _is_text(value) else f"{key} must be texts, got {value!r}"
            defects += [defect] if defect else []
    return [f"README.md has metadata that the Hub refuses: {'; '.join(defects)}"] if defects else []


def find_licence_defect(licence: str) -> str | None:
    """Say why the Hub would refuse a licence."""
    if licence in LICENCES:
        return None
    similar = difflib.get_close_matches(licence.lower(), LICENCES, n=1)
    hint = f"did you mean {similar[0]}?" if similar else "for one that it does not list, write other"
    return f"an identifier that the Hub lists, as apache-2.0, got {licence!r}; {hint}"


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip())


def _find_value_defect(key: str, value: str) -> str | None:
    if key == "license" and (defect := find_licence_defect(value)):
        return f"license must be {defect}"
    if key in ("datasets", "base_model") and not REPOSITORY.fullmatch(value):
        return f"{key} must name repositories on the Hub, as owner/name, got {value!r}"
    if key == "language" and value != value.lower():
        return f"language must be a code in lower case, as en, got {value!r}"
    return None


def find_task(config: dict) -> str | None:
    """Name the pipeline of a saved model's configuration, if its head has one."""
    (architecture, *_) = config.get("architectures") or [""]
    return next((tag for end, tag in PIPELINES.items() if architecture.endswith(end)), None)


def _new_card(folder: Path, title: str) -> ModelCard:
    config, schedule = json.loads((folder / "config.json").read_text()), ""
    if is_export(folder):
        about = describe_export(json.loads((folder / EXPORT_INDEX).read_text()))
        code = f'{EXPORT_LOADING}\nfolder = "{title}"\n{EXPORT_CALL}'
    else:
        about = f"A {(config.get('architectures') or ['model'])[0]}."
        call, name = LOADING[find_task(config)]
        code = f'from transformers import {name}\n\nname = "{PLACEHOLDER}"\nmodel = {call}'
        if "gamma" in config:
            schedule = (
                f"\n## Schedule\n\n`gamma = {config['gamma']}`, `eta = {config['eta']}`: layer l keeps its first eta "
                "query positions and then every gamma[l]-th one, so that the sequence gets shorter with depth. Pad "
                "inputs on the right.\n"
            )
    text = f"# {title}\n\n{about[0].upper()}{about[1:]}\n\n```python\n{code}\n```\n{schedule}"
    return ModelCard(f"---\n{ModelCardData().to_yaml()}\n---\n\n{text}")


def complete_card(folder: Path, repo_id: str, license: str | None = None, base_model: str | list[str] | None = None):
    """Write a folder's model card if it has none, and fill in what its metadata lacks.

    Args:
        folder: With a config.json.
        repo_id: Name on the Hub, which the card tells how to load.
        license: As the metadata name it; `None` leaves what there is.
        base_model: Where the model comes from; `None` leaves what there is.

    Raises:
        ValueError: The card is damaged, or there is no licence in it and none given.
    """
    path, config = folder / "README.md", json.loads((folder / "config.json").read_text())
    title = repo_id.rpartition("/")[2]
    card = load_card(path) if path.is_file() else _new_card(folder, title)
    if GENERATED in card.text:
        # of `push_to_hub`, which writes a form to be filled in
        card.text = _new_card(folder, title).text
    data: Any = card.data
    data.library_name = data.library_name or "transformers"
    data.pipeline_tag = data.pipeline_tag or find_task(config)
    data.tags = data.tags or [config["model_type"]]
    data.license, data.base_model = license or data.license, base_model or data.base_model
    if data.eval_results:
        data.model_name = title
    card.text = card.text.replace(PLACEHOLDER, repo_id)
    if license and (defect := find_licence_defect(license)):
        raise ValueError(f"--license must be {defect}.")
    if not data.license:
        raise ValueError(
            "the model card names no licence: give one, as --license apache-2.0; a base model's binds you."
        )
    card.save(path)
    if cascade := config.get("cascade"):
        write_section(folder, "Cascade", CASCADE.format(**cascade))
    if exports := sorted(path.parent for path in folder.rglob(EXPORT_INDEX)):
        write_section(folder, "Other runtimes", _describe_exports(folder, exports, repo_id))


def _describe_exports(folder: Path, exports: list[Path], repo_id: str) -> str:
    """Say how to use exported graphs inside a model's folder, and what changes by them."""
    names = [path.relative_to(folder).as_posix() for path in exports]
    code = (
        f"from huggingface_hub import snapshot_download\n{EXPORT_LOADING}\n"
        f'folder = snapshot_download("{repo_id}") + "/{names[0]}"\n{EXPORT_CALL}'
    )
    lines = [f"- `{name}`: {describe_export(json.loads((folder / name / EXPORT_INDEX).read_text()))}" for name in names]
    return "\n".join([f"```python\n{code}\n```\n", *lines])


def describe_export(index: dict[str, Any]) -> str:
    """Say what an export is and what changes by it, from the content of its index."""
    report, sentences = index.get("report", {}), [f"graphs for {index['runtime']}{', int8' if index['int8'] else ''}."]
    sentences += [f"Against the weights: {report['verdict']}."] if report else []
    sentences += [f"In batches instead of alone: {report['batch_verdict']}."] if report else []
    if index["int8"]:
        sentences.append(
            "Activations are scaled by the largest of a batch, so that it takes one text at a time unless "
            "`from_pretrained` is told `batch_int8=True`."
        )
    return " ".join(sentences)


def name_dataset(name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Say by the fields of an `EvalResult` which data set was read, from the flags of a command.

    Only one on the Hub is named as one: a local folder may be called like somebody else's there, so that its type is
    the word for what nobody can look up, and its name tells several apart.
    """
    source, config_name = (arguments.get(key) for key in ("dataset_name", "dataset_config_name"))
    if source in GLUE_TASKS:
        source, config_name = GLUE_REPOSITORY, source
    elif source is None or source in EMBEDDED or Path(source).expanduser().exists():
        source, config_name = "unknown", name
    return {"dataset_type": source, "dataset_name": name, "dataset_config": config_name}


def latency_results(
    kind: str, dataset: str, milliseconds: dict[str, float], hardware: dict[str, Any], batch_size: int = 1
) -> list[EvalResult]:
    """Say latencies, by quantile as "p50" and "p90", as a model-index does, with the hardware's fingerprint."""
    where = f"{hardware['device_name']}, {hardware['dtype']}, {hardware['threads']} thread(s)"
    return [
        EvalResult(
            task_type=kind,
            **name_dataset(dataset, {}),
            metric_type=f"latency_{quantile}_milliseconds",
            metric_name=f"latency {quantile}, ms, batch {batch_size}, on {where}",
            metric_value=round(value, 3),
        )
        for quantile, value in milliseconds.items()
    ]


def write_card(folder: Path, template: Path, result: EvalResult, values: dict[str, Any], **data: Any):
    """Write the card of a model that was trained here from a template of the text and its values.

    `result` is what validation gave, `data` more metadata.
    """
    card_data = ModelCardData(library_name="transformers", model_name=folder.name, eval_results=[result], **data)
    ModelCard.from_template(card_data, template_path=str(template), **values).save(folder / "README.md")


def write_section(folder: Path, title: str, text: str):
    """Write a section at the end of a folder's card, in the place of an older one of that title."""
    path = folder / "README.md"
    card = ModelCard.load(path)
    kept = re.sub(rf"\n## {re.escape(title)}\n.*?(?=\n## |\Z)", "", card.text, flags=re.DOTALL)
    card.text = f"{kept.rstrip()}\n\n## {title}\n\n{text}\n"
    card.save(path)


def add_results(folder: Path, results: list[EvalResult], base_model: str | None = None):
    """Add results to the model-index of a folder's card, each in the place of an older one of the same measurement.

    A card is written if there is none; it names the checkpoint that the model was trained from, if that is given.

    Raises:
        ValueError: The card is damaged.
    """
    path = folder / "README.md"
    # a folder that is being written will be called without the ending
    name = folder.resolve().name.removesuffix(".partial")
    if not path.is_file():
        _new_card(folder, name).save(path)
    card = load_card(path)

    def measurement(result: EvalResult) -> tuple:
        # a latency's name tells what it was measured on
        where = result.metric_name if str(result.metric_type).startswith("latency") else None
        return result.task_type, result.dataset_name, result.dataset_split, result.metric_type, where

    new = {measurement(result) for result in results}
    kept = [result for result in card.data.eval_results or [] if measurement(result) not in new]
    card.data.model_name = card.data.model_name or name
    card.data.eval_results = [*kept, *results]
    card.data.base_model = base_model or card.data.base_model
    card.save(path)
