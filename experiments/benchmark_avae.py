r"""Compare pose searches on a trained autoencoder: processor time and loss of the fast and the thesis' direct one.

    python experiments/benchmark_avae.py --model runs/vae/seed-42 --transforms rotation --dataset_name ylecun/mnist \
        --results_file results/benchmark_avae.json

All searches take turns in every round, on the same inputs in random poses, on one thread. "direct" is the method of
thesis section 4.1.5 as a plain implementation runs it (batch norm not folded, channels first); "direct, folded" has the
engineering of the fast one, "control" is "direct" again. Every round has other random starts. Losses are computed anew,
by the model, at the poses found, and averaged over the rounds.
With --training, steps of training are timed instead, relative to a plain autoencoder of the same total latent size.
"""

import copy
import json
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from avae_hf import AVAEModel
from avae_hf.data import ShapeTaskArguments, load_processor, load_task
from avae_hf.pose_search_avae import PoseObjective, search_pose
from redundancy_hf.command import describe_command, format_record, parse_arguments, run_command
from redundancy_hf.timing import hardware_fingerprint


@dataclass
class BenchmarkArguments:
    model: str = field(metadata={"help": "Folder of a trained autoencoder, plain or affine."})
    transforms: list[str] = field(metadata={"help": "What is searched, and random about the inputs."})
    results_file: str = field(metadata={"help": "JSON file of records; one of the same name is replaced."})
    name: str | None = field(default=None, metadata={"help": "Of the record; the data set and transforms by default."})
    num_inputs: int = field(default=64, metadata={"help": "Inputs that are searched, in one batch."})
    rounds: int = field(default=5, metadata={"help": "Turns of every search."})
    training: bool = field(default=False, metadata={"help": "Time training steps instead of searches."})


def build_searches(model: Any, images: torch.Tensor) -> dict[str, Callable[[], torch.Tensor]]:
    """Give functions that search the poses of the images."""

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


def build_steps(model: Any, images: torch.Tensor) -> dict[str, Callable[[], Any]]:
    """Give functions that compute a training step's gradients, of a plain and an affine autoencoder."""
    plain_config = copy.deepcopy(model.config)
    plain_config.transforms, plain_config.latent_dim = [], model.config.latent_dim + model.config.pose_dim
    models = {"plain": AVAEModel(plain_config), "control": AVAEModel(plain_config), "affine": copy.deepcopy(model)}

    def step(model: Any) -> Callable[[], Any]:
        model.train()

        def call():
            model.zero_grad()
            model(images).loss.backward()

        return call

    return {name: step(one) for name, one in models.items()}


def time_in_turns(calls: dict[str, Callable[[], Any]], rounds: int) -> tuple[dict[str, list[float]], dict[str, list]]:
    """Let functions take turns in an order drawn anew; give processor seconds, and what they returned."""
    order = random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in calls}
    results: dict[str, list] = {name: [] for name in calls}
    for _ in tqdm(range(rounds), desc="rounds"):
        for name in order.sample(list(calls), len(calls)):
            started = time.process_time()
            results[name].append(calls[name]())
            times[name].append(time.process_time() - started)
    return times, results


@torch.no_grad()
def losses_at(model: Any, images: torch.Tensor, alpha: torch.Tensor | None) -> np.ndarray:
    outputs = model(images, alpha, search=False)
    return (outputs.reconstruction_loss + outputs.divergence).numpy()


def compare(times: dict[str, list[float]], reference: str) -> dict[str, dict]:
    """Divide by the reference of the same round: median, smallest and largest ratio."""
    base = np.array(times[reference])
    ratios = {name: np.array(values) / base for name, values in times.items()}
    return {
        name: {"time_ratio": float(np.median(r)), "low": float(r.min()), "high": float(r.max())}
        for name, r in ratios.items()
    }


def main():
    arguments, task_arguments = parse_arguments((BenchmarkArguments, ShapeTaskArguments), __doc__)
    torch.set_num_threads(1)
    model: Any = AVAEModel.from_pretrained(arguments.model, transforms=arguments.transforms).eval()
    task_arguments.augment = arguments.transforms
    Path(arguments.results_file).parent.mkdir(parents=True, exist_ok=True)
    task = load_task(task_arguments, load_processor(task_arguments, arguments.model))
    posed = task.in_poses("test", task_arguments)
    number = min(arguments.num_inputs, len(posed))
    images = posed.collate([posed[row] for row in range(number)])["pixel_values"]
    record = {
        "name": arguments.name or f"{task.name}, {' and '.join(arguments.transforms)}",
        "num_inputs": number,
        "image_size": model.config.image_size,
        "rounds": arguments.rounds,
        "command": describe_command(),
        "hardware": hardware_fingerprint(),
    }
    if arguments.training:
        times, _ = time_in_turns(build_steps(model, images), arguments.rounds)
        record |= {"kind": "training", "rows": compare(times, "plain")}
    else:
        times, poses = time_in_turns(build_searches(model, images), arguments.rounds)
        rows = compare(times, "direct")
        losses = {
            name: np.mean([losses_at(model, images, alpha) for alpha in found], 0) for name, found in poses.items()
        }
        unmoved = losses_at(model, images, None)
        for name, row in rows.items():
            difference = losses[name] - losses["direct"]
            row["loss"] = float(losses[name].mean())
            row["difference"] = float(difference.mean())
            row["worse_share"] = float((difference > 0.05).mean())
            row["better_share"] = float((difference < -0.05).mean())
            row["worse_than_identity"] = int((losses[name] > unmoved + 1e-3).sum())
        record |= {"kind": "search", "rows": rows, "identity_loss": float(unmoved.mean())}
    for name, row in record["rows"].items():
        loss = f", loss {row['loss']:.3f} ({row['difference']:+.3f})" if "loss" in row else ""
        print(f"{name:15} time {row['time_ratio']:.3f} [{row['low']:.3f}, {row['high']:.3f}]{loss}")
    path = Path(arguments.results_file)
    records = json.loads(path.read_text()) if path.exists() else []
    kept = [one for one in records if (one["name"], one["kind"]) != (record["name"], record["kind"])]
    path.write_text(format_record([*kept, record]) + "\n")


if __name__ == "__main__":
    run_command(main)
