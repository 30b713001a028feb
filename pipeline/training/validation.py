"""Loss and accuracy over the images that were set aside."""

import torch

from pipeline.specs import Split
from pipeline.training.engine import Engine
from pipeline.training.group import ALONE, Group

_BATCH = 1000


@torch.no_grad()
def validate(
    engine: Engine, split: Split, batch_limit: int | None = None, group: Group = ALONE
) -> tuple[float | None, float | None]:
    """Mean loss, without label smoothing, and accuracy, in fp32 like the release; None where there are no images.

    The processes of the group share the work.
    """
    count = min(len(split), _BATCH * (batch_limit or len(split)))
    if count == 0:
        return None, None
    engine.network.eval()
    group.share(engine.network.buffers())  # after a step each process has the statistics of its own images
    total = torch.zeros(2, device=engine.device)
    for start in range(_BATCH * group.rank, count, _BATCH * group.size):
        chosen = slice(start, start + _BATCH)
        images = torch.from_numpy(split.images(chosen)).to(engine.device)
        labels = torch.from_numpy(split.labels[chosen]).to(engine.device)
        scores = engine.network(engine.pixels(images))
        correct = (scores.argmax(1) == labels).sum()
        total += torch.stack([engine.loss(scores, labels, 0.0) * len(labels), correct])
    loss, accuracy = (group.total(total) / count).tolist()
    return loss, accuracy
