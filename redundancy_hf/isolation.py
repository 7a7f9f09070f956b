"""Use a saved folder as someone would who has nothing else: in a fresh process, far from this project.

The process starts in an empty directory with empty Hugging Face caches and no network, and refuses to import this
project's packages, so that what loads is the code inside the folder. This file is also the program that it runs.
"""

import importlib.abc
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

TIMEOUT_SECONDS = 3600


def run_elsewhere(job: str, folder: Path, **task: Any) -> Any:
    """Do a job of this module, "verify", "classify" or "align", in a fresh process, with arguments that JSON can hold.

    Raises:
        RuntimeError: The folder does not load or does not run there, or the job has no such argument.
    """
    # not above: as a program this file is in no package
    from .__main__ import PACKAGES

    with tempfile.TemporaryDirectory() as caches, tempfile.TemporaryDirectory() as empty:
        # variables such as HF_HUB_CACHE or PYTHONPATH would lead back home, and secrets are no business of the folder's
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "HUGGINGFACE_", "TRANSFORMERS_", "PYTHON"))
            and not any(word in name for word in ("TOKEN", "SECRET", "PASSWORD", "API_KEY"))
        }
        environment |= {"HF_HOME": caches, "HF_MODULES_CACHE": str(Path(caches, "modules")), "HF_HUB_OFFLINE": "1"}
        answer = Path(caches, "answer.json")
        process = subprocess.run(
            # -P: the directory of this file holds modules of ours
            [sys.executable, "-P", str(Path(__file__).resolve()), str(answer)],
            input=json.dumps({"job": job, "folder": str(folder.resolve()), "packages": PACKAGES, **task}),
            text=True,
            cwd=empty,
            env=environment,
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
        )
        if not answer.is_file():
            last_words = process.stderr.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            raise RuntimeError(last_words[0])
        result = json.loads(answer.read_text())
    if "error" in result:
        raise RuntimeError(result["error"].splitlines()[0])
    return result["answer"]


class RefuseOurPackages(importlib.abc.MetaPathFinder):
    """Raise on our packages, which an editable installation makes importable from everywhere."""

    def __init__(self, packages: list[str]):
        self.packages = packages

    def find_spec(self, fullname, path=None, target=None):
        if fullname.partition(".")[0] in self.packages:
            raise ImportError(f"the folder must load without {fullname}")


def classify(folder: str, inputs: list[str], pipeline: str, options: dict) -> list[dict]:
    """Run the folder's pipeline on texts or paths of images; give the likeliest label of each, with its score."""
    import transformers

    run: Any = transformers.pipeline(pipeline, model=folder, trust_remote_code=True, device="cpu")  # type: ignore
    return [one[0] if isinstance(one, list) else one for one in run(inputs, **options)]


def align(folder: str, inputs: list[str]) -> list[dict]:
    """Turn images to their canonical pose and save them beside the given ones; give angle and loss of each."""
    import PIL.Image
    from transformers import AutoImageProcessor, AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
    if "rotation" not in model.config.transforms:
        raise ValueError("the model searches no rotation, so that there is nothing to align")
    pixels = processor([PIL.Image.open(path) for path in inputs], return_tensors="pt")["pixel_values"]
    found = model.search_pose(pixels)
    for path, image in zip(inputs, model.align(pixels, found.alpha), strict=True):
        values = image[0] * processor.image_std + processor.image_mean if processor.do_normalize else image[0]
        picture = PIL.Image.fromarray((values.clamp(0, 1) * 255).round().byte().numpy())
        picture.save(path.rpartition(".")[0] + "_aligned.png")
    return [
        {"label": f"turned by {math.degrees(alpha[0]):.0f} degrees", "score": loss}
        for alpha, loss in zip(found.alpha, found.loss.tolist(), strict=True)
    ]


def make_inputs(config: Any) -> dict[str, Any]:
    """Make inputs of a model's forward, always the same ones.

    Args:
        config: Of a text model (`vocab_size`), an image model (`image_size`, `num_channels`) or an autoencoder
            (`pose_dim`), whose pose is given, because what a search finds may depend on the last bit.

    Raises:
        ValueError: The configuration is of none of these.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    if hasattr(config, "pose_dim"):
        shape = (2, config.in_channels, *[config.image_size] * config.spatial_dims)
        alpha = torch.rand(2, config.pose_dim, generator=generator)
        return {"pixel_values": torch.rand(shape, generator=generator), "alpha": alpha}
    if hasattr(config, "vocab_size"):
        length = min(16, getattr(config, "max_position_embeddings", 34) - 2)
        # padding and its like have low ids
        input_ids = torch.randint(config.vocab_size // 2, config.vocab_size, (2, length), generator=generator)
        attention_mask = torch.ones_like(input_ids)
        input_ids[1, length // 2 :], attention_mask[1, length // 2 :] = config.pad_token_id or 0, 0
        return {"input_ids": input_ids, "attention_mask": attention_mask}
    if hasattr(config, "image_size") and hasattr(config, "num_channels"):
        size = config.image_size if isinstance(config.image_size, (list, tuple)) else [config.image_size] * 2
        return {"pixel_values": torch.randn(1, config.num_channels, *size, generator=generator)}
    raise ValueError(f"a {config.model_type} model is neither of texts nor of images, so that no input is known for it")


def check_tokenizer(tokenizer: Any, vocab_size: int):
    """Refuse a tokenizer that knows less than half of a model's words; one that has lost its file loads all the same.

    Raises:
        ValueError: Says so.
    """
    if len(tokenizer) < vocab_size / 2:
        raise ValueError(
            f"the tokenizer knows {len(tokenizer)} words and the model {vocab_size}: a file of the tokenizer is missing"
        )


def compute_output(model: Any, inputs: dict[str, Any]) -> Any:
    """Give the first output of a model in evaluation mode, as float32 on the CPU."""
    import torch

    was_training, parameter = model.training, next(model.parameters())
    moved = {
        name: value.to(parameter.device, parameter.dtype if value.is_floating_point() else None)
        for name, value in inputs.items()
    }
    with torch.no_grad():
        output = model.eval()(**moved)[0]
    model.train(was_training)
    # of a backbone the feature maps are a tuple
    while isinstance(output, (tuple, list)):
        output = output[-1]
    return output.float().cpu().contiguous()


def compare_output(output: Any, stored: Any) -> float:
    """Give the largest difference of an output from a stored one, relative to the stored one's largest value.

    Raises:
        ValueError: They have different shapes.
    """
    if output.shape != stored.shape:
        raise ValueError(f"the output has the shape {tuple(output.shape)}, the stored one {tuple(stored.shape)}")
    return ((output - stored).abs().max() / stored.abs().max().clamp_min(1e-6)).item()


def verify(folder: str, stored: str | None, output: str) -> dict:
    """Load the folder with its code, and compute the output of stored inputs; without any, of `make_inputs`.

    Returns:
        "class", "parameters", "dtype", "difference" (the largest from the stored output, relative to its largest
        value; `None` if none is stored) and "auto_map" as the code has it. Inputs and output go to the file `output`.
    """
    import safetensors.torch
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=True)
    golden = {} if stored is None else safetensors.torch.load_file(stored)
    inputs = {name.removeprefix("inputs."): value for name, value in golden.items() if name != "output"}
    inputs = inputs or make_inputs(config)
    architecture = (config.architectures or ["AutoModel"])[0]
    auto_map = getattr(config, "auto_map", {})
    names = [name for name, path in auto_map.items() if path.rpartition(".")[2] == architecture]
    # shapes that do not fit are named below, with all else that does not
    options: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if "AutoBackbone" in names:
        # transformers 5.23 asks the Hub whether it has AutoBackbone's argument, so that no folder opens
        from transformers.dynamic_module_utils import get_class_from_dynamic_module

        loader: Any = get_class_from_dynamic_module(auto_map["AutoBackbone"], folder)
        model, info = loader.from_pretrained(folder, **options)
    else:
        loader = getattr(transformers, names[0] if names else architecture)
        model, info = loader.from_pretrained(folder, trust_remote_code=True, **options)
    problems = {name: sorted(map(str, keys)) for name, keys in info.items() if keys}
    if problems:
        raise ValueError(f"the weights do not fit the code: {problems}")
    values = compute_output(model, inputs)
    if not values.isfinite().all():
        raise ValueError("the output is not finite")
    tensors = {f"inputs.{name}": value for name, value in inputs.items()}
    safetensors.torch.save_file({**tensors, "output": values}, output)
    for file, name in (("tokenizer_config.json", "AutoTokenizer"), ("preprocessor_config.json", "AutoImageProcessor")):
        if Path(folder, file).is_file():
            processor = getattr(transformers, name).from_pretrained(folder, trust_remote_code=True)
            if name == "AutoTokenizer" and hasattr(config, "vocab_size"):
                check_tokenizer(processor, config.vocab_size)
    return {
        "class": type(model).__name__,
        "parameters": model.num_parameters(),
        "dtype": str(model.dtype).removeprefix("torch."),
        "difference": compare_output(values, golden["output"]) if "output" in golden else None,
        "auto_map": getattr(type(config)(), "auto_map", {}),
    }


def main():
    task = json.load(sys.stdin)
    sys.meta_path.insert(0, RefuseOurPackages(task.pop("packages")))
    try:
        job: Any = {"classify": classify, "align": align, "verify": verify}[task.pop("job")]
        answer = {"answer": job(**task)}
    except Exception as error:
        answer = {"error": str(error).strip() or type(error).__name__}
    Path(sys.argv[1]).write_text(json.dumps(answer))


if __name__ == "__main__":
    main()
