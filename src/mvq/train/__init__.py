"""Training of pruned, clustered and dense models."""

from mvq.train.finetune import EpochRecord, finetune

__all__ = ["EpochRecord", "finetune"]
