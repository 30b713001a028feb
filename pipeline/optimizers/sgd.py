"""Stochastic gradient descent with Nesterov's momentum (Sutskever et al. 2013)."""

import torch

from pipeline.optimizers._eager import eager
from pipeline.specs import OptimizerOptions, ParameterGroups

_SGD = eager(torch.optim.SGD)


def build(parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    return _SGD(parameters, lr=learning_rate, momentum=options.momentum, nesterov=options.momentum > 0, fused=True)
