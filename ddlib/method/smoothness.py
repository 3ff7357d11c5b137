"""How smoothly a trajectory moves (METHOD section 1).

theta*_0 ... theta*_E as one tensor (E + 1, P); d_e = theta*_{e+1} - theta*_e.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional as F


def steps(path: Tensor) -> dict[str, Tensor]:
    """Per epoch: step length |d_e|, its square (the authors' plot), relative step |d_e| / |theta_e|, (E,); turning cos(d_e, d_{e+1}), (E - 1,)."""
    d = path.diff(dim=0)
    length = d.norm(dim=1)
    return {
        "step": length,
        "squared_step": length**2,
        "relative_step": length / path[:-1].norm(dim=1),
        "turning": F.cosine_similarity(d[:-1], d[1:], dim=1),
    }


def plane(path: Tensor) -> Tensor:
    """Orthonormal (2, P): the direction from start to end, and that in which the path strays farthest from it. Seen from path[0]."""
    along = F.normalize(path[-1] - path[0], dim=0)
    aside = (path - path[0]) - ((path - path[0]) @ along)[:, None] * along
    return torch.stack([along, F.normalize(aside[aside.norm(dim=1).argmax()], dim=0)])


def beside(expert: Tensor, students: Mapping[str, Tensor]) -> list[dict]:
    """Walks (N + 1, P) that start where the expert's part of its path, (M + 1, P), does: one row a point, the expert's own first.

    `x, y`: its place in the expert's `plane`. `distance`: to the expert's end, by the distance of the expert's ends.
    """
    across, rows = plane(expert), []
    for part, walked in ({"expert": expert} | dict(students)).items():
        for step, theta in enumerate(walked):
            x, y = (across @ (theta - expert[0])).tolist()
            rows.append(
                {
                    "part": part,
                    "step": step,
                    "x": x,
                    "y": y,
                    "distance": float(
                        (theta - expert[-1]).norm() / (expert[0] - expert[-1]).norm()
                    ),
                }
            )
    return rows


def summary(path: Tensor) -> dict[str, float]:
    """Means of `steps`, the longest step, the path's length and its ratio to the end-to-end distance (1: a straight line)."""
    each = steps(path)
    length = each["step"].sum()
    return {name: float(values.mean()) for name, values in each.items()} | {
        "longest_step": float(each["step"].max()),
        "path_length": float(length),
        "detour": float(length / (path[-1] - path[0]).norm()),
    }
