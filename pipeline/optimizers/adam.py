"""Adam (Kingma, Ba 2015, arXiv:1412.6980)."""

import torch

from pipeline.optimizers._eager import eager
from pipeline.specs import OptimizerOptions, ParameterGroups

_Adam = eager(torch.optim.Adam)


def build(parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    return _Adam(parameters, lr=learning_rate, betas=options.betas, fused=True)
