"""How far the student lands from the expert, and what is asked of it on the way (METHOD sections 3 and 4).

s start epoch, M expert epochs matched, N inner steps, theta_k the student, theta*_e the expert.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor


def balance(s: int, t_max: int) -> float:
    """The balanced inner-loop loss's factor w(s): log_5(s - m + 8) from m = T_max // 2 on, 1 / log_5(m - s + 8) before."""
    m = t_max // 2
    return math.log(s - m + 8, 5) if s >= m else 1 / math.log(m - s + 8, 5)


def matched_steps(steps: int, epochs: int, intermediate: str) -> dict[int, int]:
    """Which inner step answers to which expert epoch: {n_i = i * (N // M): i} for i < M if asked for, and {N: M}."""
    way = {i * (steps // epochs): i for i in range(1, epochs)} if intermediate != "none" else {}
    return way | {steps: epochs}


def objective(
    path: Mapping[int, Tensor] | Sequence[Tensor],
    expert: Tensor,
    matched: Mapping[int, int],
    intermediate: str,
) -> Tensor:
    """L_TM + sum_i beta_i l_i, each |theta_{n_i} - theta*_{s+i}|^2 / |theta_0 - theta*_{s+i}|^2.

    `path[k]` is the student after k steps, from its perturbed start path[0]; `expert` (M + 1, P) starts at epoch s;
    beta_i is 1 ("equal") or i / M ("adaptive"). Not finite where the expert stands at the start.
    """
    total: Any = 0.0
    last = max(matched.values())
    for k, i in matched.items():
        start = (path[0] - expert[i]).square().sum()
        beta = i / last if intermediate == "adaptive" else 1.0
        total = total + beta * (path[k] - expert[i]).square().sum() / start
    return total
