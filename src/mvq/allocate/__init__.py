"""Sizes before clustering, and recipes that spend them where they help most.

`achieved_bits` tells what a recipe will take, `fit_codewords` fills a size with codewords, `allocate` chooses pattern,
subvector length and codebook layer by layer from measured errors; `fisher` weighs those errors. `allocate_untrained`
puts the two together for networks that are not trained afterwards.
"""

from mvq.allocate.bits import PlannedBits, achieved_bits, fit_codewords
from mvq.allocate.choose import allocate, default_candidates, dense_candidates
from mvq.allocate.sensitivity import fisher, layer_fisher
from mvq.allocate.untrained import allocate_untrained

__all__ = [
    "PlannedBits",
    "achieved_bits",
    "allocate",
    "allocate_untrained",
    "default_candidates",
    "dense_candidates",
    "fisher",
    "fit_codewords",
    "layer_fisher",
]
