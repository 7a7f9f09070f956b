"""Classify texts or images, or align images, as someone would who has nothing but a saved model folder.

A fresh process starts in an empty directory with empty Hugging Face caches and no network. It refuses to import this
project's packages, so what loads is the code inside the folder. The last step of the demos:

    redundancy-hf classify runs/demo/best --texts "def main(): ..." "def load(path): ..."
    redundancy-hf classify runs/demo-vision/shared/seed-42 --images one.png two.png
    redundancy-hf classify runs/demo-avae/avae/seed-42 --align turned.png
"""

from dataclasses import dataclass, field
from pathlib import Path

from ..command import parse_arguments
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


@dataclass
class ElsewhereArguments:
    folder: str = field(
        metadata={"help": "Saved model folder, with its tokenizer and code; also as first argument, without the flag."}
    )
    texts: list[str] = field(
        default_factory=lambda: list(DEFAULT_TEXTS),
        metadata={"help": "Texts to classify; two short Python functions by default."},
    )
    images: list[str] | None = field(default=None, metadata={"help": "Image files to classify, instead of texts."})
    align: list[str] | None = field(
        default=None,
        metadata={"help": "Image files to turn upright by an autoencoder; results lie beside them as *_aligned.png."},
    )


def find_folder(name: str) -> Path:
    """Return the absolute path of a model folder.

    Raises:
        ValueError: It is none.
    """
    folder = Path(name).resolve()
    if not folder.is_dir():
        raise ValueError(f"`folder` must be a saved model folder, but {folder} does not exist; train or search one.")
    if not (folder / "config.json").is_file():
        raise ValueError(f"`folder` must be a saved model folder, but {folder} has no config.json; name another.")
    if is_export(folder):
        raise ValueError(f"{folder} is an export, which only this project's packages open; name the model's folder.")
    return folder


def find_images(names: list[str]) -> list[str]:
    """Return the absolute paths of images.

    Raises:
        ValueError: One is missing.
    """
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        raise ValueError(f"--images and --align take image files, but {missing[0]} does not exist; check the path.")
    return [str(Path(name).resolve()) for name in names]


def main() -> None:
    (arguments,) = parse_arguments((ElsewhereArguments,), __doc__, positional="folder")
    folder = find_folder(arguments.folder)
    job, task = "classify", {}
    if arguments.align is not None:
        job, inputs, shown = "align", find_images(arguments.align), arguments.align
    elif arguments.images is not None:
        inputs, shown = find_images(arguments.images), arguments.images
        task = {"pipeline": "image-classification", "options": {"top_k": 1}}
    else:
        inputs, shown = arguments.texts, [" ".join(text.split()) for text in arguments.texts]
        # as in training, where a longer text than any there may be read worse
        length = read_max_length(folder)
        options = {"truncation": True, **({"max_length": length} if length else {})}
        task = {"pipeline": "text-classification", "options": options}
    try:
        results = run_elsewhere(job, folder, inputs=inputs, **task)
    except RuntimeError as error:
        raise ValueError(f"{folder} does not load or run without this project's packages: {error}") from error
    print(f"Loaded {folder} in a fresh process, from an empty directory and without this project's packages:")
    for opening, result in zip(shown, results, strict=True):
        print(f"  {result['label']:<18} {result['score']:.2f}  {opening[:80]}")
