"""Small pictures of videos: the first frame, as WebP."""

from __future__ import annotations

import io
from contextlib import suppress

THUMB_PX = 320
"""Longer side of a small picture, pixels."""
QUALITY = 70
"""WebP's, of 100."""


def thumbnail(video: bytes) -> bytes | None:
    """The first frame of an mp4, small, as WebP; None for bytes that are not a video."""
    import av
    from PIL import Image

    with suppress(Exception):  # PyAV raises errors of several kinds, and a report shows what it can
        with av.open(io.BytesIO(video), format="mp4") as container:
            stream = container.streams.video[0]
            stream.codec_context.thread_count = 1
            frame = next(container.decode(stream))
            scale = min(1.0, THUMB_PX / max(frame.width, frame.height))
            width, height = (max(1, round(side * scale)) for side in (frame.width, frame.height))
            picture = Image.fromarray(frame.to_ndarray(format="rgb24", width=width, height=height))
        made = io.BytesIO()
        picture.save(made, "WEBP", quality=QUALITY, method=2)
        return made.getvalue()
    return None
