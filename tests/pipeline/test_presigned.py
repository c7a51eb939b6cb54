"""Presigned URLs of a real S3 server: the signature covers the escapes of the URL."""

from __future__ import annotations

import pytest

from manifests.urls import read_image_bytes
from sgi2v.errors import SampleError
from tests.pipeline.conftest import S3Server

KEYS = [
    *("plain.png", "a b.png", "a+b.png", "a%20b.png", "a%2Fb.png", "é.png", "日本.png", "a=b&c.png", "a;b,c.png"),
    *("a:b@c.png", "a$b!c.png", "a'(b)*.png", "a~b.png", "a#b.png", "a?b=c.png", "a::b.png", "[a]{b}.png"),
]


def test_every_signed_key_is_read(bucket: str, s3_server: S3Server) -> None:
    filesystem = s3_server.filesystem()
    failed = {}
    for key in KEYS:
        path = f"{bucket.removeprefix('s3://')}/{key}"
        filesystem.pipe_file(path, key.encode())
        try:
            assert read_image_bytes(filesystem.sign(path)) == key.encode()
        except (SampleError, OSError) as error:
            failed[key] = str(error)
    assert not failed


def test_a_changed_signature_is_a_refusal_and_not_a_missing_file(bucket: str, s3_server: S3Server) -> None:
    filesystem = s3_server.filesystem()
    path = f"{bucket.removeprefix('s3://')}/a.png"
    filesystem.pipe_file(path, b"hello")
    with pytest.raises(SampleError, match=r"refuses access \(HTTP 403\)"):
        read_image_bytes(filesystem.sign(path) + "0")
    with pytest.raises(SampleError, match=r"no such file \(HTTP 404\)"):
        read_image_bytes(filesystem.sign(f"{path}.none"))
