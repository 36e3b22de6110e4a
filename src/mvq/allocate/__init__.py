"""Sizes before clustering, and recipes that spend them where they help most.

`achieved_bits` tells what a recipe will take, `fit_codewords` fills a size with codewords, `allocate` chooses pattern,
subvector length and codebook layer by layer from measured errors; `fisher` weighs those errors.
"""

from mvq.allocate.bits import PlannedBits, achieved_bits, fit_codewords
from mvq.allocate.choose import allocate, default_candidates, dense_candidates
from mvq.allocate.knapsack import choose
from mvq.allocate.sensitivity import fisher, layer_fisher

__all__ = [
    "PlannedBits",
    "achieved_bits",
    "allocate",
    "choose",
    "default_candidates",
    "dense_candidates",
    "fisher",
    "fit_codewords",
    "layer_fisher",
]
