"""What an outer loop's curve tells: whether it was cut short, and what its loss is worth."""

from __future__ import annotations

import pandas as pd

from ddlib.paper.claims import mean, part
from ddlib.paper.results import Results

RISE, STILL = 0.005, "still rising"  # accuracy


def rising(results: Results) -> dict[tuple[str, str], tuple[str, int]]:
    """By cell and method, whether the last third of an outer loop's checks gained; its iterations.

    It is "still rising" where validation accuracy rose by more than RISE, in the mean over the
    seeds. With fewer than three checks nobody can tell.
    """
    if not results.has_rows("curves"):
        return {}
    rows, found = results.rows("curves"), {}
    main = rows[rows.study == "main"].groupby(["cell", "method"], sort=False)
    for (cell, method), runs in main:
        checks = runs.dropna(subset="validation_accuracy")
        looks = checks.groupby("iteration").validation_accuracy.agg(mean).tolist()
        known = len(looks) >= 3
        gain = looks[-1] - looks[-1 - len(looks) // 3] if known else 0.0
        words = STILL if gain > RISE else "" if known else "too few checks to tell"
        found[cell, method] = words, int(runs.iteration.max())
    return found


def tracking(results: Results) -> pd.DataFrame:
    """How well the matching loss ranks the sets along a run: Spearman's correlation, by method.

    At each check the loss since the check before is averaged, and ranked beside the validation
    error. 1: whatever lowers the loss lowers the error. 0: the loss says nothing about it. Mean and
    95 % interval over seeds, of runs with three checks or more.
    """
    rows, lines = results.rows("curves"), []
    main = rows[rows.study == "main"].groupby(["cell", "method"], sort=False)
    for (cell, method), runs in main:
        found = [correlation(run) for _, run in runs.groupby("distil_seed")]
        known = part("", found)
        if known.n:
            ends = {"low": max(known.low, -1.0), "high": min(known.high, 1.0), "seeds": known.n}
            lines.append({"cell": cell, "method": method, "correlation": known.effect} | ends)
    return pd.DataFrame(lines, columns=["cell", "method", "correlation", "low", "high", "seeds"])


def correlation(run: pd.DataFrame) -> float:
    """Of one run's curve, NaN with fewer than three checks."""
    checked = run.validation_accuracy.notna()
    since = checked.shift(fill_value=False).cumsum()[run.loss.notna()]  # which check comes next
    loss = run.loss.groupby(since).mean().to_numpy()[: checked.sum()]
    error = 1 - run.validation_accuracy[checked].to_numpy()
    if len(error) < 3 or len(loss) != len(error):
        return float("nan")
    return float(pd.Series(loss).corr(pd.Series(error), method="spearman"))
