"""The commands about what earlier runs have kept."""

import click

from mergekit_collapse.cache_listing import cleared, listing


@click.group()
def cache() -> None:
    """What was measured before, so that it is not measured again."""


@cache.command(name="list")
def list_cache() -> None:
    """Show what is kept: when it was last used, its size, and of which model it is."""
    click.echo(listing())


@cache.command()
@click.option(
    "--older-than",
    metavar="DAYS",
    type=click.IntRange(min=0, max=100_000),
    help="Only what was not used in so many days.",
)
def clear(older_than: int | None) -> None:
    """Remove what is kept. It is measured again when it is needed."""
    click.echo(cleared(older_than))
