"""Does the map come from what the model learned? Its weights are lost stage by stage, and the map should change."""

import copy
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import nn

Network = TypeVar("Network", bound=nn.Module)


def cascading_randomisation(
    model: Network, stages: list[tuple[str, list[str]]], seed: int = 0
) -> Iterator[tuple[str, Network]]:
    """Copies of a model whose stages have lost their weights, each one more, from the head down.

    Source: Adebayo et al. 2018, section 3.1. The new weights are those that the layers themselves start with
    (``reset_parameters``), batch norms lose their statistics too; weights of layers that know no start are shuffled.

    Args:
        model: not changed.
        stages: name and the names of its modules, in the order in which they are lost.
        seed: of the new weights; the random state is left as it was.

    Yields:
        The stage's name and the copy that has lost it and all before it, in the mode that the model has.

    >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    >>> lost = dict(cascading_randomisation(net, [("head", ["1"]), ("stem", ["0"])]))
    >>> torch.equal(lost["head"][0].weight, net[0].weight), torch.equal(lost["head"][1].weight, net[1].weight)
    (True, False)
    """
    lost = model
    for stage, modules in stages:
        lost = copy.deepcopy(lost)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            for name in modules:
                for layer in lost.get_submodule(name).modules():
                    _lose(layer)
        yield stage, lost


@torch.no_grad()
def _lose(layer: nn.Module) -> None:
    reset = getattr(layer, "reset_parameters", None)
    if callable(reset):
        reset()
        return
    for weights in layer.parameters(recurse=False):
        weights.copy_(weights.flatten()[torch.randperm(weights.numel())].view_as(weights))
