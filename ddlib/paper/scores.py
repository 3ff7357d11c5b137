"""Robust scores of a set, as DD-Ranking defines them (arXiv 2505.13300).

Accuracies, as fractions, of networks trained on the full data, on the set, and on as many random
real images by the same protocol::

    HLR = full - set                     hard-label recovery: the smaller, the better
    IOR = set - random                   improvement over random
    LRS = squash(w IOR - (1 - w) HLR)    label-robust score
    ARS = squash(g d + (1 - g) d')       augmentation-robust score; d = set - random with
                                         augmentation, d' without

with w = g = 1/2. HLR trains on a set's images under their classes, IOR and d under its own labels.
Beside them stands what becomes of the improvement over random where both sets carry the soft labels
of one expert, which are fixed (arXiv 2604.18811).

DD-Ranking scores the best checkpoint on test images, in percent; here it is the last epoch.
"""

from __future__ import annotations

from math import e, exp

import pandas as pd

from ddlib.paper.claims import mean
from ddlib.runs.methods import CEILING
from ddlib.settings import InputError

RANDOM = "random"


def squash(x: float) -> float:
    """-1 ... 1 as 0 ... 1, steeper to the right."""
    return (exp(x) - 1 / e) / (e - 1 / e)


def label_robust(ior: float, hlr: float, weight: float = 0.5) -> float:
    """LRS."""
    return squash(weight * ior - (1 - weight) * hlr)


def augmentation_robust(augmented: float, plain: float, weight: float = 0.5) -> float:
    """ARS of the improvements over random with augmentation and without it."""
    return squash(weight * augmented + (1 - weight) * plain)


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """hlr, ior, ior_plain (without augmentation), lrs, ars of each (method, distil_seed).

    `taught` is the accuracy under an expert's soft labels, `ior_taught` its lead over random's.

    `rows` are those of the study `scores`; a set is compared with the random images of its seed.

    Raises:
        InputError: no row of the full data, or none of random images.
    """
    rows = rows[rows.protocol == "lr_chosen"]
    if lacking := {RANDOM, CEILING} - set(rows.method):
        raise InputError(
            f"the rows of `scores` lack {' and '.join(sorted(lacking))}: expected what every "
            "score is measured against; run the study again"
        )
    full = mean(rows[rows.method == CEILING].accuracy)
    rows, by = rows[rows.method != CEILING], ["method", "distil_seed"]
    own = rows[rows.labels == "own"].groupby([*by, "augmented"], sort=False).accuracy.agg(mean)
    sets = own.unstack("augmented")
    seeds = sets.index.get_level_values("distil_seed")
    better = sets - sets.loc[RANDOM].reindex(seeds).to_numpy()
    hard = rows[rows.labels == "hard"].groupby(by).accuracy.agg(mean)
    hlr = full - hard.reindex(sets.index).fillna(sets[True])
    taught = rows[rows.labels == "teacher"].groupby(by).accuracy.agg(mean).reindex(sets.index)
    scores = pd.DataFrame({"hlr": hlr, "ior": better[True], "ior_plain": better[False]})
    return scores.assign(
        taught=taught,
        ior_taught=taught - taught.loc[RANDOM].reindex(seeds).to_numpy(),
        lrs=[label_robust(*line) for line in zip(scores.ior, scores.hlr, strict=True)],
        ars=[augmentation_robust(*line) for line in zip(scores.ior, scores.ior_plain, strict=True)],
    )
