"""``batchbridge bench documents``: makes the document root of a workload, and the list of its URLs."""

from __future__ import annotations

from pathlib import Path

import click

__all__ = ["command"]

#: What `--directories` is unless given: a root of 102 MB, which each server's caches can hold.
DIRECTORIES = 20


@click.command("documents")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--workload", type=click.Choice(["specweb96"]), default="specweb96", show_default=True, help="Whose documents."
)
@click.option(
    "--directories", type=click.IntRange(1, 1000), metavar="N", default=DIRECTORIES, show_default=True,
    help="Of 36 files and 5 MB each.",
)  # fmt: skip
def command(folder: Path, workload: str, directories: int) -> None:
    """Make the documents of a workload: FOLDER/root, and FOLDER/urls with how often each is asked for.

    Serve FOLDER/root, and give FOLDER/urls to `bench load --urls` or `bench versus --urls`; with --close there, each
    request has a connection of its own, as SPECweb96 has it.
    """
    from ...measure.specweb96 import DIRECTORY_SIZE_BYTES, url_lines, write_root

    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise click.UsageError(f"{folder} is not empty")
        write_root(folder / "root", directories)
        (folder / "urls").write_text("".join(f"{line}\n" for line in url_lines(directories)))
    except OSError as error:
        raise click.ClickException(f"{error.filename or folder}: {(error.strerror or str(error)).lower()}") from None
    size_mb = directories * DIRECTORY_SIZE_BYTES / 1e6
    click.echo(
        f"{workload}: {36 * directories:,} files, {size_mb:,.0f} MB, in {folder / 'root'}; URLs in {folder / 'urls'}"
    )
