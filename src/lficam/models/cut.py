"""Any network in parts at named stages: images to a stage's map, and that map to what the network returns."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from lficam.errors import InvalidInputError, UnknownNameError

Part = Callable[[nn.Module, Tensor], Tensor]

_REMEDY = "give features= and head= as two functions instead"


class Cut:
    """A network's method in parts, cut behind stages and traced in training and in evaluation mode.

    Only the forward functions around the stages are traced: every layer beside or below them is called as it is, so it
    may branch on values and follows its own mode. The parts take the network with each call, so no weight has two
    owners.

    Args:
        network: to be cut; not kept.
        stages: in the order of the data; names of layers as ``named_modules`` gives them (the cut is behind the
            layer), or of steps of the forward function such as ``relu``.
        method: the method to cut.

    Raises:
        UnknownNameError: no such stage; those that exist are listed.
        InvalidInputError: what `torch.fx` cannot trace, or a later step that needs a value from before the stage.

    >>> network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    >>> cut = Cut(network, "1")
    >>> features = cut.run(0, network, torch.zeros(2, 3, 8, 8))
    >>> features.shape, cut.run(1, network, features).shape
    (torch.Size([2, 4, 6, 6]), torch.Size([2, 4]))
    """

    def __init__(self, network: nn.Module, *stages: str, method: str = "forward") -> None:
        self.stages = stages
        self._parts = {mode: self._trace_and_split(network, method, mode) for mode in (False, True)}

    def run(self, part: int, network: nn.Module, inputs: Tensor) -> Tensor:
        """Part 0 takes images, part i the map of stage i - 1, the last part gives what the whole network gives."""
        return self._parts[network.training][part](network, inputs)

    def require_exact(self, network: nn.Module, images: Tensor) -> None:
        """Refuse a cut whose parts in a row do not give what the network gives, to the bit, in either mode.

        Raises:
            InvalidInputError: they differ; the mode is named.
        """
        for training in (False, True):
            with untouched(network):
                network.train(training)
                whole = _with_fixed_randomness(network, network, images)
                parts = _with_fixed_randomness(network, lambda images: self._run_all(network, images), images)
            if not (isinstance(whole, Tensor) and isinstance(parts, Tensor) and torch.equal(whole, parts)):
                mode = "training" if training else "evaluation"
                raise InvalidInputError(
                    f"features: cut at {', '.join(self.stages)}, the parts differ from the whole in {mode} mode; "
                    f"{_REMEDY}."
                )

    def _run_all(self, network: nn.Module, images: Tensor) -> Tensor:
        for part in self._parts[network.training]:
            images = part(network, images)
        return images

    def _trace_and_split(self, network: nn.Module, method: str, training: bool) -> list[Part]:
        tracer = _AroundStages(self.stages, method)
        try:
            with untouched(network):
                for name, module in network.named_modules():
                    if not tracer.is_leaf_module(module, name):
                        module.training = training
                graph = tracer.trace(network)
        except Exception as error:  # torch.fx raises whatever the traced code raises
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InvalidInputError(
                f"features: {type(network).__name__} cannot be traced ({reason}); {_REMEDY}."
            ) from error
        return _split(network, graph, [_end(network, graph, stage) for stage in self.stages])


class _AroundStages(fx.Tracer):
    """Follows the forward functions of the layers that contain a stage; any other layer is one step."""

    def __init__(self, stages: tuple[str, ...], method: str) -> None:
        super().__init__()
        words = [stage.split(".") for stage in stages]
        self.followed = {""} | {".".join(name[:length]) for name in words for length in range(1, len(name))}
        self.traced_func_name = method

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return module_qualified_name not in self.followed


@contextmanager
def untouched(network: nn.Module) -> Iterator[None]:
    """Try a network out: afterwards every layer has the mode and every buffer the values that it had."""
    modes = [(module, module.training) for module in network.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in network.buffers()]
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)


def _with_fixed_randomness(network: nn.Module, run: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    with untouched(network), torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        return run(images)


def _end(network: nn.Module, graph: fx.Graph, stage: str) -> fx.Node:
    """The last step inside the stage, or the step of that name."""
    # The values of the stack, because a second call of the same layer has a key of its own.
    inside = [
        node for node in graph.nodes if stage in (name for name, _ in node.meta.get("nn_module_stack", {}).values())
    ]
    named = [node for node in graph.nodes if node.name == stage]
    if inside or named:
        return (inside or named)[-1]
    names = [
        *_layer_names(network),
        *(node.name for node in graph.nodes if node.op in ("call_function", "call_method")),
    ]
    raise UnknownNameError("stage", stage, dict.fromkeys(names))


def _layer_names(network: nn.Module) -> Iterator[str]:
    """The network's layers, and those of its sequences."""
    for name, child in network.named_children():
        yield name
        if isinstance(child, nn.Sequential):
            yield from (f"{name}.{inner}" for inner, _ in child.named_children())


def _split(network: nn.Module, graph: fx.Graph, ends: list[fx.Node]) -> list[Part]:
    if [node for node in graph.nodes if node in ends] != ends:
        raise InvalidInputError("features: expected different stages in the order of the data.")
    parts, part = [], fx.Graph()
    known: dict[fx.Node, fx.Node] = {}

    def copy_of(node: fx.Node) -> fx.Node:
        if node not in known:
            raise InvalidInputError(
                f"features: a later step needs {node.name!r} from before the stage; cut elsewhere, or {_REMEDY}."
            )
        return known[node]

    for node in graph.nodes:
        known[node] = part.node_copy(node, copy_of)
        if node in ends:
            part.output(known[node])
            parts.append(part)
            part = fx.Graph()
            # A copy, because the next step may work in place, and the map is still needed.
            known = {node: part.call_method("clone", (part.placeholder("features"),))}
    parts.append(part)
    # The generated function is taken, not the module around it, which would own the layers a second time.
    return [type(fx.GraphModule(network, part)).forward for part in parts]
