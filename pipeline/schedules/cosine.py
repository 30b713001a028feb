"""Half a cosine from the full learning rate to zero (Loshchilov, Hutter 2017, arXiv:1608.03983, without restarts)."""

import math

DEPENDS_ON_TOTAL = True


def factor(step: int, epoch: int, total_steps: int, gamma: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * step / total_steps))
