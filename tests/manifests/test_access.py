"""Which places the rows of a manifest may name, and how secrets in URLs are hidden."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from manifests.access import Access, without_secrets, without_secrets_in
from manifests.urls import resolve_uri
from sgi2v.errors import SampleError

MANIFEST = "s3://bucket/set/m.parquet"


@pytest.mark.parametrize(
    "image",
    [
        "zip::https://host/a.zip",
        "simplecache::s3://bucket/a.png",
        "filecache://bucket/a.png",
        "github://owner:repo@main/a.png",
        "ssh://host/etc/passwd",
        "sftp://host/a.png",
        "ftp://host/a.png",
        "reference://a",
        "zip://a.png",
        "dir://etc",
        "gopher://host/",
        "FILECACHE://bucket/a.png",
        "://a.png",
    ],
)
def test_protocols_that_are_not_for_images_are_refused(image: str) -> None:
    with pytest.raises(SampleError, match="refused") as caught:
        resolve_uri(image, MANIFEST)
    assert caught.value.code == "image_missing"


@pytest.mark.parametrize(
    "image", ["a.png", "/data/a.png", "s3://other/a.png", "https://host/a.png", "data:,x", "file:///a"]
)
def test_a_trusted_manifest_may_name_any_other_place(image: str) -> None:
    assert resolve_uri(image, MANIFEST)


@pytest.mark.parametrize(
    "image",
    [
        "../other/a.png",
        "sub/../../other/a.png",
        "s3://bucket/set-b/a.png",
        "s3://bucket/set/../other/a.png",
        "s3://bucket/set/%2e%2e/other/a.png",
        "s3://bucket/set/%252e%252e/other/a.png",
        "s3://other/set/a.png",
        "gs://bucket/set/a.png",
        "http://169.254.169.254/latest/meta-data",
        "https://host/pictures/../private/a.png",
        "https://host.evil/pictures/a.png",
        "https://host@evil/pictures/a.png",
        "https://host%2Fpictures%2F@evil/a.png",
        "https://host/pictures/x://../../../private/a.png",
        "http://evil/x?://host/pictures/a.png",
        "file:///data/pictures/x://../../../../etc/passwd",
        "/etc/passwd",
        "file:///etc/passwd",
        "local:///etc/passwd",
        "/data/pictures/../private.png",
    ],
)
def test_an_untrusted_manifest_may_not_leave_its_roots(image: str) -> None:
    access = Access(("https://host/pictures", "/data/pictures"))
    with pytest.raises(SampleError, match="refused: it"):
        resolve_uri(image, MANIFEST, access)


@pytest.mark.parametrize(
    "image",
    [
        *(
            "a.png",
            "sub/a.png",
            "sub/../a.png",
            "s3://bucket/set/a.png",
            "S3://bucket/set/a.png",
            "data:image/png;base64,AA",
        ),
        *("https://host/pictures/a.png", "https://host/pictures/a.png?size=9", "/data/pictures/a.png"),
        "file:///data/pictures/a.png",
    ],
)
def test_an_untrusted_manifest_may_name_images_within_its_roots(image: str) -> None:
    assert resolve_uri(image, MANIFEST, Access(("https://host/pictures", "/data/pictures")))


def test_symbolic_links_are_resolved_before_the_check(tmp_path: Path) -> None:
    manifest, secret = tmp_path / "set" / "m.parquet", tmp_path / "secret.png"
    manifest.parent.mkdir()
    secret.write_bytes(b"")
    (manifest.parent / "link.png").symlink_to(secret)
    assert resolve_uri("link.png", str(manifest))
    with pytest.raises(SampleError, match="outside"):
        resolve_uri("link.png", str(manifest), Access(()))
    assert resolve_uri("link.png", str(manifest), Access((str(tmp_path),)))
    (manifest.parent / "loop.png").symlink_to(manifest.parent / "loop.png")
    for image in ("loop.png", "a\0b.png"):
        with pytest.raises(SampleError, match="refused: its path cannot be resolved"):
            resolve_uri(image, str(manifest), Access(()))


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("s3://key:secret@bucket/a.png: no", "s3://***@bucket/a.png: no"),
        ("'https://h/a.png?X-Amz-Signature=1&b=2', then", "'https://h/a.png?***', then"),
        ("https://user:a@b'c@host/p@q: no", "https://***@host/p@q: no"),
        ("https://token@host/a.png", "https://***@host/a.png"),
        ("abfs://box@account.dfs.core.windows.net:443/a@b", "abfs://box@account.dfs.core.windows.net:443/a@b"),
        ("abfs://box:secret@account/a", "abfs://***@account/a"),
        ("https://web.org/web/https://h/a?token=1", "https://web.org/web/https://h/a?***"),
        ("user@example.org wrote a?b to s3://bucket/a@b.png", "user@example.org wrote a?b to s3://bucket/a@b.png"),
    ],
)
def test_secrets_in_urls_are_masked(text: str, masked: str) -> None:
    assert without_secrets(text) == masked


def test_secrets_in_nested_values_are_masked() -> None:
    values = {"roots": ("https://user:a@b@host/p", "abfs://box@account/p"), "query": 'https://h/a?x"y', "rows": 3}
    masked = {"roots": ["https://***@host/p", "abfs://box@account/p"], "query": 'https://h/a?***"y', "rows": 3}
    assert without_secrets_in(values) == masked


@pytest.mark.parametrize("text", ["http://" * 150_000, "a." * 500_000, "a:" * 500_000 + "@", "s3://a:" + "'" * 10**6])
def test_masking_takes_little_time_on_hostile_text(text: str) -> None:
    start = time.monotonic()
    without_secrets(text)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("image", ["https://user:{}@host/a.png", "zip://a::https://user:{}@host/a.zip"])
def test_a_long_uri_is_cut_in_messages_without_showing_its_password(image: str) -> None:
    with pytest.raises(SampleError) as caught:
        resolve_uri(image.format("hunter2" * 100), MANIFEST, Access(()))
    assert "hunter2" not in caught.value.message
    assert len(caught.value.message) < 500
