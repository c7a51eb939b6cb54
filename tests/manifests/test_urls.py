"""Where images and manifests lie: a key is used as it is written, and refusals say what to do."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any
from urllib.parse import quote

import fsspec
import pytest
import s3fs

import manifests.urls
from manifests.access import Access
from manifests.io import read_manifest, write_manifest
from manifests.urls import read_image_bytes, resolve_uri
from sgi2v.errors import ErrorCode, SampleError, StorageError
from sgi2v.locations import is_chained, local_path, open_store, split_protocol
from tests.manifests.rows import row, table
from tests.manifests.web_server import web_server
from tests.s3_stand_in import Store

KEYS = [
    *("in/m.parquet", "/m.parquet", "//m.parquet", "in//m.parquet", "in//x//m.parquet", "/in/m.parquet"),
    *("a::b/m.parquet", "a/b::c.parquet", "a#b/m?.parquet", "a b%20c/m.parquet", "a?b=c&d/m#1.parquet", "é/m.parquet"),
    *("a[1]*/m.parquet", "a+b/m.parquet", "simplecache::x/m.parquet"),
]


@pytest.mark.slow
def test_images_in_data_urls_are_read_as_they_were_encoded() -> None:
    data = bytes(range(256)) * 3 + b"\xff"
    text = base64.b64encode(data).decode()
    forms = [
        *(f"data:image/png;base64,{text}", f"DATA:image/png;charset=x;BASE64,{text}", f"data:;base64,{quote(text)}"),
        *(
            f"data:;base64,{text.rstrip('=')}",
            f"data:;base64,{text[:76]}\n{text[76:]}",
            f"data:image/png,{quote(data)}",
        ),
        f"data:;base64,{base64.urlsafe_b64encode(data).decode()}",
    ]
    assert [read_image_bytes(form) == data for form in forms] == [True] * len(forms)
    for damaged, message in {"data:;base64,@@@@": "not base64", "data:image/png;base64": "needs a comma"}.items():
        with pytest.raises(SampleError, match=message):
            read_image_bytes(damaged)
    with pytest.raises(SampleError, match="larger than"):
        read_image_bytes(forms[0], max_bytes=len(data) - 1)


def test_a_key_is_asked_for_as_it_is_written_and_its_image_is_found_beside_it(store: Store) -> None:
    for number, key in enumerate(KEYS):
        scheme = "s3" if number else "S3"
        store.objects.clear()
        image = f"{key.rpartition('/')[0]}/a::b #1?%20.png" if "/" in key else "a::b #1?%20.png"
        store.objects["bucket", image] = b"hello"
        manifest = f"{scheme}://bucket/{key}"
        write_manifest(table(row(image="a::b #1?%20.png")), manifest)
        assert set(store.objects) == {("bucket", image), ("bucket", key)}
        assert read_manifest(manifest).num_rows == 1
        uri = resolve_uri("a::b #1?%20.png", manifest, Access(()))
        assert uri == f"{scheme}://bucket/{image}"
        assert read_image_bytes(uri) == b"hello"


@pytest.mark.parametrize(
    ("image", "manifest", "expected"),
    [
        ("a.png", "s3://b//m.csv", "s3://b//a.png"),
        ("a.png", "s3://b/x//m.csv", "s3://b/x//a.png"),
        ("a.png", "s3://b/x///y/m.csv", "s3://b/x///y/a.png"),
        ("a.png", "s3://b/./x/../m.csv", "s3://b/./x/../a.png"),
        ("y//a.png", "s3://b/x/m.csv", "s3://b/x/y//a.png"),
        ("./a.png", "s3://b/x//m.csv", "s3://b/x//a.png"),
        ("../a.png", "s3://b/x//m.csv", "s3://b/x/a.png"),
        ("a.png", "https://h//d//m.csv?sig=a/b#c", "https://h//d//a.png"),
        ("a%20b.png", "https://h/d/m.csv", "https://h/d/a%20b.png"),
        ("a#1.png", "HTTPS://h/d/m.csv", "HTTPS://h/d/a%231.png"),
        ("image?id=1", "https://h/d/m.csv", "https://h/d/image?id=1"),
        ("a%20b.png", "file:///d/m.csv", "file:///d/a%2520b.png"),
        ("a%20b.png", "/d/m.csv", "/d/a%20b.png"),
        ("a?#::b.png", "/d/m.csv", "/d/a?#::b.png"),
        ("a.png", "gs://b/a?b/m#1.csv", "gs://b/a?b/a.png"),
    ],
)
def test_nothing_is_rewritten_where_a_name_is_joined_to_a_folder(image: str, manifest: str, expected: str) -> None:
    assert resolve_uri(image, manifest) == expected


def test_file_urls_are_unescaped_and_paths_are_not(tmp_path: Path) -> None:
    names = ["a b.png", "é.png", "a#1?.png", "100%.png", "a%20c.png", "a::b.png", "local:a.png", "data:b.png"]
    for name in names:
        (tmp_path / name).write_bytes(name.encode())
        for uri in (str(tmp_path / name), (tmp_path / name).as_uri()):
            assert read_image_bytes(uri) == name.encode(), uri
        assert read_image_bytes(resolve_uri(f"./{name}", str(tmp_path / "m.csv"))) == name.encode()
        assert read_image_bytes(resolve_uri(f"./{name}", (tmp_path / "m.csv").as_uri())) == name.encode()
    folder = tmp_path.as_uri()
    assert read_image_bytes(f"{folder}/a%20c.png") == b"a%20c.png"  # only the escaped name exists
    (tmp_path / "a c.png").write_bytes(b"a c.png")
    assert read_image_bytes(f"{folder}/a%20c.png") == b"a c.png"
    assert read_image_bytes(f"{folder}/a%2520c.png") == b"a%20c.png"
    for url in (f"FILE://{tmp_path}/a%20b.png", f"file://localhost{tmp_path}/a%20b.png", f"Local://{tmp_path}/a b.png"):
        assert read_image_bytes(url) == b"a b.png"
    with pytest.raises(SampleError, match="no such file"):
        read_image_bytes(f"{folder}/none%20here.png")


def test_the_access_check_sees_the_file_that_is_opened(tmp_path: Path) -> None:
    inside = tmp_path / "set"
    inside.mkdir()
    (tmp_path / "secret.png").write_bytes(b"")
    access = Access(())
    for image in ("%2e%2e/secret.png", "..%2fsecret.png", "%2e%2e%2fsecret.png", "x%2f..%2f..%2fsecret.png"):
        with pytest.raises(SampleError, match="outside"):
            resolve_uri(f"file://{inside}/{image}", str(inside / "m.csv"), access)
        # as a relative name it is a file of that odd name
        path = local_path(resolve_uri(image, (inside / "m.csv").as_uri(), access))
        assert path is not None
        assert path.resolve().is_relative_to(inside)
    with pytest.raises(SampleError, match="beside an empty part"):
        resolve_uri("https://h/b/c//../../set/a.png", "https://h/set/m.csv", access)
    with pytest.raises(SampleError, match="outside"):
        resolve_uri("s3://b/set/x/a.png", "s3://b/m/m.csv", Access(("s3://b/set//x",)))
    assert resolve_uri("s3://b/set//x/a.png", "s3://b/m/m.csv", Access(("s3://b/set",)))


@pytest.mark.parametrize(
    "uri", ["a::b.png", "s3://b/a::b", "http://[::1]:80/a.png", "/d/x::y/a.png", "memory://a::b", "zip.png::2"]
)
def test_a_name_with_two_colons_is_no_chain(uri: str) -> None:
    assert not is_chained(uri)
    assert resolve_uri(uri, "/d/m.csv").endswith(uri)


def test_two_colons_in_keys_of_any_store() -> None:
    fsspec.filesystem("memory").store.clear()
    for uri in ("memory://urls/a::b.png", "MEMORY://urls::2/a.png"):
        filesystem, name = open_store(uri)
        filesystem.pipe_file(name, b"hello")
        assert read_image_bytes(uri) == b"hello"


def test_chains_still_open_for_manifests(tmp_path: Path) -> None:
    write_manifest(table(row()), str(tmp_path / "m.parquet"))
    assert read_manifest(f"simplecache::file://{tmp_path}/m.parquet").num_rows == 1


def test_protocols_are_split_once() -> None:
    assert split_protocol("S3://B/K") == ("s3", "B/K")
    assert split_protocol("/data/x://y") == ("file", "/data/x://y")
    assert split_protocol("DATA:image/png;base64,AA==") == ("data", "image/png;base64,AA==")
    assert read_image_bytes("DATA:image/png;base64,aGVsbG8=") == b"hello"


def test_a_manifest_behind_a_signed_url_is_read_with_its_escapes(tmp_path: Path) -> None:
    write_manifest(table(row()), str(tmp_path / "m.parquet"))
    data = (tmp_path / "m.parquet").read_bytes()
    target = "/b/a%2Bb/m.parquet?X-Amz-Signature=a%2Fb%2B%3D"
    with web_server(lambda request: (200, {}, data)) as server:
        assert read_manifest(server.url.replace("http", "Http") + target).num_rows == 1
        assert server.targets == [target]


def test_bytes_and_time_are_bounded_in_every_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.png").write_bytes(b"12345")
    fsspec.filesystem("memory").pipe_file("/urls/a.png", b"12345")
    for uri in (str(tmp_path / "a.png"), "memory://urls/a.png"):
        with pytest.raises(SampleError) as caught:
            read_image_bytes(uri, 4)
        assert caught.value.code is ErrorCode.IMAGE_TOO_LARGE
    monkeypatch.setattr(manifests.urls, "READ_S", -1.0)
    with pytest.raises(SampleError) as caught:
        read_image_bytes("memory://urls/a.png")
    assert caught.value.code is ErrorCode.TIMED_OUT


S3_ADVICE = "set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"


def test_absent_credentials_name_the_variables_to_set(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/none")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(OSError, match=S3_ADVICE):
        read_image_bytes("s3://bucket/a.png")
    with pytest.raises(StorageError, match=S3_ADVICE):
        read_manifest("s3://bucket/m.parquet")


def test_a_store_whose_package_is_missing_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("Please install gcsfs to access Google Storage")

    monkeypatch.setattr("fsspec.core.url_to_fs", missing)
    with pytest.raises(SampleError, match="install gcsfs"):
        read_image_bytes("gs://bucket/a.png")
