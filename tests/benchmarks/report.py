"""What a report costs: `python -m tests.benchmarks.report FOLDER [SAMPLES]`.

Makes an output by formula and its report.
Prints seconds (wall and CPU), the largest memory, the size, and seconds to the first paint in Chromium.
"""

from __future__ import annotations

import asyncio
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.browser import CHROMIUM, Page
from tests.pipeline.report.made import make_output

FAILED_SHARE = 50
"""One sample of so many has failed."""
PAINTS = """new Promise(done => new PerformanceObserver(list => {
  for (const each of list.getEntries()) if (each.name === 'first-contentful-paint') done(each.startTime);
}).observe({type: 'paint', buffered: true}))"""


async def first_paints(report: Path) -> dict[str, tuple[float, float]]:
    """Per page the seconds to the first contentful paint, and until its script has shown the data."""
    shown = {
        "index.html": "document.querySelector('.strip')",
        "gallery.html": "document.querySelectorAll('.card').length > 1",
        "failures.html": "document.querySelectorAll('.card').length > 0",
    }
    times = {}
    for name, ready in shown.items():
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
            async with Page(Path(profile)) as page:
                start = time.perf_counter()
                await page.open((report / name).absolute().as_uri(), ready)
                ready_s = time.perf_counter() - start
                times[name] = (await page.run(PAINTS) / 1000, ready_s)
                assert page.errors == [], page.errors
    return times


def main() -> None:
    folder, count = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 10_000
    output, report = folder / f"out-{count}", folder / f"out-{count}-report"
    if not output.exists():
        failed = max(1, count // FAILED_SHARE)
        make_output(output, count - failed, failed)
    for turn in ("first", "again"):
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-m", "pipeline.cli.main", "report", output], check=True)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        print(f"{turn}: {wall:.1f} s, {cpu:.1f} s of CPU, at most {after.ru_maxrss / 2**10:.0f} MiB")
    sizes = {path: path.stat().st_size for path in report.rglob("*") if path.is_file()}
    index = next(size for path, size in sizes.items() if path.name == "index.js")
    print(f"size: {sum(sizes.values()) / 2**20:.1f} MiB in {len(sizes)} files, index.js {index / 2**20:.2f} MiB")
    if CHROMIUM is not None:
        for name, (paint, ready) in asyncio.run(first_paints(report)).items():
            print(f"{name}: first paint after {paint:.2f} s, samples shown after {ready:.2f} s")


if __name__ == "__main__":
    main()
