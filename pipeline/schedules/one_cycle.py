"""Up in a line over the first 20 % of the steps, then down in a line to zero (after Smith 2018, arXiv:1708.07120)."""

DEPENDS_ON_TOTAL = True

_RISE = 0.2


def factor(step: int, epoch: int, total_steps: int, gamma: float) -> float:
    rising = max(1, round(_RISE * total_steps))
    if step < rising:
        return (step + 1) / rising
    return (total_steps - step) / max(1, total_steps - rising)
