"""The seven claims (METHOD section 7): effect, bootstrap interval over seeds, verdict, each computed from rows.

Effects are signed so that positive speaks for the claim. An interval above zero: supported; below: not supported; across: inconclusive at this
scale. A claim of several parts is as good as its weakest part, whose numbers it shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from string import ascii_lowercase as LETTERS
from typing import Any

import numpy as np
import pandas as pd

from ddlib.paper.results import Results

RESAMPLES = 10_000
MANY = 200  # seeds, above which an effect is too small to be worth them
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
PRIOR = (
    "random",
    "herding",
    "k-center",
    "k-means",
    "DC",
    "DSA",
    "DM",
    "MTT",
    "MTT, strong experts",
    "FTD",
    "TESLA",
    "TESLA + soft labels",
    "DATM",
)
CONTROL = "MTT + inner momentum"
UNBALANCED = " − balanced loss"  # ends the name of a method without it


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

    @property
    def settled_by(self) -> str:
        """What would settle an open part, if effect and spread stay as they are: an interval narrows with the root of n."""
        if self.verdict != OPEN:
            return ""
        if not np.isfinite(self.low):
            return "a second seed: one has no interval"
        if self.effect == 0:
            return "another measure: no effect was seen"
        reach = self.effect - self.low if self.effect > 0 else self.high - self.effect
        seeds = int(np.ceil(self.n * (reach / self.effect) ** 2))
        return (
            f"about {seeds} seeds"
            if seeds <= MANY
            else f"no number of seeds in reach (above {MANY}): as good as no effect"
        )


def bootstrap(values: np.ndarray, statistic: Callable[..., Any] = np.mean) -> tuple[float, float]:
    """95 % percentile interval of a statistic of `values`, resampled with replacement; the same for the same values."""
    chance = np.random.default_rng(0)
    drawn = values[chance.integers(len(values), size=(RESAMPLES, len(values)))]
    return tuple(np.quantile(statistic(drawn, axis=1), [0.025, 0.975]))


def part(claim: str, statement: str, effects: pd.Series | np.ndarray) -> Part:
    """A part whose effect is the mean over seeds."""
    values = np.asarray(effects, dtype=float)
    if len(values) < 2:  # one seed has an effect but no interval
        return Part(
            claim,
            statement,
            float(values.mean()) if len(values) else np.nan,
            -np.inf,
            np.inf,
            len(values),
        )
    return Part(claim, statement, float(values.mean()), *bootstrap(values), len(values))


def accuracy(rows: pd.DataFrame, method: str) -> pd.Series:
    """Mean accuracy over networks for each (cell, seed), lr chosen on validation."""
    mine = rows[(rows.method == method) & (rows.protocol == "lr_chosen")]
    return mine.groupby(["cell", "distil_seed"]).accuracy.mean()


def paired(rows: pd.DataFrame, better: str, worse: str) -> pd.Series:
    """Difference in accuracy for each seed, averaged over the cells that have every seed."""
    return (
        (accuracy(rows, better) - accuracy(rows, worse))
        .dropna()
        .unstack("cell")
        .dropna(axis=1)
        .mean(axis=1)
    )


def experts(rows: pd.DataFrame, column: str, more: str, less: str) -> pd.Series:
    """Difference between two recipes for each expert seed (same initialisation, same batches)."""
    wide = rows[rows.data == rows.data.iloc[0]].pivot(
        index="expert_seed", columns="recipe", values=column
    )
    return (wide[more] - wide[less]).dropna()


def one(results: Results) -> Iterator[Part]:
    smooth, main = results.rows("smoothness"), results.rows("main")
    for letter, strong in zip("ab", ("momentum", "adam"), strict=True):
        yield part(
            f"1{letter}",
            f"expert test accuracy, {strong} − SGD",
            experts(smooth, "test_accuracy", strong, "sgd"),
        )
    for letter, strong in zip("cd", ("momentum", "adam"), strict=True):
        yield part(
            f"1{letter}",
            f"mean step length of experts, {strong} − SGD",
            experts(smooth, "step", strong, "sgd"),
        )
    yield part(
        "1e",
        "test accuracy of sets, MTT with SGD experts − with strong experts",
        paired(main, "MTT", "MTT, strong experts"),
    )


def two(results: Results) -> Iterator[Part]:
    smooth = results.rows("smoothness")
    for letter, recipe in zip("abc", ("momentum_ramp", "momentum_penalty", "ast"), strict=True):
        yield part(
            f"2{letter}",
            f"mean step length, momentum − {recipe}",
            experts(smooth, "step", "momentum", recipe),
        )
    yield part(
        "2d", "longest step, momentum − ast", experts(smooth, "longest_step", "momentum", "ast")
    )
    kept = experts(smooth, "test_accuracy", "ast", "momentum") + MARGIN
    yield part("2e", f"expert test accuracy, ast − momentum, plus the margin of {MARGIN:g}", kept)


def three(results: Results) -> Iterator[Part]:
    rows = results.rows("ablation")
    for letter, other in zip(
        "abc",
        ("AST, SGD experts", "AST, unsmoothed experts", "AST, lr-matched experts"),
        strict=True,
    ):
        yield part(f"3{letter}", f"test accuracy, AST − {other}", paired(rows, "AST", other))


def four(results: Results) -> Iterator[Part]:
    main, ablation = results.rows("main"), results.rows("ablation")
    yield part(
        "4a", "test accuracy of coresets, k-means − random", paired(main, "k-means", "random")
    )
    yield part(
        "4b",
        "test accuracy, AST − AST from random real images",
        paired(ablation, "AST", "AST − representative start"),
    )
    both = pd.concat([accuracy(main, "random"), accuracy(main, "k-means")], axis=1, join="inner")
    wide = both.unstack("cell").dropna(axis=1)  # the cells that have every seed

    def narrower(drawn: np.ndarray, axis: int) -> np.ndarray:  # (resamples, seeds, cells, 2)
        std = drawn.std(axis=axis, ddof=1)
        return (std[..., 0] - std[..., 1]).mean(-1)

    values = wide.to_numpy().reshape(len(wide), 2, -1).swapaxes(1, 2)  # (seeds, cells, 2)
    if len(values) < 2:
        return
    yield Part(
        "4c",
        "std over seeds of coreset accuracy, random − k-means",
        float(narrower(values[None], 1)[0]),
        *bootstrap(values, narrower),
        len(values),
    )


def five(results: Results) -> Iterator[Part]:
    rows, letters = results.rows("ablation"), iter(LETTERS)
    for method in rows.method.unique():
        if (without := method + UNBALANCED) in set(rows.method):
            spread = unevenness(results, (method, without))
            effect = (spread[without] - spread[method]).dropna()
            yield part(
                f"5{next(letters)}",
                f"relative std of the matching loss over start epochs, {method} without the balanced loss − with it",
                effect,
            )
            yield part(
                f"5{next(letters)}",
                f"test accuracy, {method} − the same without the balanced loss",
                paired(rows, method, without),
            )


def unevenness(results: Results, methods: Sequence[str]) -> pd.Series:
    """Std over mean of the matching loss over start epochs, in the second half of each set's distillation."""
    rows = results.rows("curves")
    rows = rows[(rows.study == "ablation") & rows.method.isin(methods)]
    by_start = (
        rows[rows.iteration > rows.iteration.max() // 2]
        .groupby(["method", "distil_seed", "start"])
        .loss.mean()
    )
    by_set = by_start.groupby(["method", "distil_seed"])
    return by_set.std() / by_set.mean()


def six(results: Results) -> Iterator[Part]:
    rows = results.rows("following")
    last = (
        rows[rows.epoch == rows.groupby("method").epoch.transform("max")]
        .groupby(["method", "distil_seed"])
        .error.mean()
    )
    for letter, other in zip(
        "ab", ("AST − intermediate matching", "AST − weight perturbation"), strict=True
    ):
        yield part(
            f"6{letter}",
            f"relative distance to the expert after its whole way, {other} minus AST",
            (last[other] - last["AST"]).dropna(),
        )
    for letter, other in zip(
        "cd", ("AST − intermediate matching", "AST − weight perturbation"), strict=True
    ):
        yield part(
            f"6{letter}",
            f"test accuracy, AST minus {other}",
            paired(results.rows("ablation"), "AST", other),
        )


def seven(results: Results) -> Iterator[Part]:
    rows = results.rows("main")
    letters = iter(LETTERS)
    for cell, mine in rows.groupby("cell", sort=False):
        means = {m: accuracy(mine, m).mean() for m in PRIOR if (mine.method == m).any()}
        best = max(means, key=means.get)
        yield part(
            f"7{next(letters)}",
            f"test accuracy on {cell}, AST − {best}, the best rival",
            paired(mine, "AST", best),
        )
        if (mine.method == CONTROL).any():
            yield part(
                f"7{next(letters)}",
                f"test accuracy on {cell}, AST − {CONTROL}",
                paired(mine, "AST", CONTROL),
            )


LEDGER = """A positive effect speaks for the claim. An interval above zero: *supported*; below: *not supported*; across: *inconclusive at this scale*. A claim is as
good as its weakest part. n counts pairs of seeds: both sides of a difference share the seed of their distillation, or of their experts. Intervals are 95 %
percentile bootstraps over those pairs; how many seeds would settle an open part assumes that effect and spread stay as they are."""
CLAIMS = {1: one, 2: two, 3: three, 4: four, 5: five, 6: six, 7: seven}


def table(results: Results) -> pd.DataFrame:
    """claim, statement, effect, low, high, n, verdict, settled_by: each claim, then its parts."""
    lines = []
    for number, measure in CLAIMS.items():
        parts = list(measure(results))
        rank = {NOT: 0, OPEN: 1, SUPPORTED: 2}
        weakest = min(parts, key=lambda p: (rank[p.verdict], p.low))
        whole = Part(
            str(number),
            f"{STATEMENTS[number]} (decided by {weakest.claim})",
            weakest.effect,
            weakest.low,
            weakest.high,
            weakest.n,
        )
        lines += [
            {**vars(p), "verdict": p.verdict, "settled_by": p.settled_by} for p in (whole, *parts)
        ]
    return pd.DataFrame(
        lines, columns=["claim", "statement", "effect", "low", "high", "n", "verdict", "settled_by"]
    )


def ledger(results: Results) -> str:
    """The claims in Markdown for a reader who has nothing else: each with its verdict, what was measured, and what would settle what is open."""
    lines, held = (
        [f"# The seven claims under the profile `{results.folder.name}`", "", LEDGER],
        table(results),
    )
    for row in held.to_dict("records"):
        if row["claim"].isdigit():
            lines += [
                "",
                f"## {row['claim']}. {row['statement'].partition(' (decided')[0]}",
                "",
                f"**{row['verdict']}**, decided by {decider(row)}.",
                "",
            ]
            lines += [
                "| | what was measured | effect | 95 % interval | n | verdict | what would settle it |",
                "|---|---|---|---|---|---|---|",
            ]
        else:
            effect, low, high = said(row)
            between = f"{low} to {high}" if np.isfinite(row["low"]) else "none"
            lines.append(
                f"| {row['claim']} | {row['statement']} | {effect} | {between} | {row['n']} | {row['verdict']} | {row['settled_by']} |"
            )
    return "\n".join(lines) + "\n"


def decider(row: dict) -> str:
    """The part that a claim is as good as."""
    return row["statement"].rpartition("(decided by ")[2].rstrip(")")


def said(row: dict) -> list[str]:
    """Effect, low and high in words: accuracies in points, others as they are."""
    points = "accuracy" in row["statement"]
    values = [
        round(100 * row[name], 1) if points else round(row[name], 3)
        for name in ("effect", "low", "high")
    ]
    return [
        (f"{value + 0.0:+.1f} points" if points else f"{value + 0.0:+.3f}").replace("-", "−")
        for value in values
    ]  # + 0.0: no negative zero
