"""Adam (Kingma, Ba 2015, arXiv:1412.6980)."""

import torch

from pipeline.specs import OptimizerOptions, ParameterGroups


def build(parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.Adam(parameters, lr=learning_rate, betas=options.betas, fused=True)
