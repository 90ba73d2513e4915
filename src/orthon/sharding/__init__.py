"""Who holds which part of a matrix, and sums over those who do."""

from orthon.sharding.ranks import ONE_RANK, Ranks, Step

__all__ = ["ONE_RANK", "Ranks", "Step"]
