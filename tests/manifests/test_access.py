"""Which places the rows of a manifest may name, and how secrets in URLs are hidden."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from manifests.access import Access, display_uri, without_secrets, without_secrets_in
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


SECRET = "hunter2"


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        # users and passwords
        ("s3://key:hunter2@bucket/a.png: no", "s3://***@bucket/a.png: no"),
        ("secret_key=hunter2", "secret_key=***"),
        ("aws_secret_access_key: hunter2", "aws_secret_access_key: ***"),
        ("Authorization: Basic hunter2", "Authorization: Basic ***"),
        ("x-api-key: hunter2 refused", "x-api-key: *** refused"),
        ("S3://key:hunter2@bucket/a", "S3://***@bucket/a"),
        ("s3://AKIA:wJa/hunter2/bP+x@bucket/a", "s3://***@bucket/a"),
        ("https://user:a@b'hunter2@host/p@q: no", "https://***@host/p@q: no"),
        ("https://user:a,b;c)hunter2@host/p", "https://***@host/p"),
        ("https://hunter2@host/a.png", "https://***@host/a.png"),
        ("http://me:hunter2@[::1]:80/a", "http://***@[::1]:80/a"),
        ("abfs://box:hunter2@account/a", "abfs://***@account/a"),
        ("zip::https://me:hunter2@h/a.zip", "zip::https://***@h/a.zip"),
        ("error:https://me:hunter2@h/a", "error:https://***@h/a"),
        ("ftp://me:hunter2@h/a", "ftp://***@h/a"),
        ("git+https://hunter2@github.com/o/r", "git+https://***@github.com/o/r"),
        ("'s3://a:hunter2@b','s3://c:hunter2@d'", "'s3://***@b','s3://***@d'"),
        ('Invalid bucket name "KEY:hunter2@bucket"', 'Invalid bucket name "***@bucket"'),
        ("--address me:hun/hunter2@host:8265 is", "--address ***@host:8265 is"),
        # queries
        ("http://h:9/a.png?size=10,20&token=hunter2", "http://h:9/a.png?***"),
        ("https://h/a?size=(1)&sig=hunter2", "https://h/a?***"),
        ("https://h/a?a=1;sig=hunter2", "https://h/a?***"),
        ("https://h/a?x='a'&y=hunter2", "https://h/a?***"),
        ('https://h/a?x="a"&y=hunter2', "https://h/a?***"),
        ("https://h/a?hunter2", "https://h/a?***"),
        ("(https://h/a?k=hunter2), then", "(https://h/a?***), then"),
        ("see https://h/a?k=hunter2: no such file", "see https://h/a?***: no such file"),
        ("'https://h/a?k=hunter2', then 'https://h/b?k=hunter2'", "'https://h/a?***', then 'https://h/b?***'"),
        ("['https://h/a?k=hunter2','https://h/b?k=hunter2']", "['https://h/a?***','https://h/b?***']"),
        ('{"u":"https://h/a?k=hunter2","v":3}', '{"u":"https://h/a?***","v":3}'),
        ("https://web.org/web/https://h/a?token=hunter2", "https://web.org/web/https://h/a?***"),
        ("https://h/a?next=https://other/x?k=hunter2", "https://h/a?***"),
        ("HTTPS://me:hunter2@h/a?sig=hunter2", "HTTPS://***@h/a?***"),
        ("az://box/a?sv=2022&sig=hunter2", "az://box/a?***"),
        ("abfs://box@account/a?sv=2022&sig=hunter2", "abfs://box@account/a?***"),
        ("abfss://box@account/a?sig=a,b)hunter2", "abfss://box@account/a?***"),
        (
            "https://b.s3.amazonaws.com/a?X-Amz-Credential=AK%2F1&X-Amz-Signature=hunter2",
            "https://b.s3.amazonaws.com/a?***",
        ),
        ("https://storage.googleapis.com/b/a?X-Goog-Signature=hunter2", "https://storage.googleapis.com/b/a?***"),
        ("s3://bucket/a?versionId=hunter2", "s3://bucket/a?***"),
        ("hf://datasets/u/r/a?token=hunter2", "hf://datasets/u/r/a?***"),
        (
            "retries exceeded with url: /m.parquet?k=hunter2 (Caused",
            "retries exceeded with url: /m.parquet?*** (Caused",
        ),
        # fragments
        ("https://h/a#access_token=hunter2&state=1", "https://h/a#***"),
        ("https://h/a#id=1&access_token=hunter2", "https://h/a#***"),
        # where no URL tells what it is
        ("https://h/my file.png?a=1&token=hunter2", "https://h/my file.png?***"),
        ("https://proxy/https%3A%2F%2Fh%2Fa%3Ftoken%3Dhunter2", "https://proxy/https%3A%2F%2Fh%2Fa%3Ftoken%3D***"),
        ("AccountName=a;AccountKey=hunter2==", "AccountName=a;AccountKey=***"),
        ("--env AWS_SECRET_ACCESS_KEY=hunter2", "--env AWS_SECRET_ACCESS_KEY=***"),
        ("{'token': 'hunter2', 'key': 1}", "{'token': '***', 'key': 1}"),
        ("Authorization: Bearer hunter2hunter2", "Authorization: Bearer ***"),
        ("https://h/hf_hunter2hunter2hunter2hunter2/a", "https://h/***/a"),
    ],
)
def test_secrets_are_masked_and_the_rest_is_readable(text: str, masked: str) -> None:
    assert SECRET in text
    assert without_secrets(text) == masked
    assert without_secrets(masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        "abfs://box@account.dfs.core.windows.net:443/a@b",
        "user@example.org wrote a?b to s3://bucket/a@b.png",
        "http://host:8080/a@b",
        "http://[::1]:8080/a@b",
        "hf://datasets/u/r@refs/convert/a",
        "s3://b/a?.png",
        "row 3: a@b.png",
        "127.0.0.1:9/a@b",
        "git@github.com:o/r",
        "https://h/a#part",
        "what? yes",
        "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN to the cluster's token",
        "design=3, sig: x",
        "/data/a?b/c",
    ],
)
def test_what_holds_no_secret_stays(text: str) -> None:
    assert without_secrets(text) == text


def test_secrets_in_nested_values_are_masked() -> None:
    values = {"roots": ("https://user:a@b@host/p", "abfs://box@account/p"), "query": 'https://h/a?x"y', "rows": 3}
    masked = {"roots": ["https://***@host/p", "abfs://box@account/p"], "query": "https://h/a?***", "rows": 3}
    assert without_secrets_in(values) == masked


@pytest.mark.parametrize(
    "text",
    [
        *("http://", "a.", "a:@", "s3://ab:", "'http://a?", "'http://a? ", "az://", "https://#", "https://a#b"),
        *("token=", "eyJaaaaaaaa.", "?a=", "'http://a'", 'token": "', "x?a", "auth", "Bearer ", "a://b:c/", "a:b/ "),
        *("s3://a:" + "'" * 3 * 10**5, "http://a?" + ")" * 3 * 10**5, "s3://ab:" + "/" * 3 * 10**5),
    ],
)
def test_masking_takes_little_time_on_hostile_text(text: str) -> None:
    start = time.process_time()
    without_secrets(text * (3 * 10**5 // len(text)))
    assert time.process_time() - start < 3


def test_a_uri_is_one_line_in_a_message_and_all_of_its_query_is_masked() -> None:
    assert display_uri("https://h/my file.png?a b=1 hunter2") == "https://h/my file.png?***"
    assert display_uri("https://h/a.png?x=hun\nter2") == "https://h/a.png?***"
    assert display_uri("s3://b/a\n[3/3] done\x1b[2J.png") == "s3://b/a\\n[3/3] done\\x1b[2J.png"


@pytest.mark.parametrize("image", ["https://user:{}@host/a.png", "zip://a::https://user:{}@host/a.zip"])
def test_a_long_uri_is_cut_in_messages_without_showing_its_password(image: str) -> None:
    with pytest.raises(SampleError) as caught:
        resolve_uri(image.format("hunter2" * 100), MANIFEST, Access(()))
    assert "hunter2" not in caught.value.message
    assert len(caught.value.message) < 500
