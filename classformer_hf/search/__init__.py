"""The search for the fastest schedule that keeps the asked performance (thesis section 5.1.2)."""

from .executors import ExecutorError, LocalPool, Workers, connect_dask, open_workers
from .journal import Journal, JournalError, JournalLock, Trial
from .loop import Hooks, SearchResult, check_limits, pareto_front, reward, run_search
from .runner import TrialRunner
from .samplers import BinarySearchSampler, GaussianProcessSampler
from .space import Schedule, SearchSpace

__all__ = [
    "BinarySearchSampler",
    "ExecutorError",
    "GaussianProcessSampler",
    "Hooks",
    "Journal",
    "JournalError",
    "JournalLock",
    "LocalPool",
    "Schedule",
    "SearchResult",
    "SearchSpace",
    "Trial",
    "TrialRunner",
    "Workers",
    "check_limits",
    "connect_dask",
    "open_workers",
    "pareto_front",
    "reward",
    "run_search",
]
