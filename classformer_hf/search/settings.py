"""What is asked of a search; every field is a flag of the command."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from .loop import check_limits
from .space import SearchSpace

Strategy = Literal["constrained", "thesis", "tpe", "gp", "random", "evolution", "binary"]


@dataclass(frozen=True)
class SearchSettings:
    """What is asked of a search.

    Raises:
        ValueError: No search can give it.
    """

    required_performance: float = field(
        default=0.99, metadata={"help": "Share of the full model's validation score that the result must keep."}
    )
    max_trials: int = field(
        default=50,
        metadata={
            "help": "Number of schedules to evaluate, those of a resumed search included; with a supernet, 10 more for "
            "every winner that falls short or keeps clearly more than was asked."
        },
    )
    strategy: Strategy = field(
        default="constrained",
        metadata={
            "help": "How schedules are proposed. constrained: latency known from a table, accuracy by a Gaussian "
            "process, fastest feasible first. thesis: Gaussian-process optimisation of the reward 5.4. tpe, gp: "
            "Optuna's. random, evolution. binary: bisection of the first layer of three evenly spaced 2x reductions."
        },
    )
    evaluation: Literal["supernet", "finetune"] | None = field(
        default=None,
        metadata={
            "help": "What a trial is. supernet: a validation with weights that were trained once for all schedules; "
            "finetune: a fine-tuning of its own. Default: finetune for thesis and binary, supernet for the others."
        },
    )
    max_reduction: float | None = field(
        default=None,
        metadata={
            "help": "Largest reduction of the longest text: 16 keeps at least one position in 16 until the last layer. "
            "Default: 16; no limit for thesis and binary."
        },
    )
    gamma_options: list[str] = field(
        default_factory=lambda: ["1", "2", "4", "8", "first"],
        metadata={"help": "Reduction factors to choose from; 'first' keeps one token beside the first eta."},
    )
    eta_options: list[int] = field(
        default_factory=lambda: [0, 2, 4, 8, 16], metadata={"help": "Numbers of leading tokens that may stay."}
    )
    latency_table: str | None = field(
        default=None,
        metadata={
            "help": "Latency table of the machine where the result shall run (`redundancy-hf latency-table`). "
            "Default: built here, once."
        },
    )
    num_winners: int = field(
        default=5,
        metadata={
            "help": "Most candidates of a supernet that are fine-tuned to find the fastest that is good enough. Those "
            "of a resumed search count if requirement, number of trials and buckets are the same."
        },
    )
    winner_epochs: float = field(default=1.0, metadata={"help": "Epochs of a winner's own fine-tuning."})
    length_buckets: list[int] = field(
        default_factory=list,
        metadata={"help": "Choose another schedule for inputs of at most so many tokens each, such as 32 64."},
    )
    reuse: str | None = field(
        default=None,
        metadata={"help": "Folder of a finished search with a supernet; nothing but the winners is trained again."},
    )
    initial_designs: Literal["thesis", "random", "none"] = field(
        default="thesis",
        metadata={
            "help": "First trials. thesis: 10 seeded and 8 random, scaled to at most half of the trials; random: the "
            "same number, all random; none: the model proposes from the third trial on."
        },
    )
    reward_latency: Literal["ratio", "milliseconds"] = field(
        default="ratio",
        metadata={
            "help": "Latency in the reward (equation 5.4): as a ratio to the full model in the same round, or in "
            "milliseconds."
        },
    )

    def __post_init__(self):
        check_limits(self.required_performance, self.max_trials)
        self.build_space(1, 1)
        if self.num_winners < 1:
            raise ValueError(f"`num_winners` must be at least 1, got {self.num_winners}.")
        if self.has_supernet:
            given = [n for n in ("initial_designs", "reward_latency") if getattr(self, n) != getattr(SearchSettings, n)]
        else:
            given = [name for name in ("reuse", "length_buckets") if getattr(self, name)]
        if given:
            raise ValueError(f"`{given[0]}` needs `evaluation` {'finetune' if self.has_supernet else 'supernet'}.")

    @property
    def is_thesis(self) -> bool:
        """Whether the strategy is of the thesis, whose every trial is a fine-tuning."""
        return self.strategy in ("thesis", "binary")

    @property
    def has_supernet(self) -> bool:
        return not self.is_thesis if self.evaluation is None else self.evaluation == "supernet"

    @property
    def reused(self) -> Path | None:
        """Folder of the search that is reused."""
        return None if self.reuse is None else Path(self.reuse)

    @property
    def question(self) -> dict[str, Any]:
        """What a winner is fine-tuned for, as plain data: another question gets `num_winners` of its own."""
        return {
            "required_performance": self.required_performance,
            "max_trials": self.max_trials,
            "length_buckets": list(self.length_buckets),
        }

    def build_space(
        self, num_layers: int, max_tokens: int, first_token_gamma: int = 512, judged_tokens: int | None = None
    ) -> SearchSpace:
        """Build the space; arguments as for [`SearchSpace`]."""
        reduction = 16 if self.max_reduction is None and not self.is_thesis else self.max_reduction
        return SearchSpace(
            num_layers,
            max_tokens,
            self.gamma_options,
            self.eta_options,
            first_token_gamma=first_token_gamma,
            max_reduction=reduction,
            judged_tokens=judged_tokens,
        )
