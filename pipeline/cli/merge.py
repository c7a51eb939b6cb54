"""`merge`: the outputs of shards, which separate jobs have made, as one output."""

from __future__ import annotations

from typing import Annotated

import typer

from pipeline.cli import exit_codes
from sgi2v.wording import counted

app = typer.Typer()


@app.command(epilog="Example: sgi2v-batch merge s3://bucket/moves --delete-shards")
def merge(
    output: Annotated[str, typer.Argument(help="Folder or URL of the whole manifest's results.")],
    shards: Annotated[
        list[str] | None,
        typer.Argument(metavar="[SHARD]...", help="Results of the shards.  [default: all below OUTPUT/shards]"),
    ] = None,
    verify: Annotated[
        bool, typer.Option(help="Check every record, video and table afterwards, as `verify` does.")
    ] = True,
    delete_shards: Annotated[
        bool, typer.Option(help="Delete the results of the shards once everything is verified; their logs stay.")
    ] = False,
) -> None:
    """Join the results of all shards of a manifest: tables, records and videos, as one run would have left them.

    Videos are copied, by the object store itself or as hard links on one disk. A merge that was stopped goes on where
    it was. Exit 2 where a shard is missing, damaged, not finished or still runs; 1 where the result is not whole.
    """
    from pipeline.cli.lines import Counting, print_progress
    from pipeline.cli.summary import counts_lines
    from pipeline.inspect.verify import verify as check
    from pipeline.output.catalog import count
    from pipeline.output.merge import delete_shards as delete
    from pipeline.output.merge import merge as merge_all
    from pipeline.output.merge import open_shards, shard_locations
    from sgi2v.errors import ConfigError

    if delete_shards and not verify:
        raise ConfigError("--delete-shards needs the verification: leave out --no-verify")
    opened = open_shards(shards or shard_locations(output))
    progress = Counting("merged ")
    catalog = merge_all(output, opened, lambda done, total: progress("sample", done, total))
    index = catalog.index
    made, failed = count(index, "committed"), count(index, "failed")
    lines = [f"{counted(len(opened), 'shard')}: {made} made, {failed} failed -> {output}", *counts_lines(index)]
    print("\n".join(lines))  # noqa: T201
    if not verify:
        return
    print_progress("verifying what was merged")
    verdict = check(output)
    for flaw in verdict.flaws:
        typer.echo(str(flaw))
    if not verdict.is_complete:
        typer.echo(f"{counted(len(verdict.flaws), 'flaw')}, {counted(verdict.left, 'row')} left: the shards stay")
        raise typer.Exit(exit_codes.FAILED_ROWS)
    typer.echo("verified: everything is there and whole")
    if delete_shards:
        delete(opened)
        typer.echo(f"deleted what {counted(len(opened), 'shard')} held, but the logs")
