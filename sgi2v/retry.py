"""The one retry policy, for operations on stores and for downloads.

Attempts        ATTEMPTS, unless the caller gives another number.
Delay           exponential backoff with jitter: FIRST_DELAY_S doubles after every attempt, up to LONGEST_DELAY_S, and
                is multiplied by a random factor from 0.5 to 1.5. Eight attempts wait 52 s on average.
Final           FINAL_ERRORS: the object is missing, exists, or may not be accessed. Raised as they are.
Own errors      SGI2VError, and what only a bug raises. Raised as they are.
Hopeless        a full disk, absent credentials, a wrong region. StorageError at once.
Anything else   retried: a store's client raises what its own library raises. StorageError after the last attempt.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Callable
from typing import TypeVar

from sgi2v.errors import SGI2VError, StorageError
from sgi2v.locations import credentials_advice

ATTEMPTS = 8
"""Attempts at one operation. With their delays they outlast the restart of a store, which takes most of a minute."""
FIRST_DELAY_S = 0.5
"""Mean delay before the second attempt, seconds; read at each call, so that a test can shorten it."""
LONGEST_DELAY_S = 20.0
"""Longest mean delay between two attempts, seconds."""

FINAL_ERRORS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
"""Answers of a store, which another attempt would only get again."""
_BUGS = (AssertionError, AttributeError, LookupError, NameError, TypeError)
_HOPELESS_NUMBERS = {errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.ENOTEMPTY}
_HOPELESS_NAMES = {
    *("NoCredentialsError", "PartialCredentialsError", "ParamValidationError", "InvalidRegionError"),
    *("ProfileNotFound", "ConfigParseError", "UnauthorizedSSOTokenError", "SSOTokenLoadError"),
}
"""Errors of the AWS SDK that another attempt cannot cure; by name, since the SDK need not be installed."""
_HOPELESS_TEXT = re.compile(r"^Invalid endpoint: |PermanentRedirect")
"""Messages of the same: of a wrong AWS_ENDPOINT_URL, and of a bucket in another region."""

ResultT = TypeVar("ResultT")


def with_retries(
    what: str,
    operation: Callable[[], ResultT],
    attempts: int = ATTEMPTS,
    on_first_error: Callable[[str], None] = lambda line: None,
) -> ResultT:
    """The result of an operation, which is called again after transient errors.

    what: the operation in words, such as `reading s3://bucket/run.json`; it opens the message. on_first_error: called
    with a line before the second attempt, since all of them take most of a minute. Raises StorageError where the error
    is hopeless or the last attempt fails; final errors, own errors and bugs as they are.
    """
    import tenacity  # here, since sgi2v must load where it is not installed and nothing is downloaded

    # half of the delay, and a random part of the whole
    half_delay = tenacity.wait_exponential(multiplier=FIRST_DELAY_S / 2, max=LONGEST_DELAY_S / 2)
    random_delay = tenacity.wait_random_exponential(multiplier=FIRST_DELAY_S, max=LONGEST_DELAY_S)

    def say_first(state: tenacity.RetryCallState) -> None:
        error = state.outcome.exception() if state.outcome is not None else None
        if state.attempt_number == 1:
            on_first_error(f"{what} failed ({type(error).__name__}: {error}): trying again for up to a minute")

    retrying = tenacity.Retrying(
        stop=tenacity.stop_after_attempt(attempts),
        wait=half_delay + random_delay,
        retry=tenacity.retry_if_exception(_is_transient),
        before_sleep=say_first,
        reraise=True,
    )
    try:
        return retrying(operation)
    except (SGI2VError, *FINAL_ERRORS, *_BUGS):
        raise
    except Exception as error:
        url = next((word for word in what.split() if "://" in word), "")
        advice = credentials_advice(error, url)
        raise StorageError(f"{what} failed: {type(error).__name__}: {error}{advice}") from error


def _is_transient(error: BaseException) -> bool:
    """Whether another attempt may succeed."""
    if not isinstance(error, Exception) or isinstance(error, (SGI2VError, *FINAL_ERRORS, *_BUGS)):
        return False
    is_hopeless = type(error).__name__ in _HOPELESS_NAMES or _HOPELESS_TEXT.search(str(error))
    return getattr(error, "errno", None) not in _HOPELESS_NUMBERS and not is_hopeless
