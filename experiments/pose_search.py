r"""How fast and how good is the fast pose search, beside the thesis' direct one?

    python experiments/pose_search.py --model runs/vae/seed-42 --transforms rotation --dataset_name ylecun/mnist \
        --results_file results/pose_search_mnist.json

All searches take turns in every round, on the same inputs in random poses, on one thread. "direct" is the method of
thesis section 4.1.5 as a plain implementation runs it (batch norm not folded, channels first); "direct, folded" has the
engineering of the fast one, "control" is "direct" again. Every round has other random starts. Losses are computed anew,
by the model, at the poses found, and averaged over the rounds.
With --training, steps of training are timed instead, relative to a plain autoencoder of the same total latent size.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from frame import command_of, format_table, interval, list_commands, percent
from tqdm import tqdm

from avae_hf import AVAEModel
from avae_hf.data import ShapeTaskArguments, load_processor, load_task
from avae_hf.pose_search_avae import PoseObjective, search_pose
from redundancy_hf.command import write_record
from redundancy_hf.timing import hardware_fingerprint, time_in_turns

Calls = dict[str, Callable[[], Any]]


def build_searches(model: Any, images: torch.Tensor) -> Calls:

    def search(kind: str, fold: bool) -> Callable[[], torch.Tensor]:
        config = copy.deepcopy(model.config)
        config.search = kind
        seeds = iter(range(1 << 30))

        def call() -> torch.Tensor:
            objective = PoseObjective(config, model.encoder, model.decoder, fold=fold)
            # other random starts in every round
            return search_pose(objective, images, model.centre, torch.Generator().manual_seed(next(seeds)))[0]

        return call

    return {
        "direct": search("direct", fold=False),
        "control": search("direct", fold=False),
        "direct, folded": search("direct", fold=True),
        "fast": search("fast", fold=True),
    }


def build_steps(model: Any, images: torch.Tensor) -> Calls:
    """Give functions that compute a training step's gradients, of a plain and an affine autoencoder."""
    plain_config = copy.deepcopy(model.config)
    plain_config.transforms, plain_config.latent_dim = [], model.config.latent_dim + model.config.pose_dim
    models = {"plain": AVAEModel(plain_config), "control": AVAEModel(plain_config), "affine": copy.deepcopy(model)}

    def step(model: Any):
        model.train().zero_grad()
        model(images).loss.backward()

    return {name: lambda model=model: step(model) for name, model in models.items()}


def time_calls(calls: Calls, reference: str, rounds: int) -> tuple[dict[str, dict], dict[str, list]]:
    """Let functions take turns in an order drawn anew.

    Returns:
        Median, smallest and largest ratio of processor time to the reference's of the same round, and what all gave.
    """
    results: dict[str, list] = {name: [] for name in calls}
    noted = {name: lambda name=name: results[name].append(calls[name]()) for name in calls}
    with tqdm(total=rounds, desc="rounds") as bar:
        ticks = time_in_turns([noted], rounds, 0, "process_cpu", on_round=bar.update).ticks
    ratios = {name: values / ticks[reference] for name, values in ticks.items()}
    rows = {
        name: {"time_ratio": float(np.median(of)), "low": float(of.min()), "high": float(of.max())}
        for name, of in ratios.items()
    }
    return rows, results


@torch.no_grad()
def losses_at(model: Any, images: torch.Tensor, alpha: torch.Tensor | None) -> np.ndarray:
    outputs = model(images, alpha, search=False)
    return (outputs.reconstruction_loss + outputs.divergence).numpy()


def compare_searches(model: Any, images: torch.Tensor, rounds: int) -> dict:
    """Time searches of the images' poses, and compare the losses at what they find."""
    rows, poses = time_calls(build_searches(model, images), "direct", rounds)
    losses = {name: np.mean([losses_at(model, images, alpha) for alpha in found], 0) for name, found in poses.items()}
    unmoved = losses_at(model, images, None)
    for name, row in rows.items():
        difference = losses[name] - losses["direct"]
        row["loss"] = float(losses[name].mean())
        row["difference"] = float(difference.mean())
        row["worse_share"] = float((difference > 0.05).mean())
        row["better_share"] = float((difference < -0.05).mean())
        row["worse_than_identity"] = int((losses[name] > unmoved + 1e-3).sum())
    return {"kind": "search", "rows": rows, "identity_loss": float(unmoved.mean())}


def run(
    model: str,
    transforms: Sequence[str],
    results_file: str,
    task: ShapeTaskArguments,
    name: str | None = None,
    num_inputs: int = 64,
    rounds: int = 5,
    training: bool = False,
) -> dict[str, Any]:
    """Compare searches, or steps of training, of one model; gives the record.

    Args:
        model: Folder of a trained autoencoder, plain or affine.
        transforms: What is searched, and random about the inputs.
        results_file: JSON file for the record.
        task: The inputs.
        name: Of the record; the data set and transforms by default.
        num_inputs: Inputs that are searched, in one batch.
        rounds: Turns of every search.
        training: Time training steps instead of searches.
    """
    torch.set_num_threads(1)
    loaded: Any = AVAEModel.from_pretrained(model, transforms=list(transforms)).eval()
    task.augment = list(transforms)
    data = load_task(task, load_processor(task, model))
    posed = data.in_poses("test", task)
    number = min(num_inputs, len(posed))
    images = posed.collate([posed[row] for row in range(number)])["pixel_values"]
    if training:
        rows, _ = time_calls(build_steps(loaded, images), "plain", rounds)
        found = {"kind": "training", "rows": rows}
    else:
        found = compare_searches(loaded, images, rounds)
    about = {"name": name or f"{data.name}, {' and '.join(transforms)}", "num_inputs": number, "rounds": rounds}
    about |= {"image_size": loaded.config.image_size, "hardware": hardware_fingerprint()}
    return write_record(results_file, **about, **found)


def search_table(records: dict[str, dict]) -> str:
    """Processor time and loss of pose searches, relative to the direct one."""
    rows = []
    for record in records.values():
        for name, row in record["rows"].items():
            ratio = f"{1 / row['time_ratio']:.1f}x [{1 / row['high']:.1f}, {1 / row['low']:.1f}]"
            shares = [percent(row["worse_share"]), percent(row["better_share"]), row["worse_than_identity"]]
            rows.append([record["name"], name, ratio, f"{row['loss']:.3f} ({row['difference']:+.3f})", *shares])
    header = ["inputs", "search", "cheaper", "loss (to direct)"]
    header += ["worse by > 0.05, %", "better, %", "worse than identity"]
    scales = "; ".join(
        f"{one['name']}: n = {one['num_inputs']}, side {one['image_size']}, {one['rounds']} rounds, "
        f"{one['hardware']['device_name']}"
        for one in records.values()
    )
    note = f"Processor time, median [smallest, largest] of the rounds, 1 thread. {scales}.\n\n"
    note += list_commands(records.values())
    return format_table(header, rows, note)


def training_table(records: dict[str, dict]) -> str:
    """Processor time of a training step, relative to a plain autoencoder's."""
    rows = [
        [record["name"], name, interval(row["time_ratio"], row["low"], row["high"])]
        for record in records.values()
        for name, row in record["rows"].items()
        if name != "plain"
    ]
    note = (
        "Relative to a plain autoencoder of the same total latent size, median [smallest, largest] of the rounds; "
        "`control` is a second plain one.\n"
    )
    return format_table(["inputs", "model", "time of a step"], rows, note)


def show(record: dict) -> str:
    return (search_table if record["kind"] == "search" else training_table)({"": record})


main = command_of(run, __doc__, show=show)
