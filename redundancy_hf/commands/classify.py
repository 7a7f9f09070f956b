"""Classify texts or images, or align images, with nothing but a saved model folder.

A fresh process starts in an empty directory with empty Hugging Face caches and no network. It refuses to import this
project's packages, so what loads is the code inside the folder. The last step of the demos:

    redundancy-hf classify runs/demo/best --texts "def main(): ..." "def load(path): ..."
    redundancy-hf classify runs/demo-vision/shared/seed-42 --images one.png two.png
    redundancy-hf classify runs/demo-avae/avae/seed-42 --align turned.png
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..command import parse_call
from ..folders import is_export
from ..isolation import run_elsewhere
from ..record import read_max_length

DEFAULT_TEXTS = (
    'def get_charset(self):\n    """Return the charset of the message, from its Content-Type header."""\n'
    "    header = self.get('content-type')\n    if header is None:\n        return 'us-ascii'\n"
    "    return header.params.get('charset', 'us-ascii').lower()\n",
    "async def read_all(self, reader, timeout):\n    loop = get_running_loop()\n    future = loop.create_future()\n"
    "    handle = loop.call_later(timeout, future.cancel)\n    try:\n        return await reader.read()\n"
    "    finally:\n        handle.cancel()\n",
)


def classify(
    folder: str,
    texts: Sequence[str] | None = None,
    images: Sequence[str] | None = None,
    align: Sequence[str] | None = None,
) -> list[dict[str, Any]]:
    """Classify or align by a saved folder in a fresh process that has nothing but the folder.

    Args:
        folder: Saved model folder, with its tokenizer and code; also as first argument, without the flag.
        texts: Texts to classify. By default two short Python functions.
        images: Image files to classify, instead of texts.
        align: Image files to turn upright by an autoencoder; results lie beside them as *_aligned.png.

    Returns:
        Of every input "label", the likeliest or by how much it was turned, and "score", probability or loss.

    Raises:
        ValueError: A file is missing, or the folder does not load or run by itself.
    """
    path, texts = _find_folder(folder), texts or DEFAULT_TEXTS
    job, task = "classify", dict[str, Any]()
    if align is not None:
        job, inputs = "align", _find_images(align)
    elif images is not None:
        inputs, task = _find_images(images), {"pipeline": "image-classification", "options": {"top_k": 1}}
    else:
        # as in training, where a longer text than any there may be read worse
        length = read_max_length(path)
        options = {"truncation": True, **({"max_length": length} if length else {})}
        inputs, task = list(texts), {"pipeline": "text-classification", "options": options}
    try:
        results = run_elsewhere(job, path, inputs=inputs, **task)
    except RuntimeError as error:
        raise ValueError(f"{path} does not load or run without this project's packages: {error}") from error
    print(f"Loaded {path} in a fresh process, from an empty directory and without this project's packages:")
    for text, result in zip(align or images or texts, results, strict=True):
        print(f"  {result['label']:<18} {result['score']:.2f}  {' '.join(text.split())[:80]}")
    return results


def _find_folder(name: str) -> Path:
    """Return the absolute path of a model folder."""
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a saved model folder, but {folder} does not exist; train or search one.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must be a saved model folder, but {folder} has no config.json; name another.")
    if is_export(folder):
        raise ValueError(f"{folder} is an export, which only this project's packages open; name the model's folder.")
    return folder


def _find_images(names: Sequence[str]) -> list[str]:
    """Return the absolute paths of images."""
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise ValueError(f"--images and --align take image files, but {missing[0]} does not exist; check the path.")
    return [str(Path(name).resolve()) for name in names]


def main() -> None:
    classify(**parse_call(classify, __doc__, positional="folder"))
