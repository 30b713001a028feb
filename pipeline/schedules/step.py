"""The learning rate times gamma after each epoch."""

DEPENDS_ON_TOTAL = False


def factor(step: int, epoch: int, total_steps: int, gamma: float) -> float:
    return float(gamma**epoch)
