"""The seven claims (METHOD section 7): effect, bootstrap interval over seeds, verdict, each computed from rows.

Effects are signed so that positive speaks for the claim. An interval above zero: supported; below: not supported; across: inconclusive at this
scale. A claim of several parts is as good as its weakest part, whose numbers it shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from .results import Results

RESAMPLES = 10_000
MARGIN = 0.01  # accuracy that counts as "little cost"
SUPPORTED, NOT, OPEN = "supported", "not supported", "inconclusive at this scale"

STATEMENTS = {
    1: "Stronger experts classify better but move less smoothly, and unsmoothed they distil worse",
    2: "Clipping loss and gradient penalty smooth the experts at little cost in quality",
    3: "Smooth strong experts give better sets than SGD experts, unsmoothed strong ones and merely slower ones",
    4: "Representative initialisation beats random real images and varies less over seeds",
    5: "The balanced inner-loop loss reduces sensitivity to the start epoch",
    6: "Intermediate matching and weight perturbation reduce the accumulated error",
    7: "The whole beats prior trajectory matching and coresets at every IPC tried",
}
RIVALS = ("random", "herding", "k-center", "k-means", "MTT", "MTT, strong experts")


@dataclass(frozen=True)
class Part:
    """One measured part of a claim: `effect` in the unit that `statement` names, its interval, n seeds behind it."""

    claim: str
    statement: str
    effect: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        return SUPPORTED if self.low > 0 else NOT if self.high < 0 else OPEN


def bootstrap(values: np.ndarray, statistic=np.mean) -> tuple[float, float]:
    """95 % percentile interval of a statistic of `values`, resampled with replacement; the same for the same values."""
    chance = np.random.default_rng(0)
    drawn = values[chance.integers(len(values), size=(RESAMPLES, len(values)))]
    return tuple(np.quantile(statistic(drawn, axis=1), [0.025, 0.975]))


def part(claim: str, statement: str, effects: pd.Series | np.ndarray) -> Part:
    """A part whose effect is the mean over seeds."""
    values = np.asarray(effects, dtype=float)
    if len(values) < 2:  # one seed has an effect but no interval
        return Part(claim, statement, float(values.mean()) if len(values) else np.nan, -np.inf, np.inf, len(values))
    return Part(claim, statement, float(values.mean()), *bootstrap(values), len(values))


def accuracy(rows: pd.DataFrame, method: str) -> pd.Series:
    """Mean accuracy over networks for each (cell, seed), lr chosen on validation."""
    mine = rows[(rows.method == method) & (rows.protocol == "lr_chosen")]
    return mine.groupby(["cell", "distil_seed"]).accuracy.mean()


def paired(rows: pd.DataFrame, better: str, worse: str) -> pd.Series:
    """Difference in accuracy for each seed, the cells averaged."""
    return (accuracy(rows, better) - accuracy(rows, worse)).dropna().groupby("distil_seed").mean()


def experts(rows: pd.DataFrame, column: str, more: str, less: str) -> pd.Series:
    """Difference between two recipes for each expert seed (same initialisation, same batches)."""
    wide = rows[rows.data == rows.data.iloc[0]].pivot(index="expert_seed", columns="recipe", values=column)
    return (wide[more] - wide[less]).dropna()


def one(results: Results) -> Iterator[Part]:
    smooth, main = results.rows("smoothness"), results.rows("main")
    for letter, strong in zip("ab", ("momentum", "adam"), strict=True):
        yield part(f"1{letter}", f"expert test accuracy, {strong} − SGD", experts(smooth, "test_accuracy", strong, "sgd"))
    for letter, strong in zip("cd", ("momentum", "adam"), strict=True):
        yield part(f"1{letter}", f"mean step length of experts, {strong} − SGD", experts(smooth, "step", strong, "sgd"))
    yield part("1e", "test accuracy of sets, MTT with SGD experts − with strong experts", paired(main, "MTT", "MTT, strong experts"))


def two(results: Results) -> Iterator[Part]:
    smooth = results.rows("smoothness")
    for letter, recipe in zip("abc", ("momentum_ramp", "momentum_penalty", "ast"), strict=True):
        yield part(f"2{letter}", f"mean step length, momentum − {recipe}", experts(smooth, "step", "momentum", recipe))
    yield part("2d", "longest step, momentum − ast", experts(smooth, "longest_step", "momentum", "ast"))
    kept = experts(smooth, "test_accuracy", "ast", "momentum") + MARGIN
    yield part("2e", f"expert test accuracy, ast − momentum, plus the margin of {MARGIN:g}", kept)


def three(results: Results) -> Iterator[Part]:
    rows = results.rows("ablation")
    for letter, other in zip("abc", ("AST, SGD experts", "AST, unsmoothed experts", "AST, lr-matched experts"), strict=True):
        yield part(f"3{letter}", f"test accuracy, AST − {other}", paired(rows, "AST", other))


def four(results: Results) -> Iterator[Part]:
    main, ablation = results.rows("main"), results.rows("ablation")
    yield part("4a", "test accuracy of coresets, k-means − random", paired(main, "k-means", "random"))
    yield part("4b", "test accuracy, AST − AST from random real images", paired(ablation, "AST", "AST − representative start"))
    spread = []
    both = pd.concat([accuracy(main, "random"), accuracy(main, "k-means")], axis=1, join="inner")
    for _, mine in both.groupby("cell"):
        spread.append(mine.to_numpy())  # (seeds, 2)

    def narrower(drawn: np.ndarray, axis: int) -> np.ndarray:  # (resamples, seeds, cells, 2)
        std = drawn.std(axis=axis, ddof=1)
        return (std[..., 0] - std[..., 1]).mean(-1)

    values = np.stack(spread, 1)  # (seeds, cells, 2)
    if len(values) < 2:
        return
    yield Part("4c", "std over seeds of coreset accuracy, random − k-means", float(narrower(values[None], 1)[0]), *bootstrap(values, narrower), len(values))


def five(results: Results) -> Iterator[Part]:
    rows = results.rows("curves")
    rows = rows[rows.study == "ablation"]
    late = rows[rows.iteration > rows.iteration.max() // 2]
    by_start = late.groupby(["method", "distil_seed", "start"]).loss.mean()
    spread = by_start.groupby(["method", "distil_seed"]).std() / by_start.groupby(["method", "distil_seed"]).mean()
    effect = (spread["AST − balanced loss"] - spread["AST"]).dropna()
    yield part("5a", "relative std of the matching loss over start epochs, without the balanced loss − with it", effect)
    yield part("5b", "test accuracy, AST − AST without the balanced loss", paired(results.rows("ablation"), "AST", "AST − balanced loss"))


def six(results: Results) -> Iterator[Part]:
    rows = results.rows("following")
    last = rows[rows.epoch == rows.epoch.max()].groupby(["method", "distil_seed"]).error.mean()
    for letter, other in zip("ab", ("AST − intermediate matching", "AST − weight perturbation"), strict=True):
        yield part(f"6{letter}", f"relative distance to the expert after its whole way, {other} minus AST", (last[other] - last["AST"]).dropna())
    for letter, other in zip("cd", ("AST − intermediate matching", "AST − weight perturbation"), strict=True):
        yield part(f"6{letter}", f"test accuracy, AST minus {other}", paired(results.rows("ablation"), "AST", other))


def seven(results: Results) -> Iterator[Part]:
    rows = results.rows("main")
    letters = iter("abcdefghijklmnopqrstuvwxyz")
    for cell, mine in rows.groupby("cell", sort=False):
        means = {m: accuracy(mine, m).mean() for m in RIVALS if (mine.method == m).any()}
        best = max(means, key=means.get)
        yield part(f"7{next(letters)}", f"test accuracy on {cell}, AST − {best}, the best rival", paired(mine, "AST", best))
        if (mine.method == "MTT + inner momentum").any():
            yield part(f"7{next(letters)}", f"test accuracy on {cell}, AST − MTT + inner momentum", paired(mine, "AST", "MTT + inner momentum"))


CLAIMS = {1: one, 2: two, 3: three, 4: four, 5: five, 6: six, 7: seven}


def table(results: Results) -> pd.DataFrame:
    """claim, statement, effect, low, high, n, verdict: each claim, then its parts."""
    lines = []
    for number, measure in CLAIMS.items():
        parts = list(measure(results))
        rank = {NOT: 0, OPEN: 1, SUPPORTED: 2}
        weakest = min(parts, key=lambda p: (rank[p.verdict], p.low))
        whole = Part(str(number), f"{STATEMENTS[number]} (decided by {weakest.claim})", weakest.effect, weakest.low, weakest.high, weakest.n)
        lines += [{**vars(p), "verdict": p.verdict} for p in (whole, *parts)]
    return pd.DataFrame(lines, columns=["claim", "statement", "effect", "low", "high", "n", "verdict"])
