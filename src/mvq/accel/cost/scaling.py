"""Energy and area brought from one technology to another.

Stillmaker and Baas, "Scaling equations for the accurate prediction of CMOS device performance from 180 nm to 7 nm",
Integration 58, 2017: energy of a gate as a polynomial of the supply voltage for each node, and factors of area. Between
nodes the logarithm of the value goes with the logarithm of the node.
"""

from __future__ import annotations

import math

from mvq.errors import ConfigError

#: a V^2 + b V + c.
_ENERGY = {
    65.0: (3.755, -4.398, 1.975),
    45.0: (1.103, -0.362, 0.2767),
    32.0: (0.9559, -0.7823, 0.471),
    16.0: (0.2958, -0.1241, 0.03024),
}
#: Area of a node in that of 65 nm.
_AREA = {65.0: 1.0, 45.0: 0.66, 32.0: 0.66 * 0.46, 16.0: 0.66 * 0.19}


def energy_factor(from_nm: float, from_volts: float, to_nm: float, to_volts: float) -> float:
    """Energy of a gate in one technology over that in another.

    Raises:
        ConfigError: if a node lies outside of 16 to 65 nm.
    """
    return _energy(to_nm, to_volts) / _energy(from_nm, from_volts)


def area_factor(from_nm: float, to_nm: float) -> float:
    """Area of a gate in one technology over that in another.

    Raises:
        ConfigError: as `energy_factor`.
    """
    return 1.0 if from_nm == to_nm else _between(_AREA, to_nm) / _between(_AREA, from_nm)


def _energy(nm: float, volts: float) -> float:
    return _between({node: a * volts**2 + b * volts + c for node, (a, b, c) in _ENERGY.items()}, nm)


def _between(known: dict[float, float], nm: float) -> float:
    nodes = sorted(known)
    if not nodes[0] <= nm <= nodes[-1]:
        raise ConfigError(
            f"scaling: {nm:g} nm lies outside of {nodes[0]:g} to {nodes[-1]:g} nm; give a value at such a node"
        )
    high = next(node for node in nodes if node >= nm)
    low = max((node for node in nodes if node <= nm), default=high)
    if low == high:
        return known[low]
    share = math.log(nm / low) / math.log(high / low)
    return math.exp((1 - share) * math.log(known[low]) + share * math.log(known[high]))
