r"""What does sharing cost in accuracy, beside removing channels (thesis figures 3.3 and 3.7, table 3.6.3)?

    python experiments/sharing.py --family xception --dataset_name uoft-cs/cifar10 --augmentation crop_flip \
        --learning_rate 0.1 --num_train_epochs 12 --lr_decay_epochs 4 --results_file results/sharing_xception.json

Families: xception (depthwise sharing, sharing of both parts, removal), resnet (input channels shared; the thesis
author's variant: output filters repeated after their batch norm; removal), efficientnet (depthwise sharing). Every
variant has the same recipe and nothing is chosen, so the test split is read once per training, at its end. Finished
trainings are in RESULTS_FILE, their models in OUTPUT_DIR; the same command goes on where it was stopped. --time adds
operations and time. Records are drawn by

    python experiments/sharing.py --draw results/sharing_xception.json results/sharing_resnet.json \
        --figure docs/images/sharing.png
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from frame import command_of, format_table, interval, name_command, open_panels, percent, read_results, save_figure
from record import Record, choose, describe_scale, describe_settings, group_rows, mean_and_each
from transformers import set_seed

import vision_hf
from redundancy_hf.folders import save_folder
from redundancy_hf.images import ImageTask, load_task
from redundancy_hf.training import list_seeds
from vision_hf.cost import count_flops, forward_call, measure_ratios
from vision_hf.data import ImageTaskArguments, build_image_processor, transform_splits
from vision_hf.training import ImageTrainingArguments, build_classifier, build_trainer, train

FACTORS = (2, 4, 8)
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
# configuration, settings, and what a factor changes, by kind
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Callable[[int], dict]]]] = {
    "xception": (
        "SharedXceptionConfig",
        XCEPTION,
        {
            "depthwise": lambda s: {"sharing_factor": s},
            "both parts": lambda s: {"sharing_factor": s, "pointwise_sharing_factor": s},
            "removed": lambda s: {"channel_divisor": s},
        },
    ),
    "resnet": (
        "SharedResNetConfig",
        RESNET,
        {
            "inputs": lambda s: {"sharing_factor": s},
            "author": lambda s: {"sharing_factor": s, "pointwise_sharing_factor": s, **AUTHOR_RESNET},
            "removed": lambda s: {"channel_divisor": [1, s, s, s]},
        },
    ),
    "efficientnet": ("SharedEfficientNetConfig", EFFICIENTNET, {"depthwise": lambda s: {"sharing_factor": s}}),
}


def list_variants(family: str) -> dict[str, Any]:
    """Give configurations by name; the first one is plain."""
    name, settings, kinds = FAMILIES[family]
    make = getattr(vision_hf, name)
    shared = {f"{kind}, s={s}": make(**settings, **change(s)) for kind, change in kinds.items() for s in FACTORS}
    return {"plain": make(**settings), **shared}


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
            costs[name][f"time_ratio_batch_{batch}"] = ratio
    return costs


def run(
    family: Literal["xception", "resnet", "efficientnet"],
    results_file: str,
    task: ImageTaskArguments,
    training: ImageTrainingArguments,
    seeds: int = 2,
    variants: Sequence[str] | None = None,
    time: bool = False,
) -> dict:
    """Train every variant with every seed, or time all of them; gives the record.

    Args:
        family: Whose convolutions share.
        results_file: JSON file for what was measured.
        task: The images.
        training: The recipe.
        seeds: Number of trainings of a variant, with seeds counted from --seed.
        variants: Only these; by default all.
        time: Count and time all variants instead of training them.
    """
    training.eval_strategy = training.save_strategy = "no"
    data, configs = load_task(task), list_variants(family)
    chosen = choose("variants", variants, configs)
    settings = describe_settings(training, data, data.splits, family=family, augmentation=task.augmentation)
    record = Record(results_file, settings)
    if time:
        record.content["costs"] = time_variants(configs, data)
        record.write()
        return record.content
    for key in record.list_missing(seed=list_seeds(training.seed, seeds), variant=chosen):
        name, seed = key["variant"], key["seed"]
        folder = Path(str(training.output_dir)) / f"{name.replace(', s=', '_').replace(' ', '_')}_seed{seed}"
        row = run_variant(configs[name], data, task, copy.copy(training), seed, folder)
        record.add({**key, **row})
        sizes = f"{row['parameters']:,} parameters, {row['seconds']:.0f} s"
        print(f"{name}, seed {seed}: test accuracy {row['test_accuracy']:.4f}, {sizes}", flush=True)
    return record.content


def table(record: dict) -> str:
    """Trainings by variant: what is stored, accuracy with every seed, operations and time where they were measured."""
    costs = record.get("costs", {})
    header = ["network", "stored", "depthwise", "test accuracy, %", "top 5, %"]
    header += ["operations", "time, 1 image", "time, batch of 32"] if costs else []
    rows = []
    for (variant,), same in group_rows(record["rows"], "variant").items():
        row = [variant, f"{same[0]['parameters']:,}", f"{same[0]['depthwise_parameters']:,}"]
        row += [mean_and_each([one[f"test_{name}"] for one in same]) for name in ("accuracy", "top5_accuracy")]
        if costs:
            row += [f"{costs[variant]['flops'] / costs['plain']['flops']:.2f}", *list_times(costs[variant])]
        rows.append(row)
    error = (0.6 * 0.4 / record["settings"]["sizes"]["test"]) ** 0.5
    note = (
        f"{describe_scale(record, 'images')}A test accuracy of 60 % has a standard error of {percent(error)} points. "
    )
    if costs:
        note += (
            "Operations and processor time relative to the plain network, median and quartiles; a second plain one "
            f"has {' and '.join(list_times(costs['control']))}. "
        )
    return format_table(header, rows, note + name_command(record))


def list_times(cost: dict) -> list[str]:
    return [interval(*cost[f"time_ratio_batch_{batch}"].values()) for batch in (1, 32)]


def similarity_table(record: dict) -> str:
    """How similar kernels are to those of the unshared network, beside random ones (of `explain-images`)."""
    first, second = (record["cosine_similarity"][layer] for layer in ("first", "second"))
    rows = [
        [name, *(f"{one[name][kind]:.2f}" for one in (first, second) for kind in ("cosine", "random"))]
        for name in first
    ]
    header = ["left", "first layer", "random", "first layer that shares", "random"]
    return format_table(header, rows, name_command(record))


def list_accuracies(rows: list[dict]) -> dict[str, dict[int, list[float]]]:
    """Collect test accuracies in percent by kind of sharing and factor; the plain network belongs to every kind."""
    kinds: dict[str, dict[int, list[float]]] = {}
    plain = [100 * row["test_accuracy"] for row in rows if row["variant"] == "plain"]
    for row in rows:
        kind, _, factor = row["variant"].partition(", s=")
        if factor:
            kinds.setdefault(kind, {1: plain}).setdefault(int(factor), []).append(100 * row["test_accuracy"])
    return kinds


def draw(records: list[str], figure: str):
    """Draw accuracy by what is left, a panel per family: every training as a dot, their mean as a line.

    Args:
        records: JSON files of this experiment.
        figure: PNG file.
    """
    drawing, panels = open_panels(len(records), 3, (4.6, 3.8))
    for panel, path in zip(panels, records, strict=True):
        record = read_results(path, "experiments/sharing.py")
        for index, (kind, factors) in enumerate(list_accuracies(record["rows"]).items()):
            places = sorted(factors)
            means = [sum(factors[place]) / len(factors[place]) for place in places]
            panel.plot(list(map(str, places)), means, color=f"C{index}", label=kind)
            for place in places:
                values = factors[place]
                panel.plot([str(place)] * len(values), values, "o", color=f"C{index}", markersize=4)
        panel.set_xticks(range(4), ["100 %", "50 %", "25 %", "12.5 %"])
        panel.set(title=record["settings"]["family"], xlabel="left of what is shared or removed")
        panel.set_ylabel("test accuracy, %")
        panel.grid(alpha=0.3)
        panel.legend(fontsize=8, loc="lower left")
    save_figure(drawing, figure)


main = command_of(run, __doc__, draw)
