"""Training of pruned, clustered and dense models."""

from mvq.train.config import EpochRecord, TrainConfig
from mvq.train.finetune import finetune
from mvq.train.objectives import Distillation
from mvq.train.sparse import mask_flips, sparse_train

__all__ = ["Distillation", "EpochRecord", "TrainConfig", "finetune", "mask_flips", "sparse_train"]
