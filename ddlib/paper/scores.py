"""Robust scores of a set, as DD-Ranking defines them (arXiv 2505.13300): what is left of an accuracy when neither labels nor augmentation flatter it.

Accuracies, as fractions, of fresh networks trained on the full data, on the set, and on as many random real images by the same protocol:

    HLR = full - set                     hard-label recovery: the smaller, the better
    IOR = set - random                   improvement over random
    LRS = squash(w IOR - (1 - w) HLR)    label-robust score
    ARS = squash(g d + (1 - g) d')       augmentation-robust score; d = set - random with augmentation, d' without

squash(x) = (e^x - e^-1) / (e - e^-1) takes -1 ... 1 to 0 ... 1; DD-Ranking weighs by w = g = 1/2. HLR trains on a set's images under their classes, whatever
labels came with them; IOR and d under the set's own. Random images always have their classes. DD-Ranking scores the best look at the test images, in percent;
here it is the last epoch's accuracy.
"""

from __future__ import annotations

from math import e

import numpy as np
import pandas as pd

from ddlib.settings import InputError

WEIGHT = 0.5
RANDOM, CEILING = "random", "full data"


def squash(x: pd.Series | float) -> pd.Series | float:
    """-1 ... 1 as 0 ... 1, steeper to the right."""
    return (np.exp(x) - 1 / e) / (e - 1 / e)


def label_robust(
    ior: pd.Series | float, hlr: pd.Series | float, weight: float = WEIGHT
) -> pd.Series | float:
    """LRS."""
    return squash(weight * ior - (1 - weight) * hlr)


def augmentation_robust(
    augmented: pd.Series | float, plain: pd.Series | float, weight: float = WEIGHT
) -> pd.Series | float:
    """ARS of the improvements over random with augmentation and without it."""
    return squash(weight * augmented + (1 - weight) * plain)


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """hlr, ior, ior_plain (without augmentation), lrs, ars of each (method, distil_seed), from rows of the study `scores`; random images are those of that seed.

    Raises:
        InputError: no row of the full data, or none of random images.
    """
    rows = rows[rows.protocol == "lr_chosen"]
    if lacking := {RANDOM, CEILING} - set(rows.method):
        raise InputError(
            f"the rows of `scores` lack {' and '.join(sorted(lacking))}: expected what every score is held against; run the study again"
        )
    full = rows[rows.method == CEILING].accuracy.mean()
    rows, by = rows[rows.method != CEILING], ["method", "distil_seed"]
    sets = (
        rows[rows.labels == "own"]
        .groupby([*by, "augmented"], sort=False)
        .accuracy.mean()
        .unstack("augmented")
    )
    chance = sets.loc[RANDOM].reindex(sets.index.get_level_values("distil_seed"))
    better = sets - chance.to_numpy()
    hard = (
        rows[rows.labels == "hard"]
        .groupby(by)
        .accuracy.mean()
        .reindex(sets.index)
        .fillna(sets[True])
    )
    found = pd.DataFrame({"hlr": full - hard, "ior": better[True], "ior_plain": better[False]})
    return found.assign(
        lrs=label_robust(found.ior, found.hlr), ars=augmentation_robust(found.ior, found.ior_plain)
    )
