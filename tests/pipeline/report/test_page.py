"""A report in a real browser, opened from the disk: it sorts, filters, plays, opens a sample and follows links."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.report.build import build_report
from tests.browser import CHROMIUM, Page
from tests.pipeline.report.made import make_output, sample_id

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: install Debian's package chromium"),
]
CARDS = "[...document.querySelectorAll('.card')].map(card => card.dataset.id)"
UNLABELLED = """[...document.querySelectorAll('input, select, button, a')].filter(each => !each.hidden &&
  !each.getAttribute('aria-label') && !each.textContent.trim() && !(each.labels && each.labels.length)
).map(each => each.outerHTML)"""
WITHOUT_ALT = "[...document.querySelectorAll('img')].filter(each => !each.hasAttribute('alt')).length"
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


async def look(report: Path, tmp_path: Path) -> None:
    def url(page: str) -> str:
        return f"{report.as_uri()}/{page}"

    async with Page(tmp_path / "profile") as page:
        await page.open(url("index.html"), "document.querySelector('.strip a')")
        await page.run("document.getElementById('asked').scrollIntoView()")
        await page.until("document.querySelector('[data-drawn]')")
        assert await page.run("document.querySelector('h1').textContent") == "out"
        assert await page.run(UNLABELLED) == []
        await page.run("document.querySelector('.strip h3 a').click()")  # the worst ones, in order

        await page.until("document.readyState === 'complete' && document.querySelectorAll('.card').length === 24")
        assert (await page.run(CARDS))[:1] == [sample_id(0)]
        await page.run("go({sort: 'control_gain', order: 'desc'})")
        gains = await page.run("[...document.querySelectorAll('.sorted dd')].map(each => Number(each.textContent))")
        assert gains == sorted(gains, reverse=True)
        await page.run("go({'min.control_gain': '0.5', 'is.colour': '<b>red</b>'})")
        shown = await page.run(CARDS)
        assert shown
        assert all(int(name[-5:]) % 2 == 0 for name in shown)
        assert f"{len(shown)} of 30 videos" in await page.run("document.getElementById('found').textContent")
        assert await page.run(WITHOUT_ALT) == 0
        assert await page.run(UNLABELLED) == []
        await page.until("document.querySelector('.card .condition svg, .card figure svg polyline')")

        await page.until("document.querySelector('button.pane').dataset.url")
        assert await page.run("document.querySelectorAll('video').length") == 0, "no video before one looks"
        await page.run("document.querySelector('button.pane').focus()")
        await page.press("Enter")
        await page.until("document.querySelector('video') && document.querySelector('video').currentTime > 0")

        await page.run("document.querySelector('.card h2 a').click()")
        await page.until(
            "document.querySelectorAll('.stage video').length === 3 && document.querySelectorAll('#record td').length"
        )
        assert await page.run("document.querySelector('h1').textContent") == shown[0]
        assert await page.run("document.querySelectorAll('#charts figure').length") == 3
        await page.until("videos[0].readyState > 1")
        await page.press("ArrowRight")
        await page.until("document.getElementById('frame').value === '1'")
        assert await page.run("document.querySelector('#own b')") is None, "a text of a column is text"
        assert "<b>red</b>" in await page.run("document.getElementById('own').textContent")
        assert f"sgi2v-batch replay {report.parent / 'out'} {shown[0]}" in await page.run(
            "document.getElementById('replay').textContent"
        )
        assert await page.run(UNLABELLED) == []
        await page.run("document.getElementById('next').click()")
        await page.until(f"document.querySelector('h1').textContent === '{shown[1]}'")

        await page.open(url("failures.html#is.error_code=image_missing"), "document.querySelector('.message')")
        assert len(await page.run(CARDS)) == 1
        assert "went wrong: do this" in await page.run("document.querySelector('.message').textContent")
        await page.send("Emulation.setDeviceMetricsOverride", width=390, height=844, deviceScaleFactor=1, mobile=True)
        for name in ("index.html", "gallery.html", f"sample.html#id={sample_id(1)}"):
            await page.open(url(name), "true")
            await page.until("document.querySelector('.strip, .card, #record td')")
            assert await page.run(WIDER) <= 0, name
        assert page.errors == []


def test_a_report_is_sorted_filtered_played_and_followed(tmp_path: Path) -> None:
    colours = pa.array([("<b>red</b>", "blue")[number % 2] for number in range(33)])
    output = make_output(tmp_path / "out", 30, failed=3, columns={"colour": colours})
    build_report(str(output), [str(make_output(tmp_path / "plain", 30, labels=False))], str(tmp_path / "report"))
    asyncio.run(look(tmp_path / "report", tmp_path))
