"""The seven claims of the paper and a control of ours: effect, interval, verdict, from rows.

LEDGER says how they are read. Student's t over three to five seeds covers the truth as often as it
says, and the level 1 - 5 %/m of m parts is Bonferroni's: else m null parts would refute a claim m
times too often. A claim's statement is the docstring of what measures its parts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, stdev
from string import ascii_lowercase

import numpy as np
import pandas as pd
from scipy.special import stdtrit  # quantiles of Student's t

from ddlib.paper.results import NoRows, Results
from ddlib.paper.style import named

LEDGER = Path(__file__).with_suffix(".md")  # how claims are read
LEVEL = 0.95
MANY = 200  # seeds, above which an effect is too small to be worth them
MARGIN = 0.01  # accuracy that counts as "little cost"
ROUGH = 2.0  # times SGD's step: momentum's, above which experts are rough enough to be smoothed
OF_SMOOTHNESS = {1, 2, 3, 8}  # claims about an effect that needs rough experts
SUPPORTED, NOT, OPEN = "supported", "not supported", "inconclusive at this scale"
UNTESTED = "not tested"
CORESETS_AND_RIVALS = (
    *("random", "herding", "k-center", "k-means", "DC", "DSA", "DM"),
    *("MTT", "MTT, strong experts", "MCT", "FTD", "TESLA", "DATM"),
)
CONTROL = "MTT + inner momentum"
UNBALANCED = " − balanced loss"  # ends the name of a method without it
NAMES = (  # of a network: seeds that made the same set are one
    *("study", "cell", "group", "method", "set", "architecture", "network", "net_seed", "tried"),
    *("protocol", "augmented", "labels"),
)


@dataclass(frozen=True)
class Part:
    """One measured part of a claim: an effect, its 95 % interval, and the n seeds behind it."""

    claim: str  # 3b, or 3 for the whole claim
    statement: str
    effect: float
    low: float
    high: float
    n: int
    decided: str = ""  # of a whole claim: its verdict
    spare: int = 0  # degrees of freedom that the effects have less than seeds that are independent

    @property
    def verdict(self) -> str:
        """Whether the interval lies above zero, below or across."""
        if self.decided or not self.n:
            return self.decided or UNTESTED
        return SUPPORTED if self.low > 0 else NOT if self.high < 0 else OPEN

    @property
    def settled_by(self) -> str:
        """What would settle an open part, if effect and spread stay as they are."""
        if self.verdict == UNTESTED:
            return "experts that move more abruptly" if self.n else "rows of what it compares"
        if self.verdict != OPEN:
            return ""
        if not np.isfinite(self.low):
            return "more seeds: so few have no interval"
        if self.effect == 0:
            return "another measure: no effect was seen"
        reach = self.effect - self.low if self.effect > 0 else self.high - self.effect
        # an interval narrows with the square root of n
        seeds = max(math.ceil(self.n * (reach / self.effect) ** 2), self.n + 1)
        if seeds <= MANY:
            return f"about {seeds} seeds"
        return f"no number of seeds in reach (above {MANY}): as good as no effect"

    def at(self, level: float) -> Part:
        """The same with the interval of another level."""
        freedom = self.n - 1 - self.spare
        if freedom < 1 or not np.isfinite(self.low):
            return self
        wider = stdtrit(freedom, (1 + level) / 2) / stdtrit(freedom, (1 + LEVEL) / 2)
        low, high = (self.effect + wider * (end - self.effect) for end in (self.low, self.high))
        return replace(self, low=low, high=high)


def mean(values: Iterable[float]) -> float:
    """The mean of what is not NaN, rounded once: the same bits on every processor."""
    known = [float(value) for value in values if value == value]
    return fmean(known) if known else math.nan


def std(values: Iterable[float]) -> float:
    """The standard deviation (n - 1) of what is not NaN, as `mean`; NaN of fewer than two."""
    known = [float(value) for value in values if value == value]
    return stdev(known) if len(known) > 1 else math.nan


def part(statement: str, effects: Iterable[float], spare: int = 0) -> Part:
    """A part whose effect is the mean over seeds.

    One seed has no interval, and neither have several of the same effect to the last digit: that
    is chance, and no spread.
    """
    known = [float(value) for value in effects if value == value]
    n, half, spread = len(known), math.inf, std(known)
    if n - 1 - spare >= 1 and spread > 0:
        half = float(stdtrit(n - 1 - spare, (1 + LEVEL) / 2)) * spread / math.sqrt(n)
    centre = mean(known)
    return Part("", statement, centre, centre - half, centre + half, n, spare=spare)


def distinct(rows: pd.DataFrame, protocol: str = "lr_chosen") -> pd.DataFrame:
    """The networks of a protocol, those on sets that are the same image for image counted once."""
    chosen = rows[rows.protocol == protocol]
    return chosen.drop_duplicates([n for n in NAMES if n in chosen]) if "set" in chosen else chosen


def accuracy(rows: pd.DataFrame, method: str) -> pd.Series:
    """Mean accuracy over networks for each (cell, seed), lr chosen on validation images."""
    chosen = distinct(rows[rows.method == method])
    return chosen.groupby(["cell", "distil_seed"]).accuracy.agg(mean)


def paired(rows: pd.DataFrame, better: str, worse: str) -> pd.Series:
    """Difference in accuracy per seed, averaged over the cells that have every seed."""
    return over_cells((accuracy(rows, better) - accuracy(rows, worse)).dropna())


def over_cells(values: pd.Series) -> pd.Series:
    """The mean of each seed over the cells that have every seed."""
    wide = values.unstack("cell").dropna(axis=1)
    return pd.Series([mean(line) for line in wide.to_numpy()], wide.index, dtype=float)


def difference(of: pd.Series, more: str, less: str) -> pd.Series:
    """What two groups, by the first level of an index, differ by; empty where one is not there."""
    wide = of.unstack(0).reindex(columns=[more, less])
    return (wide[more] - wide[less]).dropna()


def experts(rows: pd.DataFrame, column: str, more: str, less: str) -> pd.Series:
    """Difference between two recipes per expert seed (same initialisation, same batches)."""
    first = rows[rows.data == rows.data.iloc[0]]
    return difference(first.set_index(["recipe", "expert_seed"])[column], more, less)


def first_cell(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of the first cell: a method on two cells is two measurements."""
    return rows[rows.cell == rows.cell.iloc[0]] if len(rows) else rows


def unevenness(results: Results, cell: str, methods: Sequence[str]) -> pd.Series:
    """Std over mean of the matching loss over start epochs, in the second half of distillation."""
    rows = results.rows("curves")
    rows = rows[(rows.study == "ablation") & (rows.cell == cell) & rows.method.isin(methods)]
    late = rows[rows.iteration > rows.iteration.max() // 2]
    by_start = late.groupby(["method", "distil_seed", "start"]).loss.agg(mean)
    by_set = by_start.groupby(["method", "distil_seed"])
    return by_set.agg(std) / by_set.agg(mean)


def above(better: str, worse: str) -> str:
    """Two methods or recipes in words, for a part that is positive where the first has more."""
    first, other = (
        named(name).replace(", ", " with ").replace(" − ", " without ") for name in (better, worse)
    )
    return f"{first} above {other}"


def strong_experts(results: Results) -> Iterator[Part]:
    """Stronger experts classify better but move less smoothly, and unsmoothed they distil worse."""
    smooth = results.rows("smoothness")
    columns = {"test_accuracy": "expert test accuracy", "step": "mean step length of experts"}
    for column, words in columns.items():
        for strong in ("momentum", "adam"):
            statement = f"{words}: {above(strong, 'sgd')}"
            yield part(statement, experts(smooth, column, strong, "sgd"))
    sets = first_cell(results.rows("ablation" if results.has_rows("ablation") else "main"))
    pair = ("AST, SGD experts", "AST, unsmoothed experts")
    yield part(f"test accuracy: {above(*pair)}", paired(sets, *pair))


def smoothing(results: Results) -> Iterator[Part]:
    """Clipping loss and gradient penalty smooth the experts at little cost in quality."""
    smooth = results.rows("smoothness")
    for recipe in ("momentum_ramp", "momentum_penalty", "ast"):
        shorter = experts(smooth, "step", "momentum", recipe)
        yield part(f"mean step length: {above('momentum', recipe)}", shorter)
    longest = experts(smooth, "longest_step", "momentum", "ast")
    yield part(f"longest step: {above('momentum', 'ast')}", longest)
    kept = experts(smooth, "test_accuracy", "ast", "momentum") + MARGIN
    statement = f"expert test accuracy: {above('ast', 'momentum')}, plus the margin of {MARGIN:g}"
    yield part(statement, kept)


def smooth_experts(results: Results) -> Iterator[Part]:
    """Smooth strong experts give better sets than SGD experts, unsmoothed strong ones and merely
    slower ones."""
    rows = first_cell(results.rows("ablation"))
    for other in ("AST, SGD experts", "AST, unsmoothed experts", "AST, lr-matched experts"):
        yield part(f"test accuracy: {above('AST', other)}", paired(rows, "AST", other))


def representative(results: Results) -> Iterator[Part]:
    """Representative initialisation beats random real images and varies less over seeds."""
    main, ablation = results.rows("main"), first_cell(results.rows("ablation"))
    better = paired(main, "k-means", "random")
    yield part("test accuracy of coresets: k-means above random", better)
    better = paired(ablation, "AST", "AST − representative start")
    yield part("test accuracy: AST above AST from random real images", better)
    narrower = (strays(accuracy(main, "random")) - strays(accuracy(main, "k-means"))).dropna()
    statement = "mean distance of coreset accuracy from its median over seeds: random above k-means"
    # distances from a median come in pairs: one degree of freedom less
    yield part(statement, over_cells(narrower), spare=1)


def strays(values: pd.Series) -> pd.Series:
    """How far each seed lies from the median of its cell: what Brown and Forsythe's test averages.

    Taken per seed it has an interval, which the difference of two standard deviations has not.
    """
    return (values - values.groupby("cell").transform("median")).abs()


def balanced_loss(results: Results) -> Iterator[Part]:
    """The balanced inner-loop loss reduces sensitivity to the start epoch."""
    every = results.rows("ablation")
    for i, (cell, rows) in enumerate(every.groupby("cell", sort=False)):
        place = f" on {named(cell)}" if i else ""
        for method in rows.method.unique():
            without = method + UNBALANCED
            if (rows.method == without).any():
                uneven = unevenness(results, cell, (method, without))
                words = "relative std of the matching loss over start epochs"
                statement = f"{words}: {above(without, method)}{place}"
                yield part(statement, difference(uneven, without, method))
                statement = f"test accuracy: {above(method, without)}{place}"
                yield part(statement, paired(rows, method, without))


def accumulated_error(results: Results) -> Iterator[Part]:
    """Intermediate matching and weight perturbation reduce the accumulated error."""
    rows, ablation = results.rows("following"), first_cell(results.rows("ablation"))
    last = rows[rows.epoch == rows.groupby("method").epoch.transform("max")]
    error = last.groupby(["method", "distil_seed"]).error.agg(mean)
    others = ("AST − intermediate matching", "AST − weight perturbation")
    for other in others:
        words = "relative distance to the expert after its whole way"
        statement = f"{words}: {above(other, 'AST')}"
        yield part(statement, difference(error, other, "AST"))
    for other in others:
        yield part(f"test accuracy: {above('AST', other)}", paired(ablation, "AST", other))


def whole(results: Results) -> Iterator[Part]:
    """The whole beats prior trajectory matching and coresets at every IPC tried."""
    for cell, rows in results.rows("main").groupby("cell", sort=False):
        rivals = [method for method in CORESETS_AND_RIVALS if (rows.method == method).any()]
        words = f"test accuracy on {named(cell)}: "
        if rivals:
            best = max(rivals, key=lambda method: mean(accuracy(rows, method)))
            statement = f"{words}{above('AST', best)}, the best rival"
            yield part(statement, paired(rows, "AST", best))
        if (rows.method == CONTROL).any():
            yield part(f"{words}{above('AST', CONTROL)}", paired(rows, "AST", CONTROL))


def straight(results: Results) -> Iterator[Part]:
    """Smoothing rough experts helps more than making them straight, a control of ours."""
    rows, other = first_cell(results.rows("ablation")), "AST, straight rough experts"
    yield part(f"test accuracy: {above('AST', other)}", paired(rows, "AST", other))


MEASURES: list[Callable[[Results], Iterable[Part]]] = [
    *(strong_experts, smoothing, smooth_experts, representative),
    *(balanced_loss, accumulated_error, whole, straight),
]
CLAIMS = {  # number -> its statement, and what measures its parts, lettered in their order
    number: (" ".join(measure.__doc__.split()).rstrip("."), measure)
    for number, measure in enumerate(MEASURES, 1)
}


def decide(parts: Sequence[Part]) -> Part:
    """The part that decides a claim, with the claim's verdict."""
    tested = [part for part in parts if part.n]
    level = 1 - (1 - LEVEL) / max(len(tested), 1)
    refuting = [part for part in tested if part.at(level).high < 0]
    unsupported = [part for part in parts if part.verdict != SUPPORTED]
    if refuting:
        return replace(min(refuting, key=lambda part: part.at(level).high), decided=NOT)
    if not tested:
        return replace(parts[0], decided=UNTESTED)
    if unsupported:
        return replace(min(unsupported, key=lambda part: (bool(part.n), part.low)), decided=OPEN)
    return replace(min(parts, key=lambda part: part.low), decided=SUPPORTED)


def roughness(results: Results) -> float:
    """The experts' mean step with momentum over that with SGD; NaN where either is not there."""
    if not results.has_rows("smoothness"):
        return math.nan
    rows = results.rows("smoothness")
    steps = rows[rows.data == rows.data.iloc[0]].groupby("recipe").step.agg(mean)
    return float(steps.get("momentum", math.nan) / steps.get("sgd", math.nan))


def measured(results: Results) -> Iterator[Part]:
    """Each claim, with the numbers of the part that decides it, and then its parts."""
    ratio = roughness(results)
    for number, (statement, measure) in CLAIMS.items():
        try:
            found = list(measure(results))
        except NoRows as lacking:
            words = re.sub(r"/\S*/(?=rows/)", "", str(lacking).split(",")[0])  # no machine's path
            found = [part(f"not tested: {words}", ())]
        found = found or [part("no two methods of the profile differ in this", ())]
        parts = [
            replace(part, claim=f"{number}{ascii_lowercase[i : i + 1] or f'z{i}'}")
            for i, part in enumerate(found)
        ]
        deciding = decide(parts)
        decided = f"{statement} (decided by {deciding.claim})"
        if deciding.n and number in OF_SMOOTHNESS and ratio <= ROUGH:
            deciding = replace(deciding, decided=UNTESTED)
            decided = f"{statement} (decided by the precondition: momentum's steps are "
            decided += f"{ratio:.2f} times as long as SGD's, and more than {ROUGH:g} is asked)"
        yield replace(deciding, claim=f"{number}", statement=decided)
        yield from parts


def table(results: Results) -> pd.DataFrame:
    """claim, statement, effect, low, high, n, verdict, settled_by: each claim, then its parts."""
    return pd.DataFrame(
        vars(part) | {"verdict": part.verdict, "settled_by": part.settled_by}
        for part in measured(results)
    ).drop(columns=["decided", "spare"])


CLAIM = (
    "\n## {part.claim}. {statement}\n\n**{part.verdict}**, decided by {decider}.\n\n"
    "| | what was measured | effect | 95 % interval | n | verdict | what would settle it |\n"
    "|---|---|---|---|---|---|---|\n"
)


def ledger(results: Results) -> str:
    """The claims in Markdown: each with its verdict, what was measured, what would settle it."""
    text = LEDGER.read_text("utf-8").format(results.folder.name)
    for part in measured(results):
        if part.claim.isdigit():
            statement, decider = part.statement.rstrip(")").split(" (decided by ")
            text += CLAIM.format(part=part, statement=statement, decider=decider)
        else:
            effect, low, high = (
                in_words(part.statement, x) for x in (part.effect, part.low, part.high)
            )
            interval = f"{low} to {high}" if np.isfinite(part.low) else "none"
            cells = (part.claim, part.statement, effect, interval, part.n, part.verdict)
            text += f"| {' | '.join(map(str, (*cells, part.settled_by)))} |\n"
    return text


def in_words(statement: str, value: float) -> str:
    """A value of a part: accuracies in points, others as they are; never a zero that is none."""
    if value != value:
        return "none"
    points = "accuracy" in statement
    value, digits = (100 * value + 0.0, 1) if points else (value + 0.0, 3)
    text = f"{value:+.{digits}f}" if round(value, digits) or not value else f"{value:+.1g}"
    return f"{text} points".replace("-", "−") if points else text.replace("-", "−")
