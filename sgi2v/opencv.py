"""How this project runs OpenCV."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def single_opencv_thread() -> Iterator[None]:
    """Run OpenCV on one thread inside, and on as many as before afterwards.

    Results must not depend on how OpenCV divides its work among threads.
    """
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)
