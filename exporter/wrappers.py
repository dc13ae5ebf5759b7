"""Modules as training leaves them: compiled, spread over devices, averaged. The network inside is exported."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from na_deploy.errors import UsageError

_INNER = ("_orig_mod", "module", "_checkpoint_wrapped_module")


def _wrapper_types() -> tuple[type[nn.Module], ...]:
    from torch._dynamo.eval_frame import OptimizedModule
    from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import ActivationWrapper

    return (
        OptimizedModule,
        nn.DataParallel,
        nn.parallel.DistributedDataParallel,
        torch.optim.swa_utils.AveragedModel,
        ActivationWrapper,
    )


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the network inside ``torch.compile``, ``DataParallel``, ``AveragedModel`` and their like.

    Raises:
        UsageError: a TorchScript program, or FSDP, whose weights are not whole.
    """
    kinds = _wrapper_types()
    while isinstance(module, kinds):
        module = next(inner for name in _INNER if isinstance(inner := getattr(module, name, None), nn.Module))
    if isinstance(module, torch.jit.ScriptModule):
        raise UsageError("a TorchScript program cannot be exported; give the torch.nn.Module that it was made from")
    if type(module).__name__ == "FullyShardedDataParallel":
        raise UsageError("an FSDP module has its weights in shards; load its full state dict into the plain module")
    return module


@contextmanager
def without_wrappers(module: nn.Module) -> Iterator[None]:
    """Put the network in the place of every wrapper below ``module``, and run compiled functions eagerly."""
    undo = []
    kinds = _wrapper_types()
    try:
        for parent in list(module.modules()):
            for name, child in list(parent.named_children()):
                if isinstance(child, kinds):
                    setattr(parent, name, unwrapped(child))
                    undo.append((parent, name, child))
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        for parent, name, child in reversed(undo):
            setattr(parent, name, child)
