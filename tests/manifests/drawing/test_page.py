"""The drawing page in a real browser: what a person draws is what the manifest has."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
from PIL import Image

from manifests.drawing.server import Drawing, PageServer
from manifests.io import read_manifest
from manifests.validate import check
from tests.browser import CHROMIUM, Page

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install Debian's package chromium"),
]

H, W = 300, 400


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PageServer]:
    image_HWC = np.full((H, W, 3), (70, 110, 80), np.uint8)
    image_HWC[100:200, 60:180] = (220, 170, 40)
    image_HWC[60:120, 280:350] = (60, 90, 200)
    Image.fromarray(image_HWC).save(tmp_path / "two blocks.png")
    Image.new("RGB", (90, 160), "grey").save(tmp_path / "other.png")
    drawing = Drawing([str(tmp_path / "two blocks.png"), str(tmp_path / "other.png")], str(tmp_path / "m.parquet"))
    with PageServer(drawing) as server:
        thread = Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def on_screen(page: Page, *points: tuple[float, float]) -> list[tuple[float, float]]:
    """CSS pixels of points of the picture."""
    left, top, right, bottom = await page.run(
        "(r => [r.left, r.top, r.right, r.bottom])(document.querySelector('svg image').getBoundingClientRect())"
    )
    width = await page.run("picture.width")
    height = await page.run("picture.height")
    return [(left + x / width * (right - left), top + y / height * (bottom - top)) for x, y in points]


async def opened(page: Page, server: PageServer) -> None:
    await page.open(server.url, "document.querySelector('svg image')")


async def draw_and_save(server: PageServer, tmp_path: Path) -> None:
    async with Page(tmp_path / "profile") as page:
        await opened(page, server)
        await page.drag(await on_screen(page, (60, 100), (100, 150), (180, 200)))
        await page.until("shapes.length === 1")
        await page.drag(await on_screen(page, (280, 60), (350, 120)))
        await page.until("shapes.length === 2")
        await page.run("document.getElementById('path').click()")
        # a press on a box chooses it
        await page.drag(await on_screen(page, (120, 150), (200, 150), (280, 150), (280, 330)))
        await page.until("shapes[0].path.length > 1")
        await page.press("z", control=True)
        await page.until("shapes[0].path.length === 1")
        await page.press("y", control=True)
        await page.until("shapes[0].path.length > 1")
        await page.screenshot(tmp_path / "page.png")
        await page.press("s", control=True)
        await page.until("document.getElementById('message').textContent.startsWith('Saved as two-blocks-1: 1 row in')")
        assert page.errors == []


def test_a_drawn_box_and_path_are_read_back_from_the_manifest(server: PageServer, tmp_path: Path) -> None:
    asyncio.run(draw_and_save(server, tmp_path))
    table = read_manifest(str(tmp_path / "m.parquet"))
    (row,) = table.to_pylist()
    assert (row["sample_id"], row["image"]) == ("two-blocks-1", "two blocks.png")
    assert np.array(row["boxes"]) == pytest.approx(np.array([[60, 100, 180, 200], [280, 60, 350, 120]]), abs=1.0)
    path = np.array(row["trajectories"][0])
    assert path[0] == pytest.approx((120, 150), abs=1.0)
    assert path[-1] == pytest.approx((280, 330), abs=1.5)  # the path leaves the picture
    steps = np.hypot(*np.diff(path, axis=0).T)
    assert steps.sum() == pytest.approx(340, rel=0.03)
    assert row["trajectories"][1] == [row["trajectories"][1][0]] * 2  # no path was drawn: the box stays
    assert row["still"] == [False, True]
    assert check(table, str(tmp_path / "m.parquet")).problems == []
    assert np.asarray(Image.open(tmp_path / "page.png")).std() > 20


async def draw_with_keys(server: PageServer, tmp_path: Path) -> None:
    async with Page(tmp_path / "profile") as page:
        await opened(page, server)
        await page.press("Tab")
        assert await page.run("document.activeElement.id") == "picture"
        await page.press("Tab")
        await page.press("a")  # a box in the middle: 150, 112.5 to 250, 187.5; a step is 4 pixels
        await page.press("ArrowRight")
        await page.press("ArrowDown", shift=True)
        await page.press("p")
        for _ in range(5):
            await page.press("ArrowUp")
        await page.press("Enter")
        for _ in range(3):
            await page.press("ArrowLeft")
        await page.press("s", control=True)
        await page.until("document.getElementById('message').textContent.startsWith('Saved as')")
        await page.press("Delete")
        await page.until("shapes.length === 0")
        await page.press("z", control=True)
        await page.until("shapes.length === 1")
        assert page.errors == []


def test_everything_can_be_done_with_the_keyboard(server: PageServer, tmp_path: Path) -> None:
    asyncio.run(draw_with_keys(server, tmp_path))
    (row,) = read_manifest(str(tmp_path / "m.parquet")).to_pylist()
    assert row["boxes"] == [[154, 112.5, 254, 191.5]]
    assert row["trajectories"] == [[[204, 152], [204, 132], [192, 132]]]
