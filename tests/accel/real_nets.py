"""Real networks, compressed without training and turned into integers."""

from benchmarks.networks import REGISTRY

import mvq


def integer_network_of(name, recipe, n_calibration):
    """A network of the registry; needs MVQ_DATA."""
    adapter = REGISTRY[name]
    model = adapter.build()
    mvq.cluster_(model, recipe)
    calibration = [inputs for inputs, _ in adapter.data(split="train", limit=n_calibration, batch_size=16)]
    return mvq.integer_network(model, calibration)
