"""`sgi2v-batch manifest draw`: boxes and paths by hand."""

from __future__ import annotations

from typing import Annotated

import typer

from sgi2v.wording import counted

app = typer.Typer()


@app.command(epilog="Example: sgi2v-batch manifest draw cat.jpg dog.jpg -o manifest.parquet")
def draw(
    images: Annotated[list[str], typer.Argument(help="Pictures to draw on: files or URLs.", metavar="IMAGE")],
    output: Annotated[
        str, typer.Option("--output", "-o", help="Manifest that the rows are added to: .parquet, .csv or .jsonl.")
    ],
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of the page; 0 takes a free one.")] = 0,
    open_page: Annotated[bool, typer.Option("--open/--no-open", help="Open the page in the browser.")] = False,
) -> None:
    """Draw boxes and paths on pictures in a page of this machine, and save them as rows.

    The page is served to this machine alone, at an address with a secret, until you press Finish there or Ctrl-C here.
    Rows of a manifest that is there already are kept.
    """
    from manifests.drawing.server import Drawing, PageServer

    drawing = Drawing(images, output)
    with PageServer(drawing, port) as server:
        typer.echo(f"open {server.url}")
        typer.echo("press Finish in the page, or Ctrl-C here, to end")
        if open_page:
            typer.launch(server.url)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            typer.echo("")
    if drawing.rows:
        typer.echo(f"{output} has {counted(drawing.rows, 'row')}")
        typer.echo(f"next: sgi2v-batch manifest validate {output}")
    else:
        typer.echo("no row was saved")
