"""A model as a fast function of thousands of pictures: a private copy, laid out and folded for inference."""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from lficam.contract import ExplainableClassifier
from lficam.device import native_bfloat16
from lficam.errors import UnknownNameError

Precision = Literal["32", "auto"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)
Classifier = Callable[[Tensor], Tensor]


@contextmanager
def fast_classifier(model: ExplainableClassifier, images: Tensor, precision: Precision) -> Iterator[Classifier]:
    """The model as a function of channels-last images to logits.

    A copy, because the model is left as it is: batch norm folded into the convolutions before it, channels last. What
    cannot be copied runs as it is. With ``auto`` in bfloat16 where the device has it natively.

    Args:
        model: anything of the contract, in eval mode.
        images: (N, 3, H, W), a sample of what will be asked.
        precision: ``32`` or ``auto``.

    Raises:
        UnknownNameError: another precision.
    """
    if precision not in PRECISIONS:
        raise UnknownNameError("precision", precision, PRECISIONS)
    runner = copy.deepcopy(model) if isinstance(model, nn.Module) else model
    narrow: AbstractContextManager = nullcontext()
    with torch.inference_mode():
        if isinstance(runner, nn.Module):
            fold_batch_norm(runner, images[:1])
            runner.to(memory_format=torch.channels_last)
            device = next(runner.parameters()).device.type
            if precision == "auto" and native_bfloat16(device):
                narrow = torch.autocast(device, torch.bfloat16)

        def classify(images: Tensor) -> Tensor:
            with narrow:
                return runner(images)

        yield classify


def fold_batch_norm(model: nn.Module, images: Tensor) -> int:
    """Fold each batch norm that alone reads a convolution's output into that convolution, in place.

    Which those are is seen in one forward pass, so any model will do; the logits stay the same but for rounding.

    Args:
        model: in eval mode; its weights change.
        images: (N, 3, H, W), to run it on.

    Returns:
        The number of batch norms folded.
    """
    watch = _Readers()
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    watched = [module for module, known_as in names.items() if len(known_as) == 1 and _is_plain(module)]
    hooks = [module.register_forward_hook(watch.ran) for module in watched]
    try:
        with watch:
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = watch.pairs()
    for convolution, norm in pairs:
        model.set_submodule(names[convolution][0], fuse_conv_bn_eval(convolution, norm))
        model.set_submodule(names[norm][0], nn.Identity())
    return len(pairs)


def _is_plain(module: nn.Module) -> bool:
    """A convolution or batch norm and nothing more: no subclass (timm's norms with an activation), no one's hooks."""
    return type(module) in (nn.Conv2d, nn.BatchNorm2d) and not (module._forward_hooks or module._forward_pre_hooks)


class _Readers(TorchFunctionMode):
    """Who reads the outputs of convolutions in a forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self._convolution_of: dict[int, nn.Conv2d] = {}
        self._output_of: dict[nn.Conv2d, Tensor] = {}  # alive, so that no other tensor takes its id
        self._norm_of: dict[nn.Conv2d, nn.BatchNorm2d] = {}
        self._reads: Counter[int] = Counter()
        self._calls: Counter[nn.Module] = Counter()

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if any(map(torch.is_tensor, tree_leaves(result))):  # a question for the shape is no reading
            self._reads.update(id(tensor) for tensor in tree_leaves((args, kwargs)) if torch.is_tensor(tensor))
        return result

    def ran(self, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        """The hook of a convolution or a batch norm."""
        self._calls[module] += 1
        if isinstance(module, nn.Conv2d):
            self._convolution_of[id(output)], self._output_of[module] = module, output
            self._reads[id(output)] = 0
        elif isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in self._convolution_of:
            self._norm_of[self._convolution_of[id(inputs[0])]] = module

    def pairs(self) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
        """Convolutions and the batch norms that alone read them, each called once."""
        return [
            (convolution, norm)
            for convolution, norm in self._norm_of.items()
            if self._reads[id(self._output_of[convolution])] == self._calls[norm] == self._calls[convolution] == 1
            and norm.running_mean is not None
        ]
