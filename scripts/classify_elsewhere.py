"""Classify texts or images, or align images, as someone would who has nothing but a saved model folder.

A fresh process starts in an empty directory with empty Hugging Face caches and no network. It refuses to import this
project's packages, so what loads is the code inside the folder. The last step of the demos:

    python scripts/classify_elsewhere.py runs/demo/best --texts "def main(): ..." "def load(path): ..."
    python scripts/classify_elsewhere.py runs/demo-vision/shared/seed-42 --images one.png two.png
    python scripts/classify_elsewhere.py runs/demo-avae/avae/seed-42 --align turned.png
"""

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

from transformers import HfArgumentParser

OUR_PACKAGES = ("classformer_hf", "vision_hf", "avae_hf")

# all that the other process runs; it reads its task as JSON and answers in JSON
ELSEWHERE = """
import json, sys

task = json.load(sys.stdin)

class RefuseOurPackages:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in task["refused"]:
            raise ImportError(f"the folder must load without {name}")

sys.meta_path.insert(0, RefuseOurPackages())
try:
    from transformers import AutoImageProcessor, AutoModel, pipeline

    if task["pipeline"] == "align":
        import math
        import PIL.Image

        model = AutoModel.from_pretrained(task["folder"], trust_remote_code=True).eval()
        processor = AutoImageProcessor.from_pretrained(task["folder"], trust_remote_code=True)
        if "rotation" not in model.config.transforms:
            raise ValueError("the model searches no rotation, so that there is nothing to align")
        images = [PIL.Image.open(path) for path in task["inputs"]]
        pixels = processor(images, return_tensors="pt")["pixel_values"]
        found = model.search_pose(pixels)
        for path, image in zip(task["inputs"], model.align(pixels, found.alpha)):
            values = image[0] * processor.image_std + processor.image_mean if processor.do_normalize else image[0]
            picture = PIL.Image.fromarray((values.clamp(0, 1) * 255).round().byte().numpy())
            picture.save(path.rpartition(".")[0] + "_aligned.png")
        names = ["turned by {:.0f} degrees".format(math.degrees(alpha[0])) for alpha in found.alpha]
        answer = {"results": [{"label": n, "score": loss} for n, loss in zip(names, found.loss.tolist())]}
    else:
        classify = pipeline(task["pipeline"], model=task["folder"], trust_remote_code=True, device="cpu")
        answer = {"results": classify(task["inputs"], **task["options"])}
except Exception as error:
    answer = {"error": str(error).strip() or type(error).__name__}
with open(task["answer"], "w") as stream:
    json.dump(answer, stream)
"""

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
    """What to classify; the model folder is the positional argument."""

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
    """Return the absolute path of a model folder or stop with one sentence."""
    folder = Path(name).resolve()
    if not folder.is_dir():
        sys.exit(f"`folder` must be a saved model folder, but {folder} does not exist; train or search one first.")
    if not (folder / "config.json").is_file():
        sys.exit(f"`folder` must be a saved model folder, but {folder} has no config.json.")
    return folder


def find_images(names: list[str]) -> list[str]:
    """Return the absolute paths of images or stop with one sentence."""
    missing = [name for name in names if not Path(name).is_file()]
    if missing:
        sys.exit(f"`--images` and `--align` must be image files, but {missing[0]} does not exist.")
    return [str(Path(name).resolve()) for name in names]


def classify_elsewhere(folder: Path, inputs: list[str], pipeline: str = "text-classification") -> list[dict]:
    """Run the pipeline of a folder in a fresh process far from this project.

    Args:
        folder: Absolute path of the saved model.
        inputs: Texts, or absolute paths of images, to classify.
        pipeline: "text-classification", "image-classification" or "align".

    Returns:
        One {"label": str, "score": float} per input, the most likely one; of "align" the angle and the loss.

    Raises:
        RuntimeError: The folder does not load or does not classify.
    """
    with tempfile.TemporaryDirectory() as caches, tempfile.TemporaryDirectory() as empty:
        # variables such as HF_HUB_CACHE or PYTHONPATH would lead back home
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_")) and name != "PYTHONPATH"
        }
        environment |= {
            "HF_HOME": caches,
            "HF_MODULES_CACHE": str(Path(caches, "modules")),
            "HF_HUB_OFFLINE": "1",
        }
        answer = Path(caches, "answer.json")
        options = {"truncation": True} if pipeline == "text-classification" else {"top_k": 1}
        task = {"folder": str(folder), "pipeline": pipeline, "inputs": inputs, "options": options}
        task |= {"refused": OUR_PACKAGES, "answer": str(answer)}
        process = subprocess.run(
            [sys.executable, "-c", ELSEWHERE],
            input=json.dumps(task),
            text=True,
            cwd=empty,
            env=environment,
            capture_output=True,
        )
        if not answer.is_file():
            last_words = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise RuntimeError(last_words[0])
        result = json.loads(answer.read_text())
    if "error" in result:
        raise RuntimeError(result["error"].splitlines()[0])
    return [one[0] if isinstance(one, list) else one for one in result["results"]]


def main() -> None:
    parser = HfArgumentParser(ElsewhereArguments, description=__doc__)
    parser.add_argument("folder", help="Saved model folder, with its tokenizer and code.")
    arguments, positional = parser.parse_args_into_dataclasses()
    folder = find_folder(positional.folder)
    if arguments.align is not None:
        inputs, shown, kind = find_images(arguments.align), arguments.align, "align"
    elif arguments.images is None:
        shown, kind = [" ".join(text.split()) for text in arguments.texts], "text-classification"
        inputs = arguments.texts
    else:
        inputs, shown, kind = find_images(arguments.images), arguments.images, "image-classification"
    try:
        results = classify_elsewhere(folder, inputs, kind)
    except RuntimeError as error:
        sys.exit(f"{folder} does not load or run without this project's packages: {error}")
    print(f"Loaded {folder} in a fresh process, from an empty directory and without this project's packages:")
    for opening, result in zip(shown, results, strict=True):
        print(f"  {result['label']:<18} {result['score']:.2f}  {opening[:80]}")


if __name__ == "__main__":
    main()
