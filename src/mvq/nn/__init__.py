"""Compression of torch models in place: parametrizations, installing them and reading them off.

`nn.Conv2d` and `nn.Linear` keep their class; `weight` becomes a `torch.nn.utils.parametrize` parametrization.
What follows from that:

* `state_dict` / `load_state_dict`, `copy.deepcopy`, `.to()`, `train()` / `eval()`, DDP, autocast,
  checkpointing and `torch.compile` work. Pickling a whole parametrized module does not (a rule of PyTorch):
  save its `state_dict`, or the network with `mvq.save`.
* The weight is computed at every use. For inference `bake_` makes it a plain tensor again.
* Wrap in DDP after `cluster_`: the codewords are new parameters. Under DDP pass `broadcast_buffers=False`
  where batch norm permits, since assignments and masks never change.
"""

from mvq.nn.assignments import Reassign, harden_, is_soft, reassign_, set_assignments_, soften_
from mvq.nn.layers import as_recipe, eligible_layers, unwrap
from mvq.nn.parametrizations import Int8Weight, LearnedCodebook, NMMask, VQWeight
from mvq.nn.state import extract, install_
from mvq.nn.transform import bake_, cluster_, prune_

__all__ = [
    "Int8Weight",
    "LearnedCodebook",
    "NMMask",
    "Reassign",
    "VQWeight",
    "as_recipe",
    "bake_",
    "cluster_",
    "eligible_layers",
    "extract",
    "harden_",
    "install_",
    "is_soft",
    "prune_",
    "reassign_",
    "set_assignments_",
    "soften_",
    "unwrap",
]
