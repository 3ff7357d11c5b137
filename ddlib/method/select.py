"""Which real images stand for a class: an initialisation, and with no distillation a coreset.

One signature: `pick(features (n, d), count, generator) -> indices (count,)`, called on the images
of one class.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from ddlib.data.datasets import Images
from ddlib.method.functional import FunctionalNetwork
from ddlib.settings import InputError, Selection, generator


def real(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random images, distinct."""
    return torch.randperm(len(features), generator=generator)[:count]


def representative(
    features: Tensor, count: int, generator: torch.Generator, centres: int | None = None
) -> Tensor:
    """The count / centres nearest images around each k-means centre, without repeats (AST).

    There are as many centres as images unless `centres` says otherwise.
    """
    from sklearn.cluster import KMeans  # here: it takes as long to import as PyTorch

    centres = centres or count
    seed = int(torch.randint(2**31 - 1, (), generator=generator))
    kmeans = KMeans(centres, n_init=10, random_state=seed).fit(features.double().numpy())
    means = torch.from_numpy(kmeans.cluster_centers_)
    taken: list[int] = []
    for distances in torch.cdist(means, features.double()):  # (centres, n)
        free = [i for i in distances.argsort(stable=True).tolist() if i not in taken]
        taken += free[: count // centres]
    return torch.tensor(taken)


def herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedily keep the selection's mean nearest to that of the class (Welling 2009)."""
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
    """From the image nearest to the class mean on, always the farthest (Sener & Savarese 2018)."""
    features = features.double()
    taken = [int((features - features.mean(0)).norm(dim=1).argmin())]
    nearest = (features - features[taken[0]]).norm(dim=1)
    while len(taken) < count:
        taken.append(int(nearest.argmax()))
        nearest = torch.minimum(nearest, (features - features[taken[-1]]).norm(dim=1))
        nearest[taken] = -1
    return torch.tensor(taken)


SELECT: dict[str, Callable[..., Tensor]] = {
    "real": real,
    "correct": real,  # among the images that an expert classifies correctly (DATM)
    "representative": representative,
    "herding": herding,
    "k_center": k_center,
}


@torch.no_grad()
def features(
    settings: Selection, network: FunctionalNetwork, theta: Tensor, images: Images
) -> Tensor:
    """What the fully trained expert theta makes of each training image, (n, d)."""
    embed = network if settings.features == "logits" else network.features
    return torch.cat([embed(theta, x) for x in images.x_train.split(250)])


def select(
    settings: Selection, images: Images, seen: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Images, labels and training indices, IPC per class, class after class.

    `seen` are the `features` of the training images; None: their pixels. Noise has no indices.

    Raises:
        InputError: the expert classifies too few images of a class correctly.
    """
    chance = generator(settings.seed, "selection")
    if settings.method == "all":
        return images.x_train, images.y_train, torch.arange(len(images.y_train))
    if settings.method == "noise":
        y = torch.arange(images.classes).repeat_interleave(settings.ipc)
        x = torch.randn(len(y), *images.shape, generator=chance)
        return x, y, torch.empty(0, dtype=torch.long)

    pick = SELECT[settings.method]
    if settings.centres:
        pick = partial(pick, centres=settings.centres)
    seen = (images.x_train.flatten(1) if seen is None else seen).cpu()
    taken = []
    for c in range(images.classes):
        members = (images.y_train == c).nonzero().flatten().cpu()
        if settings.method == "correct":
            members = members[seen[members].argmax(1) == c]
            if len(members) < settings.ipc:
                raise InputError(
                    f"the expert is right about {len(members)} images of class "
                    f"{images.class_names[c]}, below ipc = {settings.ipc}: train it longer, or "
                    "lower ipc"
                )
        taken.append(members[pick(seen[members], settings.ipc, chance)])
    indices = torch.cat(taken)
    return images.x_train[indices], images.y_train[indices], indices
