"""The process of an actor: it imports our packages, runs in the driver's folder, and exits at once."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from sgi2v_batch import load_packages

PASSED_ON = ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT")
"""Variables of the driver's environment that actors get too: what they need to download the model on their node."""


def in_actor(target: type, arguments: tuple[Any, ...]) -> tuple[type, tuple[Packed]]:
    """A class for an actor's process that holds `target(*arguments)`, and the argument for this class.

    A file of the user's may come first on the path of that process. So the class is pickled with its code, not by its
    name, and its argument loads our packages before it is unpickled.
    """

    class Actor:
        def __init__(self, packed: tuple[None, str, tuple[tuple[str, str], ...], type, tuple[Any, ...]]) -> None:
            from pipeline.flow.actor import exit_at_once

            exit_at_once()  # before the target's libraries register their own handlers: the first one runs last
            _, folder, variables, target, arguments = packed
            for name, value in variables:
                os.environ.setdefault(name, value)  # what the node has of its own comes first
            with suppress(OSError):  # another node may not have the driver's folder
                os.chdir(folder)
            self.target = target(*arguments)

        def __call__(self, table: Any) -> Any:
            return self.target(table)

        def call(self, method: str, *arguments: Any) -> Any:
            """Call a method of the target."""
            return getattr(self.target, method)(*arguments)

    Actor.__name__ = target.__name__  # Ray names the process after it
    # not in Ray's own environment for workers, which its dashboard shows
    variables = tuple((name, os.environ[name]) for name in PASSED_ON if name in os.environ)  # Ray Data hashes it
    return Actor, (Packed(str(Path.cwd()), variables, target, arguments),)


class Packed:
    """Objects of ours that are unpickled after our packages are loaded, as a tuple whose first element is None.

    Ray Data also sends constructor arguments to an actor for its dashboard, but of this object its name only.
    """

    def __init__(self, *contents: Any) -> None:
        self.contents = contents

    def __reduce__(self) -> tuple[type, tuple[tuple[Any, ...]]]:
        return tuple, ((_Loader(), *self.contents),)


class _Loader:
    """Loads our packages when it is unpickled, and is None then."""

    def __reduce__(self) -> tuple[Callable[[], None], tuple[()]]:
        return load_packages, ()


def exit_at_once() -> None:
    """Make this process exit when Python's own exit handlers are done, without those of Ray's native code.

    Those handlers may wait for ever, and the process then keeps all that it holds, such as a model on a GPU. It is a
    fault of Ray (2.60.0, Python 3.11.7, Linux x86-64): 8 of 22 runs with four workers and eight short rows left such a
    process, on a machine of two cores with other work to do. To reproduce it, empty this function, repeat such runs,
    and look for `ray::MapWorker` processes whose parent is not a raylet. Their main thread, innermost call first:

        pthread_mutex_lock                                          waits for ever
        boost::asio::detail::scheduler::post_immediate_completion   of the event loop that is being destroyed
        ray::rpc::ServerCallImpl<..., PubsubLongPollingRequest, ...>    sends a reply
        ray::pubsub::SubscriberState::PublishIfPossible
        ray::pubsub::Publisher::~Publisher                          its last owner was a task still in the event loop
        ray::pubsub::PostingPublisher::Publish(...)::{lambda}       that task, destroyed
        boost::asio::detail::scheduler::shutdown
        boost::asio::execution_context::~execution_context
        ray::core::CoreWorkerProcessImpl::~CoreWorkerProcessImpl
        ray::core::CoreWorkerProcess::HandleAtExit
        exit

    A message that the worker publishes waits in its event loop when the worker exits. The exit destroys the loop, the
    loop its waiting tasks, and the message's task the publisher. The publisher then answers its subscribers through the
    same loop, and waits for the loop's mutex.
    """
    atexit.register(_exit)


def _exit() -> None:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)
