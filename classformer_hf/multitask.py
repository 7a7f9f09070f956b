"""Training on several tasks at once, before the last fine-tuning on one of them or on another.

Thesis section 6.2.3; losses as in equation 2.14 (Aghajanyan et al. 2021, "Muppet"): every batch mixes tasks, all
examples go through one encoder, each task has a head of its own, and cross entropies are divided by log n(classes),
which is what guessing costs, so that a task of many classes does not outweigh the others. A regression's squared error
is divided by the variance of its labels, which is what guessing costs there (ours; the equation has classes only).

Letters: B examples, L tokens, D width.
"""

import copy
import math
from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset, Value, concatenate_datasets
from torch import nn
from torch.nn import functional as F
from transformers.modeling_outputs import SequenceClassifierOutput

from redundancy_hf.labels import MULTI_LABEL, REGRESSION
from redundancy_hf.task import Task

from .configuration_classformer import ClassformerConfig
from .modeling_classformer import ClassformerClassificationHead, ClassformerModel, ClassformerPreTrainedModel

TASK = "task_ids"


def mix_tasks(tasks: Sequence[Task]) -> Dataset:
    """Put the train splits of several tasks into one, each example with the number of its task.

    Args:
        tasks: Tokenised.

    Returns:
        The inputs, "labels" as floats and "task_ids".

    Raises:
        ValueError: A task has several labels per example.
    """
    parts = []
    for index, task in enumerate(tasks):
        if task.problem_type == MULTI_LABEL:
            raise ValueError(f"{task.name} has several labels per example; tasks that are mixed have one.")
        split = task.splits["train"].cast_column("labels", Value("float32"))
        parts.append(split.add_column(TASK, [index] * len(split)))
    return concatenate_datasets(parts)


def guessing_loss(task: Task) -> float:
    """Say what guessing costs: log n(classes), or the variance of the labels.

    Raises:
        ValueError: It costs nothing, since all labels are alike.
    """
    is_regression = task.problem_type == REGRESSION
    loss = float(np.var(task.splits["train"]["labels"])) if is_regression else math.log(task.num_labels)
    if loss == 0:
        raise ValueError(f"all labels of {task.name} are alike; there is nothing to learn.")
    return loss


class MultitaskClassformer(ClassformerPreTrainedModel):
    """One encoder with a classification head for every task."""

    accepts_loss_kwargs = False

    def __init__(self, config: ClassformerConfig, num_labels: Sequence[int], loss_scales: Sequence[float]):
        super().__init__(config)
        self.roberta = ClassformerModel(config, add_pooling_layer=False)
        self.heads = nn.ModuleList()
        for number in num_labels:
            head_config = copy.deepcopy(config)
            head_config.num_labels = number
            self.heads.append(ClassformerClassificationHead(head_config))
        self.loss_scales = list(loss_scales)
        self.post_init()

    @classmethod
    def from_encoder(cls, encoder: ClassformerModel, tasks: Sequence[Task]) -> "MultitaskClassformer":
        """Put fresh heads on a copy of an encoder."""
        model = cls(encoder.config, [task.num_labels for task in tasks], [guessing_loss(task) for task in tasks])
        model.roberta.load_state_dict(encoder.state_dict(), strict=False)
        return model

    def copy_to(self, encoder: ClassformerModel) -> ClassformerModel:
        """Put the trained weights into the encoder of the beginning; its pooler, which no task reads, stays."""
        encoder.load_state_dict(self.roberta.state_dict(), strict=False)
        return encoder

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        task_ids: torch.Tensor,
        labels: torch.Tensor,
        token_type_ids: torch.Tensor | None = None,
        **kwargs,
    ) -> SequenceClassifierOutput:
        """Give the mean of the scaled losses of a mixed batch; arguments that are not named as of [`ClassformerModel`].

        Args:
            task_ids: Number of every example's task, (B,).
            labels: Class ids or values, as floats, (B,).
        """
        encoded = self.roberta(
            input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids, cls_only=True, **kwargs
        )
        states = encoded.last_hidden_state
        losses = states.new_zeros(len(states))
        for index, (head, scale) in enumerate(zip(self.heads, self.loss_scales, strict=True)):
            rows = (task_ids == index).nonzero()[:, 0]
            logits, targets = head(states[rows]), labels[rows]
            if logits.shape[1] == 1:
                loss = (logits[:, 0] - targets).square()
            else:
                loss = F.cross_entropy(logits, targets.long(), reduction="none")
            losses = losses.index_copy(0, rows, loss.to(losses.dtype) / scale)
        return SequenceClassifierOutput(loss=losses.mean(), logits=losses)
