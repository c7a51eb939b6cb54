"""`bench`: what a sample costs on this machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.help import GroupedCommand
from pipeline.cli.options import SampleOptions, settle, takes

app = typer.Typer()


@app.command(cls=GroupedCommand, epilog="Example: sgi2v-batch bench --model embedded --json bench.json")
@takes(SampleOptions)
def bench(
    options: SampleOptions,
    samples: Annotated[int, typer.Option(min=1, help="Videos to measure, after one to warm up.")] = 3,
    json: Annotated[Path | None, typer.Option(metavar="FILE", help="File for the figures.")] = None,
) -> None:
    """Measure seconds, FLOP/s and memory of a sample on this machine, phase by phase; no manifest, no Ray."""
    from json import dumps

    from sgi2v.bench import benchmark, lines
    from sgi2v.model import quiet_libraries
    from sgi2v.room import use_expandable_segments

    use_expandable_segments()  # as the workers of a run
    config, _ = settle("bench.parquet", None, options)
    quiet_libraries()
    execution = config.execution
    measured = benchmark(
        config.model,
        config.sampler,
        config.guidance,
        samples,
        execution.threads_per_worker,
        execution.memory,
        execution.compile,
    )
    typer.echo("\n".join(lines(measured)))
    if json is not None:
        json.write_text(dumps(measured.as_dict(), indent=2) + "\n")
