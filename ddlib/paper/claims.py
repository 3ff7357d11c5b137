"""The seven claims (METHOD section 7): effect, bootstrap interval over seeds, verdict, from rows.

Effects are signed so that positive speaks for the claim. An interval above zero: supported; below:
not supported; across: inconclusive at this scale. A claim of several parts is as good as its
weakest part, and shows its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from string import ascii_lowercase
from typing import Any

import numpy as np
import pandas as pd

from ddlib.paper.results import Results

RESAMPLES = 10_000
MANY = 200  # seeds, above which an effect is too small to be worth them
MARGIN = 0.01  # accuracy that counts as "little cost"
SUPPORTED, NOT, OPEN = "supported", "not supported", "inconclusive at this scale"
CORESETS_AND_RIVALS = (
    *("random", "herding", "k-center", "k-means", "DC", "DSA", "DM"),
    *("MTT", "MTT, strong experts", "FTD", "TESLA", "DATM"),
)
CONTROL = "MTT + inner momentum"
UNBALANCED = " − balanced loss"  # ends the name of a method without it


@dataclass(frozen=True)
class Part:
    """One measured part of a claim: an effect, its 95 % interval, and the n seeds behind it."""

    claim: str  # 3b, or 3 for the whole claim
    statement: str
    effect: float
    low: float
    high: float
    n: int

    @property
    def verdict(self) -> str:
        """Whether the interval lies above zero, below or across."""
        return SUPPORTED if self.low > 0 else NOT if self.high < 0 else OPEN

    @property
    def settled_by(self) -> str:
        """What would settle an open part, if effect and spread stay as they are."""
        if self.verdict != OPEN:
            return ""
        if not np.isfinite(self.low):
            return "a second seed: one has no interval"
        if self.effect == 0:
            return "another measure: no effect was seen"
        reach = self.effect - self.low if self.effect > 0 else self.high - self.effect
        # an interval narrows with the square root of n
        seeds = math.ceil(self.n * (reach / self.effect) ** 2)
        if seeds <= MANY:
            return f"about {seeds} seeds"
        return f"no number of seeds in reach (above {MANY}): as good as no effect"


def mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN, rounded once: the same bits on every processor."""
    known = [float(value) for value in values if value == value]
    return math.fsum(known) / len(known) if known else math.nan


def std(values: Iterable[float]) -> float:
    """The standard deviation (n - 1) of what is not NaN, as `mean`; NaN of fewer than two."""
    known = [float(value) for value in values if value == value]
    if len(known) < 2:
        return math.nan
    centre = mean(known)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in known) / (len(known) - 1))


def bootstrap(values: np.ndarray, statistic: Callable[..., Any] = np.mean) -> tuple[float, float]:
    """95 % percentile interval of a statistic of `values`, resampled with replacement."""
    resampled = np.random.default_rng(0).integers(len(values), size=(RESAMPLES, len(values)))
    low, high = np.quantile(statistic(values[resampled], axis=1), [0.025, 0.975])
    return float(low), float(high)


def part(statement: str, effects: Iterable[float]) -> Part:
    """A part whose effect is the mean over seeds; one seed has an effect but no interval."""
    values = np.asarray(effects, dtype=float)
    interval = bootstrap(values) if len(values) > 1 else (-np.inf, np.inf)
    return Part("", statement, mean(values), *interval, len(values))


def accuracy(rows: pd.DataFrame, method: str) -> pd.Series:
    """Mean accuracy over networks for each (cell, seed), lr chosen on validation images."""
    chosen = rows[(rows.method == method) & (rows.protocol == "lr_chosen")]
    return chosen.groupby(["cell", "distil_seed"]).accuracy.agg(mean)


def paired(rows: pd.DataFrame, better: str, worse: str) -> pd.Series:
    """Difference in accuracy per seed, averaged over the cells that have every seed."""
    difference = (accuracy(rows, better) - accuracy(rows, worse)).dropna()
    wide = difference.unstack("cell").dropna(axis=1)
    return pd.Series([mean(line) for line in wide.to_numpy()], wide.index, dtype=float)


def experts(rows: pd.DataFrame, column: str, more: str, less: str) -> pd.Series:
    """Difference between two recipes per expert seed (same initialisation, same batches)."""
    first = rows[rows.data == rows.data.iloc[0]]
    wide = first.pivot(index="expert_seed", columns="recipe", values=column)
    return (wide[more] - wide[less]).dropna()


def unevenness(results: Results, methods: Sequence[str]) -> pd.Series:
    """Std over mean of the matching loss over start epochs, in the second half of distillation."""
    rows = results.rows("curves")
    rows = rows[(rows.study == "ablation") & rows.method.isin(methods)]
    late = rows[rows.iteration > rows.iteration.max() // 2]
    by_start = late.groupby(["method", "distil_seed", "start"]).loss.agg(mean)
    by_set = by_start.groupby(["method", "distil_seed"])
    return by_set.agg(std) / by_set.agg(mean)


Parts = Callable[[Results], Iterable[Part]]
CLAIMS: dict[int, tuple[str, Parts]] = {}  # number -> its statement, and what measures its parts


def claim(statement: str) -> Callable[[Parts], Parts]:
    """Add a claim; its parts are lettered in the order in which the function yields them."""

    def add(parts: Parts) -> Parts:
        CLAIMS[len(CLAIMS) + 1] = statement, parts
        return parts

    return add


@claim("Stronger experts classify better but move less smoothly, and unsmoothed they distil worse")
def strong_experts(results: Results) -> Iterator[Part]:
    """Momentum and Adam beside SGD."""
    smooth, main = results.rows("smoothness"), results.rows("main")
    columns = {"test_accuracy": "expert test accuracy", "step": "mean step length of experts"}
    for column, words in columns.items():
        for strong in ("momentum", "adam"):
            yield part(f"{words}, {strong} − SGD", experts(smooth, column, strong, "sgd"))
    statement = "test accuracy of sets, MTT with SGD experts − with strong experts"
    yield part(statement, paired(main, "MTT", "MTT, strong experts"))


@claim("Clipping loss and gradient penalty smooth the experts at little cost in quality")
def smoothing(results: Results) -> Iterator[Part]:
    """Each alone and both, beside momentum."""
    smooth = results.rows("smoothness")
    for recipe in ("momentum_ramp", "momentum_penalty", "ast"):
        shorter = experts(smooth, "step", "momentum", recipe)
        yield part(f"mean step length, momentum − {recipe}", shorter)
    longest = experts(smooth, "longest_step", "momentum", "ast")
    yield part("longest step, momentum − ast", longest)
    kept = experts(smooth, "test_accuracy", "ast", "momentum") + MARGIN
    yield part(f"expert test accuracy, ast − momentum, plus the margin of {MARGIN:g}", kept)


@claim(
    "Smooth strong experts give better sets than SGD experts, "
    "unsmoothed strong ones and merely slower ones"
)
def smooth_experts(results: Results) -> Iterator[Part]:
    """AST beside AST with other experts."""
    rows = results.rows("ablation")
    for other in ("AST, SGD experts", "AST, unsmoothed experts", "AST, lr-matched experts"):
        yield part(f"test accuracy, AST − {other}", paired(rows, "AST", other))


@claim("Representative initialisation beats random real images and varies less over seeds")
def representative(results: Results) -> Iterator[Part]:
    """k-means beside random images, as coresets and as a start."""
    main, ablation = results.rows("main"), results.rows("ablation")
    better = paired(main, "k-means", "random")
    yield part("test accuracy of coresets, k-means − random", better)
    better = paired(ablation, "AST", "AST − representative start")
    yield part("test accuracy, AST − AST from random real images", better)
    both = pd.concat([accuracy(main, "random"), accuracy(main, "k-means")], axis=1, join="inner")
    wide = both.unstack("cell").dropna(axis=1)  # the cells that have every seed
    values = wide.to_numpy().reshape(len(wide), 2, -1).swapaxes(1, 2)  # (seeds, cells, 2)
    if len(values) > 1:
        random, k_means = values.transpose(2, 1, 0)  # (cells, seeds) each
        effect = mean(std(a) - std(b) for a, b in zip(random, k_means, strict=True))
        statement = "std over seeds of coreset accuracy, random − k-means"
        yield Part("", statement, effect, *bootstrap(values, narrower), len(values))


def narrower(values: np.ndarray, axis: int) -> np.ndarray:
    """How much the first of two spreads over seeds exceeds the second, mean over cells."""
    spread = values.std(axis=axis, ddof=1)  # values (resamples, seeds, cells, 2)
    return (spread[..., 0] - spread[..., 1]).mean(-1)


@claim("The balanced inner-loop loss reduces sensitivity to the start epoch")
def balanced_loss(results: Results) -> Iterator[Part]:
    """Each method that was also run without it: evenness, and accuracy."""
    rows = results.rows("ablation")
    for method in rows.method.unique():
        without = method + UNBALANCED
        if (rows.method == without).any():
            uneven = unevenness(results, (method, without))
            words = "relative std of the matching loss over start epochs"
            statement = f"{words}, {method} without the balanced loss − with it"
            yield part(statement, (uneven[without] - uneven[method]).dropna())
            statement = f"test accuracy, {method} − the same without the balanced loss"
            yield part(statement, paired(rows, method, without))


@claim("Intermediate matching and weight perturbation reduce the accumulated error")
def accumulated_error(results: Results) -> Iterator[Part]:
    """Without each: how far a student strays from the expert at the end, and accuracy."""
    rows, ablation = results.rows("following"), results.rows("ablation")
    last = rows[rows.epoch == rows.groupby("method").epoch.transform("max")]
    error = last.groupby(["method", "distil_seed"]).error.agg(mean)
    others = ("AST − intermediate matching", "AST − weight perturbation")
    for other in others:
        statement = f"relative distance to the expert after its whole way, {other} minus AST"
        yield part(statement, (error[other] - error["AST"]).dropna())
    for other in others:
        yield part(f"test accuracy, AST minus {other}", paired(ablation, "AST", other))


@claim("The whole beats prior trajectory matching and coresets at every IPC tried")
def whole(results: Results) -> Iterator[Part]:
    """Per cell: AST beside the best rival, and beside MTT with AST's inner momentum."""
    for cell, rows in results.rows("main").groupby("cell", sort=False):
        rivals = [method for method in CORESETS_AND_RIVALS if (rows.method == method).any()]
        best = max(rivals, key=lambda method: mean(accuracy(rows, method)))
        words = f"test accuracy on {cell}, AST − "
        yield part(f"{words}{best}, the best rival", paired(rows, "AST", best))
        if (rows.method == CONTROL).any():
            yield part(f"{words}{CONTROL}", paired(rows, "AST", CONTROL))


def measured(results: Results) -> Iterator[Part]:
    """Each claim, with the numbers of its weakest part, and then its parts."""
    rank = {NOT: 0, OPEN: 1, SUPPORTED: 2}
    for number, (statement, measure) in CLAIMS.items():
        parts = [
            replace(part, claim=f"{number}{ascii_lowercase[i]}")
            for i, part in enumerate(measure(results))
        ]
        weakest = min(parts, key=lambda part: (rank[part.verdict], part.low))
        decided = f"{statement} (decided by {weakest.claim})"
        yield replace(weakest, claim=f"{number}", statement=decided)
        yield from parts


def table(results: Results) -> pd.DataFrame:
    """claim, statement, effect, low, high, n, verdict, settled_by: each claim, then its parts."""
    return pd.DataFrame(
        vars(part) | {"verdict": part.verdict, "settled_by": part.settled_by}
        for part in measured(results)
    )


LEDGER = (
    "# The seven claims under the profile `{}`\n\n"
    "A positive effect speaks for the claim. An interval above zero: *supported*; below: "
    "*not supported*; across: *inconclusive at this scale*. A claim is as\n"
    "good as its weakest part. n counts pairs of seeds: both sides of a difference share the seed "
    "of their distillation, or of their experts. Intervals are 95 %\n"
    "percentile bootstraps over those pairs; how many seeds would settle an open part assumes "
    "that effect and spread stay as they are.\n"
)
CLAIM = (
    "\n## {part.claim}. {statement}\n\n**{part.verdict}**, decided by {decider}.\n\n"
    "| | what was measured | effect | 95 % interval | n | verdict | what would settle it |\n"
    "|---|---|---|---|---|---|---|\n"
)


def ledger(results: Results) -> str:
    """The claims in Markdown: each with its verdict, what was measured, what would settle it."""
    text = LEDGER.format(results.folder.name)
    for part in measured(results):
        if part.claim.isdigit():
            statement, decider = part.statement.rstrip(")").split(" (decided by ")
            text += CLAIM.format(part=part, statement=statement, decider=decider)
        else:
            effect, low, high = (in_words(part, x) for x in (part.effect, part.low, part.high))
            interval = f"{low} to {high}" if np.isfinite(part.low) else "none"
            cells = (part.claim, part.statement, effect, interval, part.n, part.verdict)
            text += f"| {' | '.join(map(str, (*cells, part.settled_by)))} |\n"
    return text


def in_words(part: Part, value: float) -> str:
    """A value of a part: accuracies in points, others as they are."""
    points = "accuracy" in part.statement
    value = round(100 * value, 1) if points else round(value, 3)
    value += 0.0  # no negative zero
    return (f"{value:+.1f} points" if points else f"{value:+.3f}").replace("-", "−")
