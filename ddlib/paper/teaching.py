"""Does smoother teach better? AST distilled from experts of several recipes: how smooth each recipe's experts are, beside how well its sets teach.

A point is a recipe: means over its experts, and over the networks and seeds of its sets. Rank correlations (Spearman's) are signed so that positive speaks for
"yes"; their 95 % intervals resample the recipes, so they tell how much hangs on which recipes were tried, and take each point as known.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from ddlib.paper.results import Results

RESAMPLES = 10_000
TAUGHT = {  # methods of the ablation that differ in their experts alone, and whose they follow; a profile's own are named "AST, <recipe> experts"
    "AST": "ast",
    "AST − ramp": "momentum_penalty",
    "AST − penalty": "momentum_ramp",
    "AST, unsmoothed experts": "momentum",
    "AST, SGD experts": "sgd",
    "AST, lr-matched experts": "momentum_lr_matched",
    "AST, lr warm-up for the ramp": "momentum_warmup_penalty",
    "AST, FTD experts": "ftd",
}
MEASURES = {  # of the experts: the sign of what should teach better, and its words
    "step": (-1, "shorter steps"),
    "longest_step": (-1, "a shorter longest step"),
    "relative_step": (-1, "shorter steps for their size"),
    "detour": (-1, "a straighter path"),
    "turning": (1, "steps more along the one before"),
    "test_accuracy": (1, "better experts, to compare"),
}


def points(results: Results) -> pd.DataFrame:
    """A line a recipe: each of MEASURES and `accuracy` of its sets (fractions), with their standard deviations over experts and over distillation seeds."""
    rows, smooth = results.rows("ablation"), results.rows("smoothness")
    rows, smooth = rows[rows.protocol == "lr_chosen"], smooth[smooth.data == rows.data.iloc[0]]
    lines = []
    for method, recipe in (
        TAUGHT | {f"AST, {name} experts": name for name in smooth.recipe.unique()}
    ).items():
        if method not in set(rows.method):
            continue
        taught = rows[rows.method == method].groupby("distil_seed").accuracy.mean()
        line = {
            "recipe": recipe,
            "method": method,
            "seeds": len(taught),
            "accuracy": taught.mean(),
            "accuracy_std": taught.std(ddof=1),
        }
        experts = smooth[smooth.recipe == recipe]
        lines.append(
            line
            | {name: experts[name].mean() for name in MEASURES}
            | {f"{name}_std": experts[name].std(ddof=1) for name in MEASURES}
        )
    return pd.DataFrame(lines)


def correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Spearman's along the last axis; NaN where one of them is constant."""
    a, b = (rankdata(values, axis=-1) for values in (x, y))
    a, b = (ranks - ranks.mean(-1, keepdims=True) for ranks in (a, b))
    with np.errstate(invalid="ignore"):
        return (a * b).sum(-1) / np.sqrt((a**2).sum(-1) * (b**2).sum(-1))


def interval(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """95 % percentile interval of the rank correlation of pairs, resampled with replacement; the same for the same values."""
    drawn = np.random.default_rng(0).integers(len(x), size=(RESAMPLES, len(x)))
    found = correlations(x[drawn], y[drawn])
    return (
        tuple(np.quantile(found[~np.isnan(found)], [0.025, 0.975]))
        if np.ptp(x) and np.ptp(y)
        else (np.nan, np.nan)
    )


def table(results: Results) -> pd.DataFrame:
    """A line a measure of the experts: its rank correlation with how well their sets teach, the interval, and how many recipes."""
    held, lines = points(results), []
    for name, (sign, words) in MEASURES.items():
        x, y = sign * held[name].to_numpy(), held.accuracy.to_numpy()
        low, high = interval(x, y)
        lines.append(
            {
                "measure": name,
                "do these teach better": words,
                "correlation": float(correlations(x, y)),
                "low": low,
                "high": high,
                "recipes": len(held),
            }
        )
    return pd.DataFrame(lines)
