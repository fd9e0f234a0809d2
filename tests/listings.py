"""The parts of a source's listing that tests compare."""

from __future__ import annotations

from sightline.data.sources.listing import SourceListing


def labels_and_splits(listing: SourceListing) -> dict[str, tuple[str, str | None]]:
    return {e.path: (e.label, e.split) for e in listing.items}


def list_notes(listing: SourceListing) -> list[tuple[str, str, str]]:
    return [(r.kind, r.path, r.reason) for r in listing.notes]
