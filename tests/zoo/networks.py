"""The zoo: 120 small networks of 12 kinds, ten of each; the first two of a kind are exported."""

from tests.zoo import (
    aliased,
    attention,
    control_flow,
    convolutions,
    functional,
    in_place,
    inputs,
    norms,
    parametrized,
    recurrent,
    shared,
    vision,
)
from tests.zoo.network import KINDS, Network

FILES = (shared, aliased, in_place, functional, inputs, attention)
FILES += (recurrent, convolutions, norms, parametrized, control_flow, vision)
NETWORKS: dict[str, Network] = {f"{n.kind}-{n.name}": n for of in KINDS.values() for n in of}
