"""The Hub's answers: the commit of a name, another try where the Hub is busy, and in one sentence why a model fails."""

import logging
import time
from collections.abc import Callable, Iterator
from json import JSONDecodeError
from typing import Any

from huggingface_hub import is_offline_mode, resolve_revision
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
)

logger = logging.getLogger(__name__)

LOGIN = "run `hf auth login`, or set HF_TOKEN"
BUSY = (429, 500, 502, 503, 504)
UNREACHABLE = (LocalEntryNotFoundError, OfflineModeIsEnabled, RevisionResolutionError, ConnectionError)


def resolve_commit(name: str) -> str:
    """Give the commit that a name on the Hub stands for; without a connection, the one in the cache.

    Raises:
        OSError: It is not known, and why.
    """
    try:
        return resolve_revision(name).resolved
    except Exception as error:  # of the name, the connection and the Hub, which have no kind in common
        raise OSError(explain_failure(name, error) or f"the commit of `{name}` is not known: {error}") from error


def explain_failure(name: str, error: BaseException, revision: str | None = None) -> str | None:
    """Say why a model cannot be read, if that is a matter of the Hub, of the name, its revision or a package.

    Returns:
        One sentence, or `None` where the reason is another one, such as a damaged file.
    """
    causes = list(_list_causes(error))

    def find(*kinds: type[BaseException]) -> BaseException | None:
        return next((cause for cause in causes if isinstance(cause, kinds)), None)

    nowhere = f"there is no folder `{name}`, and"
    if find(GatedRepoError):
        return f"`{name}` is gated: accept its terms on its page on the Hub, then {LOGIN}."
    status = None
    if (found := find(HfHubHTTPError)) and not isinstance(found, EntryNotFoundError):
        status = getattr(getattr(found, "response", None), "status_code", "an error")
    # a name without an owner is answered without a kind of error
    if find(RepositoryNotFoundError) or (status == 404 and not find(RevisionNotFoundError)):
        return f"{nowhere} on the Hub no such model, or it is private: for that {LOGIN}."
    if find(RevisionNotFoundError):
        return f"{name} has no revision {revision}; name a branch, a tag or a commit of it."
    if find(HFValidationError):
        return f"{nowhere} it is no name on the Hub, which is OWNER/MODEL; check the path."
    if status is not None:
        return f"the Hub answers {status} for `{name}`; try again later, or {LOGIN}."
    if find(*UNREACHABLE):
        why = "HF_HUB_OFFLINE forbids to ask the Hub" if is_offline_mode() else "the Hub cannot be reached"
        way_out = "load it once without that" if is_offline_mode() else "check the connection"
        return f"{nowhere} no such model in the cache, while {why}; {way_out}."
    if found := find(ImportError):
        return f"`{name}` needs a package that is not installed: {first_line(found)}"
    if found := find(JSONDecodeError, UnicodeDecodeError):
        return f"a JSON file of `{name}` is damaged ({first_line(found)}); download it again."
    return None


def first_line(error: BaseException) -> str:
    """Give what an error says, of several lines the first."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _list_causes(error: BaseException) -> Iterator[BaseException]:
    """Go from an error to what it was raised from."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__


def retry_if_busy(call: Callable[[], Any]) -> Any:
    """Call the Hub again when it is busy, and say so: the client does that for reading files only.

    Raises:
        HfHubHTTPError: It refuses, or is still busy.
    """
    for wait in (1, 2, 4, 8, 16):
        try:
            return call()
        except Exception as error:
            status = find_status(error)
            if status not in BUSY:
                raise
            logger.warning(f"the Hub answers {status}; trying again in {wait} s")
            time.sleep(wait)
    return call()


def find_status(error: BaseException) -> int | None:
    """Give the Hub's answer behind an error, which the client may have wrapped."""
    answer = next((cause.response for cause in _list_causes(error) if isinstance(cause, HfHubHTTPError)), None)
    return getattr(answer, "status_code", None)
