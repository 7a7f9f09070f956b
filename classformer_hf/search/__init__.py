"""The search for the fastest schedule that keeps the asked performance (thesis section 5.1.2)."""

from .executors import ExecutorError, LocalPool, dask_executors
from .journal import Journal, JournalError, JournalLock, Trial
from .loop import SearchResult, check_limits, pareto_front, reward, run_search
from .samplers import BinarySearchSampler, GaussianProcessSampler
from .space import Schedule, SearchSpace

__all__ = [
    "BinarySearchSampler",
    "ExecutorError",
    "GaussianProcessSampler",
    "Journal",
    "JournalError",
    "JournalLock",
    "LocalPool",
    "Schedule",
    "SearchResult",
    "SearchSpace",
    "Trial",
    "check_limits",
    "dask_executors",
    "pareto_front",
    "reward",
    "run_search",
]
