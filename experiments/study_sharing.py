r"""Train one network at several amounts of sharing and of channel removal, and compare (thesis figures 3.3 and 3.7).

    python experiments/study_sharing.py --study xception --dataset_name uoft-cs/cifar10 --augmentation crop_flip \
        --learning_rate 0.1 --num_train_epochs 12 --lr_decay_epochs 4 --results_file results/sharing_xception.json

Studies: xception (depthwise sharing, sharing of both parts, removal), resnet (input channels shared; the thesis
author's variant: output filters repeated after their batch norm; removal), efficientnet (depthwise sharing). Every
variant has the same recipe and nothing is chosen, so the test split is read once per training, at its end. Finished
trainings are in RESULTS_FILE, their models in OUTPUT_DIR; the same command goes on where it was stopped. --time adds
operations and time.
"""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import set_seed
from transformers.utils import logging as transformers_logging

import vision_hf
from redundancy_hf.command import describe_command, format_record, parse_arguments, run_command
from redundancy_hf.folders import save_folder
from redundancy_hf.timing import hardware_fingerprint
from vision_hf.cost import count_flops, forward_call, measure_ratios
from vision_hf.data import ImageTask, ImageTaskArguments, build_image_processor, load_task, transform_splits
from vision_hf.training import ImageTrainingArguments, build_classifier, build_trainer, train

# below a million parameters each, and about the proportions of the published networks
XCEPTION = {
    "stem_channels": [16, 64],
    "stem_strides": [1, 2],
    "stage_channels": [128, 128, 128],
    "stage_strides": [1, 2, 2],
    "stage_blocks": [1, 1, 1],
    "block_depths": [3, 3, 3],
    "grows_late": [False, False, False],
    "exit_channels": [],
}
RESNET = {
    "embedding_size": 16,
    "hidden_sizes": [16, 32, 64, 128],
    "depths": [2, 2, 2, 2],
    "layer_type": "basic",
    "stem_type": "cifar",
    "image_size": 32,
}
AUTHOR_RESNET = {
    "share_dim": "out",
    "batch_norm_position": "before",
    "share_shortcut": True,
    "unshared_stages": ["stage1"],
}
EFFICIENTNET = {
    "width_coefficient": 0.5,
    "stem_stride": 1,
    "out_channels": [16, 24, 40, 80, 112],
    "kernel_sizes": [3, 3, 5, 3, 5],
    "strides": [1, 2, 2, 2, 1],
    "num_block_repeats": [1, 2, 2, 2, 2],
    "expand_ratios": [1, 6, 6, 6, 6],
    "head_channels": 640,
    "image_size": 32,
    "drop_path_rate": 0.05,
}


def variants_of(study: str) -> dict[str, Any]:
    """Give configurations by name; the first one is plain."""
    if study == "xception":
        make: Callable = lambda **settings: vision_hf.SharedXceptionConfig(**XCEPTION, **settings)  # noqa: E731
        kinds = {
            "depthwise": lambda s: {"sharing_factor": s},
            "both parts": lambda s: {"sharing_factor": s, "pointwise_sharing_factor": s},
            "removed": lambda s: {"channel_divisor": s},
        }
    elif study == "resnet":
        make = lambda **settings: vision_hf.SharedResNetConfig(**RESNET, **settings)  # noqa: E731
        kinds = {
            "inputs": lambda s: {"sharing_factor": s},
            "author": lambda s: {"sharing_factor": s, "pointwise_sharing_factor": s, **AUTHOR_RESNET},
            "removed": lambda s: {"channel_divisor": [1, s, s, s]},
        }
    else:
        make = lambda **settings: vision_hf.SharedEfficientNetConfig(**EFFICIENTNET, **settings)  # noqa: E731
        kinds = {"depthwise": lambda s: {"sharing_factor": s}}
    variants = {"plain": make()}
    for kind, settings in kinds.items():
        variants |= {f"{kind}, s={s}": make(**settings(s)) for s in (2, 4, 8)}
    return variants


@dataclass
class StudyArguments:
    study: str = field(metadata={"help": "What to compare.", "choices": ["xception", "resnet", "efficientnet"]})
    results_file: str = field(metadata={"help": "JSON file for what was measured."})
    seeds: list[int] = field(default_factory=lambda: [0, 1], metadata={"help": "Seeds, one training each."})
    variants: list[str] | None = field(default=None, metadata={"help": "Only these; by default all."})
    time: bool = field(default=False, metadata={"help": "Count and time all variants instead of training them."})


def run_variant(config, task: ImageTask, task_arguments: ImageTaskArguments, training, seed: int, folder: Path) -> dict:
    """Train one variant, save it in the folder, and read the test split once."""
    set_seed(seed)
    model, training.seed = build_classifier(config, task), seed
    processor = build_image_processor(task_arguments, 32)
    trainer = build_trainer(model, task.without_test(), processor, task_arguments, training)
    trained = train(trainer)
    save_folder(model, folder, processor)
    test = transform_splits(task, processor, task_arguments)["test"]
    scores: dict[str, float] = trainer.evaluate(test, metric_key_prefix="test")
    depthwise = sum(p.numel() for name, p in model.named_parameters() if "depthwise.weight" in name)
    return {
        **{f"validation_{name}": value for name, value in asdict(trained).items() if "accuracy" in name},
        "test_accuracy": scores["test_accuracy"],
        "test_top5_accuracy": scores.get("test_top5_accuracy"),
        "train_loss": trained.loss,
        "seconds": round(trained.seconds, 1),
        "parameters": model.num_parameters(),
        "depthwise_parameters": depthwise,
    }


def time_variants(variants: dict[str, Any], task: ImageTask) -> dict[str, dict]:
    """Count operations of every variant and time it against the plain one, for one image and for 32."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    models = {name: build_classifier(config, task) for name, config in variants.items()}
    models["control"] = build_classifier(variants["plain"], task)
    costs: dict[str, dict] = {
        name: {"flops": count_flops(model, torch.randn(1, 3, 32, 32)), "parameters": model.num_parameters()}
        for name, model in models.items()
    }
    for batch in (1, 32):
        images = torch.randn(batch, 3, 32, 32).contiguous(memory_format=torch.channels_last)
        calls = {name: forward_call(model, images) for name, model in models.items()}
        for name, ratio in measure_ratios(calls, "plain", rounds=30, seconds_per_call=0.05).items():
            costs[name][f"time_ratio_batch_{batch}"] = vars(ratio)
    return costs


def main():
    study, task_arguments, training = parse_arguments(
        (StudyArguments, ImageTaskArguments, ImageTrainingArguments), __doc__
    )
    transformers_logging.set_verbosity_error()
    training.eval_strategy = training.save_strategy = "no"
    task = load_task(task_arguments)
    variants = variants_of(study.study)
    unknown = sorted(set(study.variants or []) - set(variants))
    if unknown:
        raise ValueError(f"--variants has unknown {unknown}; {study.study} has {list(variants)}.")
    path = Path(study.results_file)
    settings = {
        "study": study.study,
        "task": task.fingerprint,
        "sizes": {name: len(split) for name, split in task.splits.items()},
        "augmentation": task_arguments.augmentation,
        "recipe": {name: value for name, value in training.describe_recipe().items() if name != "seed"},
    }
    record = json.loads(path.read_text()) if path.exists() else {"settings": settings, "rows": []}
    if record["settings"] != settings:
        raise ValueError(f"{path} holds a study with other settings; use another --results_file, or the old ones.")
    record |= {"command": describe_command(), "hardware": hardware_fingerprint()}
    if study.time:
        record["costs"] = time_variants(variants, task)
        path.write_text(format_record(record) + "\n")
        return
    for seed in study.seeds:
        for name in study.variants or variants:
            if any(row["variant"] == name and row["seed"] == seed for row in record["rows"]):
                continue
            folder = Path(str(training.output_dir)) / f"{name.replace(', s=', '_').replace(' ', '_')}_seed{seed}"
            measured = run_variant(variants[name], task, task_arguments, training, seed, folder)
            row = {"variant": name, "seed": seed, **measured, "cpu": record["hardware"]["cpu"]}
            record["rows"].append(row)
            path.write_text(format_record(record) + "\n")
            print(
                f"{name}, seed {seed}: test accuracy {row['test_accuracy']:.4f}, {row['parameters']:,} parameters, "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


if __name__ == "__main__":
    run_command(main)
