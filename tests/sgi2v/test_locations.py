"""Refused credentials name what to set, and only where a store refused them."""

from __future__ import annotations

import pytest

from sgi2v.errors import StorageError
from sgi2v.locations import credentials_advice
from sgi2v.retry import with_retries


class NoCredentialsError(Exception):
    """Named as the AWS SDK's."""


@pytest.mark.parametrize(
    ("location", "error", "named"),
    [
        ("s3://b/k", NoCredentialsError("Unable to locate credentials"), "AWS_PROFILE"),
        ("S3A://b/k", PermissionError("Forbidden"), "AWS_ACCESS_KEY_ID"),
        ("s3://b/k", OSError("SignatureDoesNotMatch"), "AWS_SECRET_ACCESS_KEY"),
        ("s3://b/k", OSError("ExpiredToken: The provided token has expired."), "AWS_SESSION_TOKEN"),
        ("gcs://b/k", OSError("Anonymous caller: unauthorized"), "GOOGLE_APPLICATION_CREDENTIALS"),
        (
            "abfs://c/k",
            ValueError("Must provide a connection_string or account_name"),
            "AZURE",
        ),
        ("hf://datasets/a/b", OSError("401 Client Error: Unauthorized"), "HF_TOKEN"),
    ],
)
def test_refused_credentials_name_what_to_set(location: str, error: Exception, named: str) -> None:
    assert named in credentials_advice(error, location)


@pytest.mark.parametrize(
    ("location", "error"),
    [
        ("s3://b/k", ConnectionResetError("reset by peer")),
        ("s3://b/k", FileNotFoundError("b/k")),
        ("/data/a.png", PermissionError("permission denied")),
        ("https://h/a.png", PermissionError("forbidden")),
    ],
)
def test_other_errors_name_nothing(location: str, error: Exception) -> None:
    assert credentials_advice(error, location) == ""


def test_a_hopeless_error_ends_the_attempts_and_names_what_to_set() -> None:
    def operation() -> None:
        raise NoCredentialsError("Unable to locate credentials")

    with pytest.raises(StorageError, match=r"reading s3://b/run.json failed: .*set AWS_PROFILE"):
        with_retries("reading s3://b/run.json", operation)
