"""How smoothly a trajectory moves.

The path theta*_0 ... theta*_E is one tensor (E + 1, P); d_e = theta*_{e+1} - theta*_e.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def steps(path: Tensor) -> dict[str, Tensor]:
    """``|d_e|, |d_e|^2, |d_e| / |theta*_e|``, each (E,); cos(d_e, d_{e+1}), (E - 1,)."""
    d = path.diff(dim=0)
    length = d.norm(dim=1)
    return {
        "step": length,
        "squared_step": length**2,  # what the authors plot
        "relative_step": length / path[:-1].norm(dim=1),
        "turning": F.cosine_similarity(d[:-1], d[1:], dim=1),
    }


def summary(path: Tensor) -> dict[str, float]:
    """Means of `steps`, the longest step, the length, and length / end-to-end distance."""
    per_epoch = steps(path)
    length = per_epoch["step"].sum()
    return {name: float(values.mean()) for name, values in per_epoch.items()} | {
        "longest_step": float(per_epoch["step"].max()),
        "path_length": float(length),
        "detour": float(length / (path[-1] - path[0]).norm()),  # 1: a straight line
    }


def plane(path: Tensor) -> Tensor:
    """Orthonormal (2, P): from start to end, and where the path strays farthest from that line."""
    along = F.normalize(path[-1] - path[0], dim=0)
    aside = (path - path[0]) - ((path - path[0]) @ along)[:, None] * along
    return torch.stack([along, F.normalize(aside[aside.norm(dim=1).argmax()], dim=0)])


def beside(expert: Tensor, students: Mapping[str, Tensor]) -> list[dict]:
    """One row per point of the expert's path (M + 1, P) and of each student's (N + 1, P).

    `x, y` are coordinates in the expert's `plane`; `distance` is the distance to the expert's end
    over that of the expert's own start.
    """
    axes, rows = plane(expert), []
    for part, path in ({"expert": expert} | dict(students)).items():
        for step, theta in enumerate(path):
            x, y = (axes @ (theta - expert[0])).tolist()
            away = float((theta - expert[-1]).norm() / (expert[0] - expert[-1]).norm())
            rows.append({"part": part, "step": step, "x": x, "y": y, "distance": away})
    return rows
