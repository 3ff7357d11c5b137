"""Which real images stand for a class (METHOD section 2): one signature, `pick(features (n, d), count, generator) -> indices (count,)`.

Each is called on the images of one class. With no distillation after it, each is also a coreset baseline.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from sklearn.cluster import KMeans
from torch import Tensor


def real(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random images, distinct."""
    return torch.randperm(len(features), generator=generator)[:count]


def representative(
    features: Tensor, count: int, generator: torch.Generator, centres: int | None = None
) -> Tensor:
    """k-means; around each centre the count / centres nearest images not yet taken (AST; one each unless `centres` says otherwise)."""
    centres = centres or count
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    means = (
        KMeans(centres, n_init=10, random_state=seed)
        .fit(features.double().numpy())
        .cluster_centers_
    )
    distance = torch.cdist(torch.from_numpy(means), features.double())  # (centres, n)
    taken: list[int] = []
    for row in distance:
        free = [i for i in row.argsort(stable=True).tolist() if i not in taken]
        taken += free[: count // centres]
    return torch.tensor(taken)


def herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedily keep the selection's mean nearest to the class's (Welling 2009)."""
    features = features.double()
    mean, total = features.mean(0), torch.zeros_like(features[0])
    taken: list[int] = []
    for k in range(1, count + 1):
        distance = ((total + features) / k - mean).norm(dim=1)
        distance[taken] = torch.inf
        taken.append(int(distance.argmin()))
        total = total + features[taken[-1]]
    return torch.tensor(taken)


def k_center(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Start next to the class mean, then always the image farthest from those taken (Sener & Savarese 2018)."""
    features = features.double()
    taken = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = (features - features[taken[0]]).norm(dim=1)
    while len(taken) < count:
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[taken[-1]]).norm(dim=1))
        nearest[taken] = -1
    return torch.tensor(taken)


INITIAL: dict[str, Callable[..., Tensor]] = {
    "real": real,
    "correct": real,  # shown those images alone that an expert classifies rightly (DATM's start)
    "representative": representative,
    "herding": herding,
    "k_center": k_center,
}
