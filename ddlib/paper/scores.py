"""Robust scores of a set, as DD-Ranking defines them (arXiv 2505.13300).

Accuracies, as fractions, of networks trained on the full data, on the set, and on as many random
real images by the same protocol::

    HLR = full - set                     hard-label recovery: the smaller, the better
    IOR = set - random                   improvement over random
    LRS = squash((IOR - HLR) / 2)        label-robust score
    ARS = squash((d + d') / 2)           augmentation-robust score; d = set - random with
                                         augmentation, d' without

HLR trains on a set's images under their classes, IOR and d under its own labels.
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


def by_seed(rows: pd.DataFrame) -> pd.DataFrame:
    """hlr, ior, ior_plain (without augmentation), lrs, ars of each (method, distil_seed).

    `taught` is the accuracy under an expert's soft labels, `ior_taught` its lead over random's.

    `rows` are those of the study `scores`; a set is compared with the random images of its seed.
    Raises InputError where there is no row of the full data, or none of random images.
    """
    rows = rows[rows.protocol == "lr_chosen"]
    if lacking := {RANDOM, CEILING} - set(rows.method):
        raise InputError(
            f"the rows of `scores` lack {' and '.join(sorted(lacking))}: expected what every "
            "score is measured against; run the study again"
        )
    full = mean(rows[rows.method == CEILING].accuracy)
    of_sets = rows[rows.method != CEILING].groupby(
        ["method", "distil_seed", "labels", "augmented"], sort=False
    )
    wide = of_sets.accuracy.agg(mean).unstack(["labels", "augmented"])
    wide = wide.reindex(columns=[("own", True), ("own", False), ("teacher", True), ("hard", True)])
    wide.columns = ["own", "plain", "taught", "hard"]
    random = wide.loc[RANDOM].reindex(wide.index.get_level_values("distil_seed"))
    lead, hlr = wide - random.to_numpy(), full - wide.hard.fillna(wide.own)
    return pd.DataFrame(
        {
            "hlr": hlr,
            "ior": lead.own,
            "ior_plain": lead.plain,
            "taught": wide.taught,
            "ior_taught": lead.taught,
            "lrs": ((lead.own - hlr) / 2).map(squash),
            "ars": ((lead.own + lead.plain) / 2).map(squash),
        }
    )
