"""What pruning and clustering lose, won back from unlabelled images, without training in the usual sense.

`recover` does it all, in place of `prune_` and `cluster_`; each part can be used alone.
"""

from mvq.recover.batchnorm import match_batchnorm_
from mvq.recover.config import PARTS, RecoverConfig
from mvq.recover.equalize import equalize_
from mvq.recover.importance import prune_by_importance_, weight_importance
from mvq.recover.permute import permute_
from mvq.recover.pipeline import recover, recover_clustered_, recover_pruned_, refine_
from mvq.recover.reconstruct import distill_, reconstruct_

__all__ = [
    "PARTS",
    "RecoverConfig",
    "distill_",
    "equalize_",
    "match_batchnorm_",
    "permute_",
    "prune_by_importance_",
    "reconstruct_",
    "recover",
    "recover_clustered_",
    "recover_pruned_",
    "refine_",
    "weight_importance",
]
