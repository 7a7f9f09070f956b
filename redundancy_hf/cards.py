"""Metadata of a model card, checked as the Hub does before it takes a push."""

import difflib
import re
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard

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


__all__ = ["LICENCES", "find_card_defects", "find_licence_defect", "load_card"]
