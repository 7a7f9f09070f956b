"""How a csv file is written, guessed from its content: encoding, separator, names of columns, types.

Nobody writes these down, and the usual reader takes "NA", "None" and "null" for missing and fails where a column of
numbers holds words later on. Everything is read as text, only an empty field is missing, and what all values of a
column are decides its type. What is guessed is said.
"""

import codecs
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pandas
import pyarrow.compute
from datasets import Dataset, Features, Value

from .columns import MAX_CLASSES, NUM_PROBED, TEXT_NAMES
from .labels import LABEL_COLUMNS, is_number

# what a command says on standard output
screen = logging.getLogger("screen")

SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}
MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# bytes of a text that are no ASCII: in Western Europe's languages a few, in other scripts nearly all letters
MAX_WESTERN_SHARE = 0.2
KNOWN_NAMES = {*LABEL_COLUMNS, *TEXT_NAMES}
TYPES = {
    "int64": r"^\s*-?\d{1,18}\s*$",
    "float64": r"^\s*-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\s*$",
    "bool": r"^([Tt]rue|TRUE|[Ff]alse|FALSE)$",
}


def guess_csv_options(files: list[Path]) -> dict[str, Any]:
    """Say how `load_dataset` reads csv files of one kind, and log what is unusual.

    Args:
        files: Of one split.

    Raises:
        ValueError: The encoding cannot be guessed, rows have more fields than the first one, or that one is no line of
            names, and what the columns are cannot be told.
    """
    file, encoding = files[0], guess_encoding(files)
    separator, first = _find_separator(file, encoding)
    options: dict[str, Any] = {"sep": separator, "encoding": encoding}
    if _is_headerless(first):
        columns = _name_columns(file.name, first)
        screen.info(f"{file.name}: no line of names; its columns are read as {', '.join(columns)}.")
        options |= {"header": None, "column_names": columns}
    else:
        columns = list(pandas.read_csv(file, nrows=0, **options).columns)
    # a type that the first rows suggest may not hold later
    options["features"] = Features({column: Value("string") for column in columns})
    return {**options, "keep_default_na": False, "na_values": [""]}


def guess_encoding(files: list[Path]) -> str:
    """Tell how text files are encoded: as the first bytes say, in UTF-8, or in Windows-1252, which is logged.

    Raises:
        ValueError: It cannot be guessed.
    """
    for file in files:
        start = next(_read_blocks(file), b"")
        if encoding := next((encoding for mark, encoding in MARKS.items() if start.startswith(mark)), None):
            return encoding
        if _decodes(file, "utf-8"):
            continue
        share = max(float(np.mean(np.frombuffer(block, np.uint8) > 127)) for block in _read_blocks(file))
        if share > MAX_WESTERN_SHARE or not _decodes(file, "cp1252"):
            raise ValueError(
                f"{file.name} is not UTF-8, and which encoding it has cannot be guessed; save it as UTF-8, as "
                f"`iconv -f ENCODING -t UTF-8` does."
            )
        screen.info(f"{file.name}: not UTF-8, read as Windows-1252 (Latin-1); if that is wrong, save it as UTF-8.")
        return "cp1252"
    return "utf-8"


def type_columns(splits: Mapping[str, Dataset]) -> dict[str, Dataset]:
    """Give columns whose values are all numbers or all true and false that type, the same one in all splits."""
    typed = dict(splits)
    for column in next(iter(splits.values())).column_names if splits else ():
        having = [name for name, split in splits.items() if column in split.column_names]
        values = {name: splits[name].with_format("arrow")[:][column] for name in having}
        dtype = None if column.lower() in TEXT_NAMES else infer_type(list(values.values()))
        for name in having if dtype else ():
            order = typed[name].column_names
            array = pyarrow.compute.cast(pyarrow.compute.utf8_trim_whitespace(values[name]), dtype)
            typed[name] = typed[name].remove_columns(column).add_column(column, array).select_columns(order)
    return typed


def infer_type(parts: Sequence[Any]) -> str | None:
    """Name the type that all values of a column have, in Arrow arrays of text; `None` where they are words."""
    if all(part.null_count == len(part) for part in parts):
        return None

    def fits(pattern: str) -> bool:
        # what is missing does not count
        return all(pyarrow.compute.all(pyarrow.compute.match_substring_regex(part, pattern)).as_py() for part in parts)

    return next((dtype for dtype, pattern in TYPES.items() if fits(pattern)), None)


def _read_blocks(file: Path) -> Iterator[bytes]:
    with fsspec.open(str(file), "rb", compression="infer") as stream:
        while block := stream.read(1 << 20):
            yield block


def _decodes(file: Path, encoding: str) -> bool:
    try:
        # no text has zeros, but in two or four bytes a letter
        return all("\0" not in text for text in codecs.iterdecode(_read_blocks(file), encoding))
    except UnicodeDecodeError:
        return False


def _find_separator(file: Path, encoding: str) -> tuple[str, pandas.DataFrame]:
    """Find what parts the first rows into several fields, if anything does; with these rows, as text."""
    usual = "\t" if ".tsv" in file.name.lower() else ","
    single, reason = None, ""
    for separator in (usual, *(other for other in SEPARATORS if other != usual)):
        settings: dict[str, Any] = {"sep": separator, "encoding": encoding, "header": None, "nrows": NUM_PROBED}
        try:
            table = pandas.read_csv(file, dtype=str, keep_default_na=False, **settings)
        except pandas.errors.ParserError as error:
            reason = str(error).strip() if separator == usual else reason
            continue
        if table.shape[1] > 1:
            if separator != usual:
                screen.info(f"{file.name}: fields are parted by {SEPARATORS[separator]}.")
            return separator, table
        single = table if separator == usual else single
    if single is None:
        raise ValueError(f"{reason}; a text that holds commas, semicolons or tabs must stand in quotes")
    return usual, single


def _is_headerless(table: pandas.DataFrame) -> bool:
    """Tell whether the first row looks like the others and unlike names."""
    first, rest = [str(value).strip() for value in table.iloc[0]], table.iloc[1:]
    if not len(rest) or any(name.lower() in KNOWN_NAMES for name in first):
        return False
    if len(first) == 1:
        return len(first[0].split()) > 3
    are_numbers = [is_number(value) for value in first]
    if are_numbers != [_holds_numbers(rest[column]) for column in rest]:
        return False
    return any(are_numbers) or any(_holds_classes(rest[column], first[column]) for column in rest)


def _name_columns(name: str, table: pandas.DataFrame) -> list[str]:
    """Call the columns `text` and `label`, of which one must be of few values that come again, or of numbers.

    Raises:
        ValueError: Which is which cannot be told.
    """
    columns = list(table)
    if len(columns) == 1:
        return ["text"]
    labels = [column for column in columns if _holds_numbers(table[column])]
    if not labels:
        # of a few texts that come again and again there are still more
        fewest = min(table[column].nunique() for column in columns)
        labels = [column for column in columns if table[column].nunique() == fewest]
    if len(columns) != 2 or len(labels) != 1:
        raise ValueError(
            f"its first line, {', '.join(table.iloc[0])}, does not seem to name its columns; put a line of names above "
            "it, such as text,label"
        )
    return ["label" if column in labels else "text" for column in columns]


def _holds_numbers(values: pandas.Series) -> bool:
    return bool(values.map(is_number).mean() > 0.5)


def _holds_classes(values: pandas.Series, value: str) -> bool:
    """Tell whether a value is one of a few that come again."""
    return values.nunique() <= min(MAX_CLASSES, len(values) / 2) and value in set(values)
