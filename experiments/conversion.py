r"""What does a trained network keep when its weights are made to share, by several methods?

    python experiments/conversion.py --models runs/plain/seed-0 --dataset_name uoft-cs/cifar10 \
        --num_train_epochs 1 --learning_rate 0.01 --results_file results/conversion.json

For every model, sharing factor and method: error of the weights; test accuracy at once, with batch norm's statistics
estimated anew on 1,200 training images, and after a short training with the kernels tied. Settings are the same for all
methods, so that nothing is chosen on the test split. Finished rows are in RESULTS_FILE; the same command goes on where
it was stopped.
"""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from frame import command_of, format_table, name_command, percent
from record import Record, choose, describe_settings
from tqdm import tqdm
from transformers import AutoImageProcessor, AutoModelForImageClassification, set_seed

import vision_hf
from redundancy_hf.images import load_task
from vision_hf.conversion import METHODS, weight_error
from vision_hf.data import ImageTaskArguments, transform_splits
from vision_hf.expansion import is_ours
from vision_hf.layouts import from_transformers
from vision_hf.training import ImageTrainingArguments, build_trainer, estimate_statistics, train


def measure(model: Any, data, processor, task, training, stages: dict[str, Callable[[], Any] | None]) -> dict:
    """Give the number of weights, and test accuracy after each stage.

    Args:
        model: Changed in place.
        data: The images.
        processor: Prepares them.
        task: How they are read.
        training: The recipe of the last stage, "fine_tuned".
        stages: What changes the model before the accuracy of that name is measured.
    """
    set_seed(0)
    trainer = build_trainer(model, data.without_test(), processor, task, copy.copy(training))
    test = transform_splits(data, processor, task)["test"]
    row = {"parameters": model.num_parameters()}
    for name, change in {**stages, "fine_tuned": lambda: train(trainer)}.items():
        if change is not None:
            change()
        row[name] = trainer.evaluate(test, metric_key_prefix="test")["test_accuracy"]
    return row


def run(
    models: Sequence[str],
    results_file: str,
    task: ImageTaskArguments,
    training: ImageTrainingArguments,
    sharing_factors: Sequence[int] = (2, 4, 8),
    methods: Sequence[str] | None = None,
    num_statistics: int = 1200,
) -> dict:
    """Convert every model by every method and measure; gives the record.

    Args:
        models: Folders of trained networks that share nothing, ours or transformers' EfficientNet, ResNet.
        results_file: JSON file for what was measured.
        task: The images.
        training: The recipe of the short training.
        sharing_factors: Channels per kernel.
        methods: Ways to share; by default all.
        num_statistics: Training images that batch norm sees.
    """
    training.eval_strategy = training.save_strategy = "no"
    training.disable_tqdm = True
    chosen, data = choose("methods", methods, METHODS), load_task(task)
    settings = describe_settings(training, data, data.splits, num_statistics=num_statistics)
    settings["recipe"] = training.describe_recipe()
    record = Record(results_file, settings, plain={})
    for folder in tqdm(models, desc="models", unit="model"):
        plain: Any = AutoModelForImageClassification.from_pretrained(folder)
        plain = plain if is_ours(plain) else from_transformers(plain)
        own = (data, AutoImageProcessor.from_pretrained(folder), task, training)
        family = plain.config.family
        if family not in record.content["plain"]:
            record.content["plain"][family] = measure(copy.deepcopy(plain), *own, {"accuracy": None})
        for key in record.list_missing(family=[family], sharing_factor=sharing_factors, method=chosen):
            set_seed(0)
            how = (key["sharing_factor"], key["method"])
            shared = vision_hf.share_weights(plain, *how)
            estimate = partial(estimate_statistics, shared, data, own[1], num_statistics)
            row = measure(shared, *own, {"zero_shot": None, "reestimated": estimate})
            record.add({**key, "weight_error": weight_error(plain, *how), **row})
    return record.content


def table(record: dict) -> str:
    """What conversion of a trained network keeps, by method."""
    text = ""
    for family, plain in record["plain"].items():
        accuracies = [percent(plain[name]) for name in ("accuracy", "accuracy", "fine_tuned")]
        rows = [["1", "plain", f"{plain['parameters']:,}", "0", *accuracies]]
        rows += [
            [
                *(str(row["sharing_factor"]), row["method"], f"{row['parameters']:,}", f"{row['weight_error']:.3f}"),
                *(percent(row[name]) for name in ("zero_shot", "reestimated", "fine_tuned")),
            ]
            for row in record["rows"]
            if row["family"] == family
        ]
        header = ["s", f"{family}, method", "stored", "weight error", "at once, %", "statistics anew, %", "trained, %"]
        text += format_table(header, rows) + "\n"
    sizes, recipe = record["settings"]["sizes"], record["settings"]["recipe"]
    return text + (
        f"Accuracy on {sizes['test']:,} test images; statistics from {record['settings']['num_statistics']:,} training "
        f"images; trained: {float(recipe['num_train_epochs']):g} more epoch, learning rate {recipe['learning_rate']}; "
        f"weight error: root of the mean square over that of the weights; one seed. {name_command(record)}"
    )


main = command_of(run, __doc__)
