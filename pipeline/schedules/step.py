"""The learning rate times gamma after each epoch."""

DEPENDS_ON_TOTAL = False


def factor(step: int, steps_per_epoch: int, total_steps: int, gamma: float) -> float:
    return float(gamma ** (step // steps_per_epoch))
