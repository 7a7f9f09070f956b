"""Training of the autoencoder on transformers' Trainer; the pose search runs inside the model's forward (thesis 4.1.2).

Validation gives, beside the loss, the mean squared error that the thesis compares, and keeps every epoch's poses, from
which the orientation histograms are drawn (thesis figures 4.12 and 4.13).
"""

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from huggingface_hub import EvalResult
from transformers import EvalPrediction, Trainer

from redundancy_hf import cards
from redundancy_hf.plan import Plan
from redundancy_hf.training import RecipeArguments, StopOnInvalidLoss, show_progress

from .analysis import draw_reconstructions
from .data import PoseDataset, ShapeTask
from .modeling_avae import AVAEModel

CARD_TEMPLATE = Path(__file__).with_name("model_card.md")


@dataclass
class AVAETrainingArguments(RecipeArguments):
    """[`TrainingArguments`] with the defaults of the autoencoder; every flag stays usable."""

    output_dir: str | None = field(default="runs/avae", metadata={"help": "Folder for everything the run writes."})
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate of AdamW."})
    num_train_epochs: float = field(default=10.0, metadata={"help": "Passes over the training inputs."})
    per_device_train_batch_size: int = field(default=128, metadata={"help": "Training inputs per device and step."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Evaluated inputs per device and step."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    # the sum over pixels has large gradients, which a clip at 1 would make all the same
    max_grad_norm: float = field(default=0.0, metadata={"help": "Clip gradients to this norm; 0: do not."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "The collator needs all columns."})
    label_names: list[str] | None = field(
        default_factory=lambda: ["pose", "labels"], metadata={"help": "Columns that are no input of the model."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.label_smoothing_factor != 0:
            raise ValueError(
                "`label_smoothing_factor` must be 0 for an autoencoder, whose loss smooths no labels, got "
                f"{self.label_smoothing_factor:g}."
            )


class AVAETrainer(Trainer):
    """[`Trainer`] for batches of [`PoseDataset`], whose true poses and classes the model does not see.

    Args:
        poses_dir: Folder for the poses of every evaluation in training, `epoch-N.npz` with `alpha`, `pose`, `labels`
            and `terms` (squared error, reconstruction loss, divergence); `None` for none.
    """

    def __init__(self, model: Any, args: AVAETrainingArguments, poses_dir: Path | None = None, **kwargs):
        super().__init__(model, args, compute_metrics=self._compute_metrics, **kwargs)
        self.poses_dir = poses_dir

    def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
        outputs = model(pixel_values=inputs["pixel_values"])
        return (outputs["loss"], outputs) if return_outputs else outputs["loss"]

    def prediction_step(self, model, inputs, prediction_loss_only, ignore_keys=None):
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            outputs = model(pixel_values=inputs["pixel_values"])
        labels = tuple(inputs[name] for name in ("pose", "labels"))
        return outputs.loss.detach(), (list_terms(outputs, inputs["pixel_values"]), outputs.alpha), labels

    def _compute_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        (terms, alpha), (pose, labels) = cast(Any, (prediction.predictions, prediction.label_ids))
        if not np.isfinite(terms).all():
            raise FloatingPointError("the model's outputs are not finite; lower --learning_rate or warm up longer.")
        if self.poses_dir is not None and self.is_world_process_zero() and self.state.epoch is not None:
            self.poses_dir.mkdir(parents=True, exist_ok=True)
            path = self.poses_dir / f"epoch-{round(self.state.epoch)}.npz"
            np.savez(path, alpha=alpha, pose=pose, labels=labels, terms=terms)
        return summarise_terms(terms)


def list_terms(outputs: Any, pixels: torch.Tensor) -> torch.Tensor:
    """List, of every input, squared error summed over pixels, reconstruction loss and divergence, (N, 3)."""
    error = (outputs.reconstruction - pixels).float().square().flatten(1).sum(1)
    return torch.stack([error, outputs.reconstruction_loss, outputs.divergence], 1)


def summarise_terms(terms: np.ndarray) -> dict[str, float]:
    """Average what [`list_terms`] gives."""
    names = ("squared_error", "reconstruction_loss", "divergence")
    return dict(zip(names, terms.mean(0, dtype=np.float64).tolist(), strict=True))


@torch.no_grad()
def evaluate_model(
    model: Any, dataset: PoseDataset, batch_size: int = 256, progress: Any = lambda batches: batches
) -> dict[str, np.ndarray]:
    """Reconstruct inputs in their seeded poses; `progress` may wrap the starts of the batches in a bar.

    Returns:
        "terms", (N, 3) as of [`list_terms`], "alpha", (N, P), "latent", (N, latent_dim), "pose" and "labels".
    """
    found = []
    for start in progress(range(0, len(dataset), batch_size)):
        batch = dataset.collate([dataset[row] for row in range(start, min(start + batch_size, len(dataset)))])
        pixels = batch.pop("pixel_values").to(model.device)
        outputs = model(pixels)
        own = {"terms": list_terms(outputs, pixels), "alpha": outputs.alpha, "latent": outputs.latent_mean}
        found.append({**batch, **{name: value.float() for name, value in own.items()}})
    return {name: torch.cat([batch[name].cpu() for batch in found]).numpy() for name in found[0]}


def build_trainer(
    model: AVAEModel,
    train_dataset: PoseDataset,
    eval_dataset: PoseDataset,
    arguments: AVAETrainingArguments,
    poses_dir: Path | None = None,
    plan: Plan | None = None,
) -> AVAETrainer:
    """Put together the Trainer that every training of an autoencoder uses: on fresh poses, validated on seeded ones.

    A plan is told how far the training has come.
    """
    trainer = AVAETrainer(
        model=model,
        args=arguments,
        train_dataset=train_dataset,
        eval_dataset=eval_dataset,
        data_collator=train_dataset.collate,
        callbacks=[StopOnInvalidLoss()],
        poses_dir=poses_dir,
    )
    show_progress(trainer, plan)
    return trainer


@dataclass(frozen=True)
class Trained:
    """What one training gave.

    Attributes:
        squared_error: Mean over validation of the squared error summed over pixels.
        loss: Validation loss.
        history: Training loss, validation loss and error by epoch.
        seconds: Wall time of training and validation.
    """

    squared_error: float
    loss: float
    history: list[dict[str, float]]
    seconds: float


def train(trainer: AVAETrainer, checkpoint: str | None = None) -> Trained:
    """Train, or go on from a checkpoint, and validate; the model is changed in place.

    Raises:
        FloatingPointError: The outputs are no numbers any more.
    """
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=checkpoint)
    scores = trainer.evaluate()
    by_epoch: dict[float, dict[str, Any]] = {}
    for entry in trainer.state.log_history:
        kept: dict[str, Any] = {
            name: entry[name] for name in ("loss", "eval_loss", "eval_squared_error") if name in entry
        }
        if kept:
            by_epoch.setdefault(entry["epoch"], {"epoch": entry["epoch"]}).update(kept)
    return Trained(
        squared_error=scores["eval_squared_error"],
        loss=scores["eval_loss"],
        history=list(by_epoch.values()),
        seconds=time.perf_counter() - started,
    )


def write_card(
    folder: Path,
    model: AVAEModel,
    trained: Trained,
    task: ShapeTask,
    about_dataset: dict[str, Any],
    facts: dict[str, Any],
):
    """Write a saved folder's model card, with its conventions, a picture and its limits (thesis 6.2.2).

    Args:
        folder: Of the model.
        model: Whose configuration the card tells.
        trained: What validation gave.
        task: The data; a few of its validation inputs are drawn.
        about_dataset: What an `EvalResult` says of the data set.
        facts: "augment", the transforms of the data, "num_epochs" and "seed".
    """
    result = EvalResult(
        task_type="image-feature-extraction",
        task_name="reconstruction",
        **about_dataset,
        dataset_split="validation",
        metric_type="squared_error",
        metric_name="squared error, sum over an input",
        metric_value=round(trained.squared_error, 4),
    )
    shown = task.images["validation"][:4]
    draw_reconstructions({"reconstruction": model.eval()}, shown, [0, 1, 2, 3], folder / "reconstructions.png")
    values = {**model.config.to_dict(), "pose_dim": model.config.pose_dim, "dataset": task.name, **facts}
    values |= {f"num_{name}": len(task.images[name]) for name in ("train", "validation")}
    values |= {"squared_error": trained.squared_error, "loss": trained.loss}
    kind = "image-feature-extraction" if model.config.spatial_dims == 2 else None
    tags = ["avae", "variational-autoencoder"]
    cards.write_card(folder, CARD_TEMPLATE, result, values, pipeline_tag=kind, tags=tags)
