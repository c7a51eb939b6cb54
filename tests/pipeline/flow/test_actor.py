"""The process of an actor: our packages win over a user's, and it ends whatever native code does at its exit."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from ray import cloudpickle

from pipeline.flow.actor import in_actor
from pipeline.flow.load import Load
from tests.pipeline.output.outputs import settings

ROOT = Path(__file__).parents[3]
UNPICKLE = "import pickle, sys; actor, arguments = pickle.loads(sys.stdin.buffer.read()); "
EXIT = """
import atexit, ctypes
from pipeline.flow.actor import exit_at_once

if {calls}:
    exit_at_once()
atexit.register(print, "a library's handler", flush=False)
libc = ctypes.CDLL(None)
libc.__cxa_atexit(ctypes.cast(libc.pause, ctypes.c_void_p), None, None)  # like Ray's handler, it never returns
print("started")
"""


def run_code(code: str, timeout_s: float, cwd: Path = ROOT, stdin: bytes = b"") -> str:
    command = [sys.executable, "-c", code]
    process = subprocess.run(command, check=True, stdout=subprocess.PIPE, input=stdin, timeout=timeout_s, cwd=cwd)
    return process.stdout.decode()


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="the exit handlers are glibc's")
def test_native_exit_handlers_do_not_keep_the_process() -> None:
    assert run_code(EXIT.format(calls=True), 60) == "started\na library's handler\n"
    with pytest.raises(subprocess.TimeoutExpired):
        run_code(EXIT.format(calls=False), 3)


class Greeter:
    """A stage that lives in the tests."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __call__(self, greeting: str) -> str:
        return f"{greeting} {self.name}"

    def rename(self, name: str) -> None:
        self.name = name


@pytest.mark.slow
def test_an_actor_passes_calls_on() -> None:
    code = f"""{UNPICKLE}
greeter = actor(*arguments)
print(greeter("hello"))
greeter.call("rename", "b")
print(greeter("hello"))"""
    assert run_code(code, 60, stdin=cloudpickle.dumps(in_actor(Greeter, ("a",)))) == "hello a\nhello b\n"


def test_an_actor_has_the_name_of_its_stage() -> None:
    assert in_actor(Load, ())[0].__name__ == "Load"


@pytest.mark.slow
def test_an_actor_finds_our_packages_behind_a_users(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the user's module was run')\n")
    pickled = cloudpickle.dumps(in_actor(Load, (settings(),)))
    code = f"{UNPICKLE} print(actor(*arguments).target)"
    assert "pipeline.flow.load.Load object" in run_code(code, 60, cwd=tmp_path, stdin=pickled)


@pytest.mark.slow
def test_an_actor_gets_what_it_needs_to_download_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HF_ENDPOINT", "http://driver")
    packed = in_actor(Greeter, ("a",))
    assert "hf_secret" not in repr(packed), "Ray's dashboard shows it"
    pickled = cloudpickle.dumps(packed)
    assert hash(cloudpickle.loads(cloudpickle.dumps(in_actor(Greeter, ())[1]))), "Ray Data hashes the arguments"
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setenv("HF_ENDPOINT", "http://node")
    code = f"{UNPICKLE} actor(*arguments); import os; print(os.environ['HF_TOKEN'], os.environ['HF_ENDPOINT'])"
    assert run_code(code, 60, stdin=pickled) == "hf_secret http://node\n", "what a node has of its own comes first"
