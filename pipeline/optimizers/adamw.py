"""Adam with decoupled weight decay (Loshchilov, Hutter 2019, arXiv:1711.05101)."""

import torch

from pipeline.specs import OptimizerOptions, ParameterGroups


def build(parameters: ParameterGroups, learning_rate: float, options: OptimizerOptions) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=learning_rate, betas=options.betas, fused=True)
