"""Training of pruned, clustered and dense models."""

from mvq.train.config import EpochRecord, TrainConfig
from mvq.train.finetune import finetune
from mvq.train.objectives import Distillation, Matching
from mvq.train.sparse import mask_flips, sparse_train

__all__ = ["Distillation", "EpochRecord", "Matching", "TrainConfig", "finetune", "mask_flips", "sparse_train"]
