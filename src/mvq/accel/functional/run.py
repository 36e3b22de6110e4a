"""Whole networks on the machine: layers from their words, everything between them as the integer network says."""

from __future__ import annotations

from collections.abc import Mapping as Mapped
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mvq.accel.cycle import best_mapping
from mvq.accel.functional.array import run_layer
from mvq.accel.functional.words import StoredWeight, load_order, pack, stored_weight
from mvq.accel.mapping import Mapping
from mvq.accel.network.execute import compute, execute, finish_sums
from mvq.accel.network.graph import Conv, IntegerNetwork, Linear, Node
from mvq.accel.spec import AcceleratorSpec
from mvq.accel.workload import Layer, layers_of
from mvq.errors import ConfigError

Array = NDArray[Any]


class Machine:
    """A network laid onto a machine, its weights packed.

    Args:
        network: in integers.
        spec: machine.
        mappings: of layers by name; others get their best one.

    Attributes:
        layers: by name.
        mappings: by layer.
        stored: weights by layer, as the machine stores them.
        streams: packed words by layer.
        macs: executed by each layer that has run, an image.

    Raises:
        ConfigError: listing every layer that the machine cannot take.
    """

    def __init__(
        self, network: IntegerNetwork, spec: AcceleratorSpec, *, mappings: Mapped[str, Mapping] | None = None
    ) -> None:
        self.network, self.spec = network, spec
        self.layers: dict[str, Layer] = {}
        self.mappings: dict[str, Mapping] = {}
        self.streams: dict[str, bytes] = {}
        self.macs: dict[str, int] = {}
        self.stored: dict[str, StoredWeight] = {}
        faults = []
        nodes = [node for node in network.nodes if isinstance(node, Conv | Linear)]
        for node, layer in zip(nodes, layers_of(network), strict=True):
            try:
                self._lay(node, layer, (mappings or {}).get(layer.name))
            except ConfigError as error:
                faults.append(str(error))
        if faults:
            raise ConfigError("\n".join(faults))

    def _lay(self, node: Conv | Linear, layer: Layer, mapping: Mapping | None) -> None:
        codes = self.network.codes[node.layer]
        stored = stored_weight(self.spec, layer, self.network.weights, codes.reshape(*codes.shape[:2], -1, 1))
        mapping = mapping or best_mapping(self.spec, layer)[0]
        self.layers[layer.name], self.mappings[layer.name], self.stored[layer.name] = layer, mapping, stored
        self.streams[layer.name] = pack(
            stored, load_order(self.spec, layer, mapping, stored), self.spec.weight_port_bits
        )

    def compute(self, node: Node, inputs: list[Array], network: IntegerNetwork) -> Array:
        """The result of one operation; layers run on the array."""
        if not isinstance(node, Conv | Linear):
            return compute(node, inputs, network)
        name = node.layer
        ifmap = inputs[0] if isinstance(node, Conv) else inputs[0][:, :, None, None]
        done = run_layer(
            self.spec, self.layers[name], self.mappings[name], self.stored[name], self.streams[name], ifmap
        )
        self.macs[name] = done.macs
        sums = done.psums if isinstance(node, Conv) else done.psums[:, :, 0, 0]
        return finish_sums(sums.astype(np.int32), node.bias, node.requantization, name)


def run_images(machine: Machine, images: NDArray[np.floating], *, keep: Sequence[str] = ()) -> dict[str, Array]:
    """Run a network on real images.

    Args:
        machine: network and machine.
        images: `(N, C, H, W)`.
        keep: names of tensors; by default the network's outputs.

    Returns:
        The tensors wanted.

    Raises:
        ShapeError: if the images have another shape.
        PsumOverflowError: if a psum leaves its register.
    """
    network = machine.network
    return execute(network, images, keep=keep or network.outputs, compute=machine.compute)
