r"""Let a trained image classifier share the weights inside its convolutions, and fine-tune it (thesis section 3.6).

    redundancy-hf share google/efficientnet-b0 --sharing_factor 2 --dataset_name photos --output_dir runs/shared
    redundancy-hf share runs/plain/seed-42 --sharing_factor 2 --dataset_name photos --learning_rate 0.01 \
        --num_train_epochs 3 --output_dir runs/converted

The network is converted first: channels of similar kernels get one kernel and keep their scales, and the statistics of
batch norm are estimated anew. Every seed leaves a model folder OUTPUT_DIR/seed-N; the same command resumes.
"""

from collections.abc import Sequence
from typing import Any

from redundancy_hf.command import parse_call

from ..data import ImageTaskArguments
from ..training import ImageTrainingArguments
from .train_images import train_image_classifier


def share_image_classifier(
    model_name_or_path: str,
    sharing_factor: Sequence[int],
    task: ImageTaskArguments,
    training: ImageTrainingArguments,
    seeds: int = 1,
) -> list[dict[str, Any]]:
    """Convert a trained image classifier to shared kernels, fine-tune it with several seeds, and print what they reach.

    Args:
        model_name_or_path: Folder or Hub name of the trained classifier; also without the flag.
        sharing_factor: Channels per kernel: one number, or one per stage.
        task: The images.
        training: The recipe, and the folder for everything.
        seeds: Number of trainings, with seeds counted from --seed.

    Returns:
        What validation gave, by seed.

    Raises:
        ValueError: As [`train_image_classifier`] does, and where nothing would be shared.
    """
    sharing_factor = [sharing_factor] if isinstance(sharing_factor, int) else sharing_factor
    if max(sharing_factor) == 1:
        raise ValueError("`sharing_factor` says how many channels share a kernel: give one above 1.")
    return train_image_classifier(
        task, training, sharing_factor=sharing_factor, model_name_or_path=model_name_or_path, seeds=seeds
    )


def main():
    share_image_classifier(**parse_call(share_image_classifier, __doc__, positional="model_name_or_path"))
