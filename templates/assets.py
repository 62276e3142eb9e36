"""Files that a template refers to, published beside it under a name that holds their hash."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One published file: its key in the assets bucket, and the SHA-256 of its content in hex."""

    key: str
    sha256: str


@dataclass(frozen=True)
class Assets:
    """All that the stacks need."""

    ingest: Asset
    capacity: Asset
    market: Asset
    agent: Asset

    @property
    def all(self) -> tuple[Asset, ...]:
        """Every file, in the order of their names."""
        return (self.agent, self.capacity, self.ingest, self.market)
