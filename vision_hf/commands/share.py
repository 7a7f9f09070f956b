r"""Let a trained image classifier share the weights inside its convolutions, and fine-tune it (thesis section 3.6).

    redundancy-hf share google/efficientnet-b0 --sharing_factor 2 --dataset_name photos --output_dir runs/shared
    redundancy-hf share runs/plain/seed-42 --sharing_factor 2 --dataset_name photos --learning_rate 0.01 \
        --num_train_epochs 3 --output_dir runs/converted

The network is converted first: channels of similar kernels get one kernel and keep their scales, and the statistics of
batch norm are estimated anew. Every seed leaves a model folder OUTPUT_DIR/seed-N; the same command resumes.
"""

from redundancy_hf.command import parse_arguments

from ..data import ImageTaskArguments
from ..training import ImageTrainingArguments
from .train_images import ModelArguments, train_seeds


def main():
    arguments, task_arguments, training = parse_arguments(
        (ModelArguments, ImageTaskArguments, ImageTrainingArguments), __doc__, positional="model_name_or_path"
    )
    if arguments.model_name_or_path is None:
        raise ValueError("name the trained classifier: redundancy-hf share MODEL --sharing_factor 2 ...")
    if max(arguments.sharing_factor) == 1:
        raise ValueError("--sharing_factor says how many channels share a kernel: give one above 1.")
    train_seeds(arguments, task_arguments, training)
