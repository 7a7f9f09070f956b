"""The search for the fastest schedule that keeps the asked performance (thesis section 5.1.2)."""

from .journal import Journal, JournalError, Trial
from .samplers import BinarySearchSampler, GaussianProcessSampler
from .space import Schedule, SearchSpace
from .study import SearchResult, check_limits, pareto_front, reward, run_search

__all__ = [
    "BinarySearchSampler",
    "GaussianProcessSampler",
    "Journal",
    "JournalError",
    "Schedule",
    "SearchResult",
    "SearchSpace",
    "Trial",
    "check_limits",
    "pareto_front",
    "reward",
    "run_search",
]
