"""Assignments that are learned during fine-tuning, and changed by hand.

The method fixes assignments after clustering. Here every subvector has latent values beside its codeword. Forward
uses the codeword, as the file will; backward gives the gradient of the subvector to the latent values straight through,
and after each step every subvector takes the codeword nearest to its latent values. So the network is at any moment
the one that is stored, and nothing is rounded at the end: the latent values are only dropped. Masks and bits stay.

    mvq.cluster_(model, recipe, soft=True)
    mvq.finetune(model, loader, learn_assignments=True)
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from mvq.errors import ConfigError, ModelError, ShapeError
from mvq.grouping import to_subvectors
from mvq.nn.layers import eligible_layers, form_of, unwrap
from mvq.nn.parametrizations import LatentRows, VQWeight

#: Latent values are kept in this many distances between codewords (`spacing`): at the learning rate of codewords they
#: must go further, from one codeword to another.
SPACINGS = 40.0


def is_soft(model: nn.Module) -> bool:
    """Whether assignments of the model follow latent values."""
    return any(isinstance(form := form_of(m), VQWeight) and form.latent is not None for m in unwrap(model).modules())


def soften_(model: nn.Module, targets: Mapping[str, Any] | None = None) -> nn.Module:
    """Let assignments follow latent values, which are new parameters: build the optimizer afterwards.

    They are as many as the kept weights (all lanes for masked codewords), as in sparse training.

    Args:
        model: clustered; changed in place.
        targets: `{layer name: weight-shaped array or tensor}` where the latent values start, usually the weights before
            `cluster_`; a layer without one starts at its codewords. Others are not used.

    Returns:
        The model.

    Raises:
        ModelError: if nothing is clustered, assignments are learned already, or a target belongs to no layer.
        ShapeError: if a target has not the shape of its weight.
    """
    forms = dict(_forms(model, "soften_"))
    names = {name for name, _, _ in eligible_layers(model)}
    unknown = [name for name in targets or {} if name not in names]
    busy = [name for name, form in forms.items() if form.latent is not None]
    if unknown or busy:
        what = (
            f"targets for {unknown}, which are no layers of the model"
            if unknown
            else f"layer {busy[0]!r} is soft already"
        )
        raise ModelError(f"soften_: {what}; give targets by layer name, and call harden_ before")
    latent = {name: _start(form, (targets or {}).get(name)) for name, form in forms.items()}
    for name, form in forms.items():
        form.latent = LatentRows(latent[name], SPACINGS * spacing(form) or 1.0)
    return model


@torch.no_grad()
def spacing(form: VQWeight) -> float:
    """How far a subvector must go, by lane, to come to another codeword.

    Returns:
        RMS over subvectors and lanes of the distance between a subvector's codeword and the codeword nearest to that;
        0 with a single codeword.
    """
    codebook = form.codebook()
    if len(codebook) < 2:
        return 0.0
    # The first is the codeword itself. Differences, as products lose the small distances of fine codebooks.
    exact = "donot_use_mm_for_euclid_dist"
    nearest = [torch.cdist(rows, codebook, compute_mode=exact).kthvalue(2).values for rows in codebook.split(1024)]
    return float((torch.cat(nearest)[form.assignments].square().mean() / codebook.shape[1]).sqrt())


@torch.no_grad()
def reassign_(model: nn.Module) -> float:
    """Give each subvector the codeword nearest to its latent values; ties go to the lowest.

    Args:
        model: after `soften_`; changed in place.

    Returns:
        Share of assignments that changed.

    Raises:
        ModelError: unless assignments are learned.
    """
    from mvq.cluster import assign

    n_changed = n = 0
    for _, form in _soft_forms(model, "reassign_"):
        assert form.latent is not None
        # Latent values lie as codewords do, so packed ones need no unpacking
        labels, _ = assign(form.latent(), form.kept(), form.codebook())
        n_changed += int((labels != form.assignments).sum())
        n += len(labels)
        set_assignments_(form, labels)
    return n_changed / n


def harden_(model: nn.Module) -> nn.Module:
    """Drop the latent values; assignments stay as they are, and are fixed again.

    Raises:
        ModelError: unless assignments are learned.
    """
    for _, form in list(_soft_forms(model, "harden_")):
        form.latent = None
    return model


class Reassign:
    """Calls `reassign_` during training; an `on_step` of `mvq.finetune`.

    Args:
        model: after `soften_`.
        n_steps: of the whole training.
        every: steps between two calls.
        until: share of the training after which assignments stay, so that the codewords settle.

    Raises:
        ConfigError: on an option out of range.
    """

    def __init__(self, model: nn.Module, n_steps: int, *, every: int = 1, until: float = 0.9) -> None:
        faults = []
        if n_steps < 1 or every < 1:
            faults.append(f"Reassign: n_steps={n_steps} and every={every} must both be at least 1")
        if not 0 <= until <= 1:
            faults.append(f"Reassign: until={until} is not in 0..1")
        if faults:
            raise ConfigError("\n".join(faults))
        self.model = model
        self.every = every
        self.last_step = until * n_steps
        self.changed: list[float] = []
        """Share of assignments that each call changed."""

    def __call__(self, step: int, loss: float) -> None:
        """After optimizer step `step`, from 0."""
        if (step + 1) % self.every == 0 and step < self.last_step:
            self.changed.append(reassign_(self.model))


@torch.no_grad()
def set_assignments_(form: VQWeight, assignments: Tensor) -> None:
    """Change the assignments of one layer, and the members its codebook counts.

    Raises:
        ShapeError: if there is not one for each subvector.
        ModelError: if one is no row of the codebook.
    """
    if assignments.shape != form.assignments.shape:
        raise ShapeError(
            f"layer {form.layer!r}: assignments of shape {tuple(assignments.shape)}, expected "
            f"{tuple(form.assignments.shape)}, one for each subvector"
        )
    low, high = (int(assignments.min()), int(assignments.max())) if assignments.numel() else (0, 0)
    if low < 0 or high >= form.n_codewords:
        raise ModelError(f"layer {form.layer!r}: assignments span {low}..{high}, must lie in 0..{form.n_codewords - 1}")
    form.count_members(-1)
    form.assignments.copy_(assignments)
    form.count_members()


def _start(form: VQWeight, target: Any) -> Tensor:
    """`(n_sub, width)` values of the subvectors, those of the codewords without a target."""
    if target is None:
        return form.codebook().detach().index_select(0, form.assignments)
    weight = torch.as_tensor(target).detach().to(form.assignments.device, torch.float32)
    if tuple(weight.shape) != form.shape:
        raise ShapeError(
            f"target of layer {form.layer!r} has shape {tuple(weight.shape)}, its weight {form.shape}; "
            "they must be equal"
        )
    rows = to_subvectors(weight, form.d)
    lanes = form._derive_lanes()
    return rows if lanes is None or lanes.dtype == torch.bool else rows.gather(1, lanes)


def _forms(model: nn.Module, step: str) -> Iterator[tuple[str, VQWeight]]:
    found = [(name, form) for name, m, _ in eligible_layers(model) if isinstance(form := form_of(m), VQWeight)]
    if not found:
        raise ModelError(f"{step}: model {type(unwrap(model)).__name__} is not clustered; call cluster_ first")
    return iter(found)


def _soft_forms(model: nn.Module, step: str) -> Iterator[tuple[str, VQWeight]]:
    found = [(name, form) for name, form in _forms(model, step) if form.latent is not None]
    if not found:
        raise ModelError(f"{step}: assignments of the model are fixed; call soften_ first")
    return iter(found)
