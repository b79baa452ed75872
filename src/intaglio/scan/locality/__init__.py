"""Exact locality: a changed pixel changes only a small window of every early feature map.

The activations of a base image are computed once. For each probe only the changed window goes through the network
(as a difference where a layer is linear, as values where it isn't), until it covers so much of the map that going on
with whole maps costs fewer multiply-adds. Answers equal the dense ones up to rounding.

    tracing    a module as steps, by torch.fx, with batch normalisation folded into convolutions
    geometry   which window of a map a window of the map before it can reach
    window     the changed window of a map, over a batch of probes
    operators  how windows go through layers
    planning   where to go on densely, and what it all costs in multiply-adds
    answering  probes in batches, and the comparison with the network itself before any answer is given

What is not understood runs on whole maps; a network that can't be traced isn't answered for at all.
"""

from intaglio.scan.locality.answering import Sides, local_answers
from intaglio.scan.locality.planning import Cost, local_cost

__all__ = ["Cost", "Sides", "local_answers", "local_cost"]
