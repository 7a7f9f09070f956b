"""Which columns of a data set hold its text: what is read unasked, and what never is, because it may tell the label."""

from datasets import Dataset, Value
from dateutil.parser import parse as parse_date

from .labels import is_number, refuse_missing

# the names of published pairs, the first text first
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentence_1", "sentence_2"),
    ("sentence_a", "sentence_b"),
    ("premise", "hypothesis"),
    ("question1", "question2"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question", "answer"),
    ("query", "document"),
    ("query", "passage"),
    ("claim", "evidence"),
    ("text1", "text2"),
    ("text_1", "text_2"),
    ("text_a", "text_b"),
)
TEXTS = ("sentence", "text")
TEXT_NAMES = {*TEXTS, *(name for pair in PAIRS for name in pair)}
# a column of more different values is no list of classes
MAX_CLASSES = 50
# rows that tell whether a column holds numbers or dates
NUM_PROBED = 1000


def find_text_columns(
    rows: Dataset, label_column: str | None = None, given: tuple[str, ...] = (), max_columns: int = 2
) -> tuple[str, ...]:
    """Choose the columns of text: those given, else a pair or a text of a known name, else the only one that is left.

    Two columns of other names are never taken for a pair, and with `max_columns=1` none is read. Never chosen is what
    names the label, and, unless its name is known, an identifier, a date or a number.

    Raises:
        ValueError: No column can be the text, or several can.
    """
    if given:
        return given
    strings = [name for name in rows.column_names if name != label_column and is_text(rows, name)]
    reasons = {name: reason for name in strings if (reason := _find_reason_against(rows, name, label_column))}
    left = {name.lower(): name for name in strings if name not in reasons}
    pairs = [pair for pair in PAIRS if set(pair) <= set(left)]
    if len(pairs) == 1 and max_columns == 2:
        return tuple(left[name] for name in pairs[0])
    if not pairs:
        known = [left[name] for name in TEXTS if name in left]
        if known or len(left) == 1:
            return (*known, *left.values())[:1]
    candidates = f"one of {', '.join(left.values())} may be" if left else "none seems to be"
    refused = "".join(f"; {name} is not taken unasked ({reason})" for name, reason in reasons.items())
    pair = ", and the second text of a pair by `text_pair_column`" if max_columns == 2 else ""
    raise ValueError(
        f"which column is the text? Of {rows.column_names} {candidates}{refused}; name it by `text_column`{pair}, "
        "or call it text."
    )


def check_columns(split_name: str, split: Dataset, text_columns: tuple[str, ...], label_column: str) -> None:
    """Check that a split has all columns and that every text is one.

    Raises:
        ValueError: A column is missing, is no text, or holds a missing text.
    """
    for column in (*text_columns, label_column):
        if column not in split.column_names:
            raise ValueError(
                f"column {column!r} is not in split {split_name!r}, found {split.column_names}; all splits need the "
                "same columns, name them by `text_column`, `text_pair_column` and `label_column`."
            )
    for column in text_columns:
        if not is_text(split, column):
            raise ValueError(
                f"text column {column!r} of split {split_name!r} must hold strings, got {split.features[column]}; name "
                "another by `text_column` or `text_pair_column`."
            )
        refuse_missing("text", column, split_name, split[column][:])


def is_text(rows: Dataset, column: str) -> bool:
    """Tell whether a column holds strings."""
    feature = rows.features[column]
    return isinstance(feature, Value) and feature.dtype in ("string", "large_string")


def describe_columns(rows: Dataset, text_columns: tuple[str, ...], label_column: str | None = None) -> str:
    """Say which columns are read, and which are not."""
    read = " and ".join(text_columns)
    labels = [] if label_column is None else [label_column]
    unread = [name for name in rows.column_names if name not in (*text_columns, *labels)]
    return (
        f"text from {read}"
        + "".join(f", labels from {name}" for name in labels)
        + (f", not read: {', '.join(unread)}" if unread else "")
    )


def _find_reason_against(rows: Dataset, name: str, label_column: str | None) -> str | None:
    """Say why a column is not the text."""
    if label_column is not None and _names_label(rows, name, label_column):
        return "names the label"
    if name.lower() in TEXT_NAMES:
        return None
    probed = [text for text in rows.select_columns(name)[:NUM_PROBED][name] if text]
    if probed and all(is_number(text) for text in probed):
        return "numbers"
    if probed and all(_is_date(text) for text in probed):
        return "dates"
    return "an identifier" if _is_identifier(rows, name) else None


def _names_label(rows: Dataset, name: str, label_column: str) -> bool:
    """Tell whether a column has few values, which come again and again, one for every label."""
    pairs = rows.select_columns([name, label_column]).to_pandas().astype(str).drop_duplicates()
    are_paired = pairs[name].is_unique and pairs[label_column].is_unique
    return are_paired and len(pairs) <= min(MAX_CLASSES, len(rows) / 2)


def _is_identifier(rows: Dataset, name: str) -> bool:
    """Tell whether all values are different and without blanks; scripts that write without blanks are no ASCII."""
    texts = rows.select_columns(name).to_pandas()[name]
    return bool(texts.is_unique and texts.str.fullmatch(r"\s*[!-~]+\s*").eq(True).all())


def _is_date(text: str) -> bool:
    if not any(character.isdigit() for character in text):
        return False
    try:
        parse_date(text, ignoretz=True)
    except (ValueError, OverflowError):
        return False
    return True
