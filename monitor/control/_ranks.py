"""The seam for training on several ranks: when may a command take effect, on all of us?"""

from __future__ import annotations

import torch.distributed

SPLIT = "several ranks train together: a change on one alone would split them"


def objection() -> str | None:
    """Return why no command may take effect on this rank now, or None if one may.

    Ranks that step with different learning rates, or of which one pauses, part for good. Until they can agree on the
    step from which a command holds, a command is refused wherever there is more than one.
    """
    distributed = torch.distributed
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    return SPLIT if distributed.get_world_size() > 1 else None
