"""Arrays that came with a request, as tensors."""

from __future__ import annotations

import numpy as np
import torch

from headrace.core.media import MediaTensor


def to_tensor(array: MediaTensor) -> torch.Tensor:
    """A tensor of its own memory."""
    values = np.frombuffer(array.data, np.dtype(array.dtype).newbyteorder("<")).reshape(array.shape)
    return torch.from_numpy(values.copy())
