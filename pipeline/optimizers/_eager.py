"""Optimizers that nobody compiles."""

import inspect
from typing import TypeVar, cast

import torch

Kind = TypeVar("Kind", bound=torch.optim.Optimizer)


def eager(optimizer: type[Kind]) -> type[Kind]:
    """The same optimizer, without the wrappers that keep `torch.compile` out of its methods.

    They import torch._dynamo at the first step, which takes 2.3 s, a sixth of a small release.
    """
    names = ("add_param_group", "load_state_dict", "state_dict", "zero_grad")
    methods = {name: inspect.unwrap(getattr(optimizer, name)) for name in names}
    methods["step"] = torch.no_grad()(inspect.unwrap(optimizer.step))
    return cast(type[Kind], type(optimizer.__name__, (optimizer,), methods))
