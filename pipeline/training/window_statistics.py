"""Statistics over the columns of a log-mel window, weighted by column: what the voice and sound networks compute first.

B is the batch, C the channels; a window has 300 columns of 10 ms. `share` holds a weight for every column, which sum to
1.

Example:
    mean, above, below = course(mel, share)      # mel (B, 64, 300), share (B, 1, 300) -> (B, 64) each
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def deviation(x: Tensor, share: Tensor) -> Tensor:
    """x (B, C, 300): weighted standard deviation over time, (B, C)."""
    mean = (x * share).sum(2, keepdim=True)
    return torch.sqrt(((x - mean) ** 2 * share).sum(2) + 1e-5)


def course(x: Tensor, share: Tensor) -> list[Tensor]:
    """x (B, C, 300): mean, and deviations of the values above and below it, each (B, C)."""
    mean = (x * share).sum(2)
    deviations = x - mean[:, :, None]
    above, below = F.relu(deviations), F.relu(-deviations)
    return [mean, torch.sqrt((above * above * share).sum(2) + 1e-5), torch.sqrt((below * below * share).sum(2) + 1e-5)]


def difference(x: Tensor, valid: Tensor, reach: int) -> Tensor:
    """x (B, C, 300), `reach` columns later minus `reach` columns earlier; 0 where either was not received.

    valid: (B, 1, 300), 1 where a column was received.
    """
    both = valid[:, :, 2 * reach :] * valid[:, :, : -2 * reach]
    return F.pad((x[:, :, 2 * reach :] - x[:, :, : -2 * reach]) * both, (reach, reach))
