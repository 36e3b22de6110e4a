"""Masked k-means: clustering of subvectors whose pruned lanes do not count."""

from mvq.cluster.api import KMeansResult, assign, masked_kmeans

__all__ = ["KMeansResult", "assign", "masked_kmeans"]
