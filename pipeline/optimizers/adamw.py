"""Adam with decoupled weight decay (Loshchilov, Hutter 2019, arXiv:1711.05101)."""

import torch

from pipeline.optimizers._eager import eager
from pipeline.specs import OptimizerOptions, ParameterGroups

_AdamW = eager(torch.optim.AdamW)


def build(parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    return _AdamW(parameters, lr=learning_rate, betas=options.betas, fused=True)
