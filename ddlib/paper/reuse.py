"""What a set is good for beside training one network, from rows: as a memory against forgetting, and to choose an architecture by.

R[t, j] is the accuracy on the classes of task j after task t, both 0 ... T - 1 (study `continual`). Of an architecture one sees the validation accuracy of
networks trained on a set, and wants to know their test accuracy once they are trained on all real images (study `architectures`). Intervals are 95 % percentile
bootstraps: of memories over pairs of seeds, both sides of a difference with the same network, order and augmentation; of rank correlations (Spearman's) over
the architectures that were tried.
"""

from __future__ import annotations

import numpy as np
import pandas as pd

from ddlib.paper import claims
from ddlib.paper.results import Results
from ddlib.paper.teaching import correlations, interval

RANDOM, CEILING = "random", "full data"
WORDS = {
    claims.SUPPORTED: "better than random real images",
    claims.NOT: "worse than random real images",
    claims.OPEN: "no difference shown",
}


def remembered(rows: pd.DataFrame) -> pd.DataFrame:
    """By (method, seed), fractions: `accuracy`, the mean over all j of R[T - 1, j]; `forgetting`, that over j < T - 1 of max_t R[t, j] - R[T - 1, j], t < T - 1.

    The latter as in arXiv 1801.10112; of one task nothing can be forgotten: NaN.
    """
    last, by = rows.after.max(), ["method", "seed"]
    end = rows[rows.after == last].set_index([*by, "on"]).accuracy
    best = rows[rows.after < last].groupby([*by, "on"], sort=False).accuracy.max()
    kept = end.groupby(by, sort=False).mean()
    lost = (best - end.reindex(best.index)).groupby(by, sort=False).mean()
    return pd.DataFrame({"accuracy": kept, "forgetting": lost.reindex(kept.index)})


def memories(results: Results) -> pd.DataFrame:
    """A line a memory: accuracy over all classes at the end and forgetting, in percent, mean and std over seeds; what each is worth beside random real images.

    The paired difference in points with its interval, signed so that positive is better, and what it says in words.
    """
    rows, lines = results.rows("continual"), []
    held = 100 * remembered(rows)
    for method in rows.method.unique():
        mine, ipc = held.loc[method], rows[rows.method == method].ipc.iloc[0]
        line = {"cell": rows.cell.iloc[0], "memory": method, "ipc": ipc, "seeds": len(mine)}
        for name, sign in (("accuracy", 1), ("forgetting", -1)):
            line |= {name: mine[name].mean(), f"{name}_std": mine[name].std(ddof=1)}
            part = claims.part("", "", (sign * (mine[name] - held.loc[RANDOM][name])).dropna())
            said = {
                "difference": part.effect,
                "low": part.low,
                "high": part.high,
                "verdict": WORDS[part.verdict],
            }
            line |= {
                f"{name}_{column}": None if method == RANDOM else value
                for column, value in said.items()
            }
        lines.append(line)
    return pd.DataFrame(lines)


def points(results: Results) -> pd.DataFrame:
    """By network, fractions: `truth`, its mean test accuracy once trained on all real images; a column a method, its mean validation accuracy on its sets."""
    rows = results.rows("architectures")
    rows = rows[rows.protocol == "lr_chosen"]
    by = rows.groupby(["network", "method"], sort=False)
    seen = by.validation_accuracy.mean().unstack("method")[list(rows.method.unique())]
    return seen.assign(truth=by.accuracy.mean().unstack("method")[CEILING])


def choices(results: Results) -> pd.DataFrame:
    """A line a method: the rank correlation of what one sees with the truth, its interval, and the architecture that one would take.

    Of that the true accuracy in percent, and what the best would add in points; and what choosing cost, as `seconds` has it.
    """
    held, lines, cost = points(results), [], seconds(results)
    truth = held.truth.to_numpy()
    for method in held.columns.drop("truth"):
        seen = held[method].to_numpy()
        low, high = interval(seen, truth)
        taken = held[method].idxmax()
        line = {
            "method": method,
            "networks": len(held),
            "correlation": float(correlations(seen, truth)),
            "low": low,
            "high": high,
            "taken": taken,
        }
        line |= {
            "true_accuracy": 100 * held.truth[taken],
            "missed": 100 * (truth.max() - held.truth[taken]),
        }
        lines.append(
            line | cost.get(method, {"training_seconds": np.nan, "making_seconds": np.nan})
        )
    return pd.DataFrame(lines)


def seconds(results: Results) -> dict[str, dict[str, float]]:
    """By method, of one core: to train all networks on one set, and to make that set with the experts that it follows; NaN where a part of it was not noted.

    Real images cost nothing to make.
    """
    if not results.has_rows("choices"):
        return {}
    rows, found = results.rows("choices"), {}
    for method, mine in rows.groupby("method", sort=False):
        made = mine.network == "the set itself"
        training = (
            mine[~made]
            .groupby("distil_seed")
            .processor_seconds.sum(min_count=mine[~made].network.nunique())
            .mean()
        )
        making = (
            (mine[made].processor_seconds + mine[made].experts_seconds).mean()
            if made.any()
            else 0.0
        )
        found[method] = {"training_seconds": training, "making_seconds": making}
    return found


def better(results: Results, one: str, other: str = RANDOM) -> claims.Part:
    """How much better one method's sets rank the architectures than another's: the difference of their rank correlations, on the same resampled networks."""
    held = points(results)
    seen, against, truth = (held[name].to_numpy() for name in (one, other, "truth"))
    drawn = np.random.default_rng(0).integers(len(held), size=(claims.RESAMPLES, len(held)))
    found = correlations(seen[drawn], truth[drawn]) - correlations(against[drawn], truth[drawn])
    found = found[~np.isnan(found)]
    low, high = np.quantile(found, [0.025, 0.975]) if len(found) else (-np.inf, np.inf)
    effect = correlations(seen, truth) - correlations(against, truth)
    return claims.Part(
        "", f"rank correlation, {one} − {other}", float(effect), float(low), float(high), len(held)
    )
