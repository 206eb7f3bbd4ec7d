"""A module in evaluation mode for one caller alone: others that train or score with it at that time see no change."""

from __future__ import annotations

from typing import TypeVar

from torch import nn

Module = TypeVar("Module", bound=nn.Module)


def evaluation_view(module: Module) -> Module:
    """The module itself where all of it is in evaluation mode; else a second tree of modules around the same tensors.

    The view has the module's parameters, buffers, hooks and attributes, not copies; only `training` is its own, so
    `eval()` need not be called on what another thread trains. What `torch.compile` made of a part in training is left
    out: it knows the mode that it was compiled in.
    """
    if not any(part.training for part in module.modules()):
        return module
    return lasting_view(module)


def lasting_view(module: Module) -> Module:
    """`evaluation_view` for whoever keeps it: always a second tree, for a module that may be put in training later.

    Parts that are exchanged in the module afterwards stay what they were in the view; new values of tensors are seen.
    """
    return _view(module, {})


def _view(module: Module, seen: dict[nn.Module, nn.Module]) -> Module:
    original = getattr(module, "_orig_mod", module)  # torch.compile(part) keeps the part itself there
    if original not in seen:
        view = object.__new__(type(original))
        seen[original] = view
        view.__dict__.update(original.__dict__, training=False, _compiled_call_impl=None)
        view.__dict__["_modules"] = {
            name: part if part is None else _view(part, seen) for name, part in original._modules.items()
        }
    return seen[original]  # type: ignore[return-value]
