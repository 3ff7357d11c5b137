"""The tables, as functions of rows: `TABLES[name](results)`.

An accuracy is the mean ± std over sets, of each set the mean over its networks, with (sets x
networks) behind it; a cell that was not run is blank. Accuracies are in percent and their
differences in points, unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ddlib.paper import claims
from ddlib.paper import scores as robust
from ddlib.paper.claims import distinct, mean, part, std
from ddlib.paper.results import Results
from ddlib.runs.methods import CEILING, CORESETS

BENCHMARK = ("ipc", "width", "norm", "cell", "method")  # one line of it each
COMPARED = [
    *("data", "ipc", "method", "labels", "width", "norm", "protocol", "ours", "ours_std"),
    *("at_lr_a", "sets", "networks", "iterations", "rising", "published", "published_std"),
    *("difference", "verdict", "source"),
]
EFFORT = ["learned_lr", "iterations", "seconds", "megabytes"]
RISE, STILL = 0.005, "still rising"  # accuracy, of an outer loop that was cut short


def spread(rows: pd.DataFrame, column: str = "accuracy") -> str:
    """51.2 ± 0.6 (5 × 3): mean ± std over 5 sets, in percent, each judged by 3 networks."""
    known = rows.dropna(subset=column)
    if known.empty:
        return ""
    sets = known.groupby("distil_seed")[column].agg(mean)
    deviation = f" ± {100 * std(sets):.1f}" if len(sets) > 1 else ""
    networks = span(known.groupby("distil_seed").size())
    return f"{100 * mean(sets):.1f}{deviation} ({len(sets)} × {networks})"


def span(counts: Iterable[int]) -> str:
    """5, or 3–5 where not all have as many."""
    counts = sorted(set(counts))
    return f"{counts[0]}" if len(counts) == 1 else f"{counts[0]}–{counts[-1]}"


def span_of(names: Iterable[Any]) -> str:
    """The distinct values, for a table's cell."""
    return ", ".join(map(str, dict.fromkeys(names)))


def groups(rows: pd.DataFrame, *by: str) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in the order in which the rows name them."""
    return list(rows.groupby(list(by), sort=False, dropna=False))


def in_reading_order(rows: pd.DataFrame) -> list[str]:
    """Coresets, then the methods as the cell with most of them lists them, then the ceiling."""
    cells = [list(of_cell.method.unique()) for _, of_cell in rows.groupby("cell", sort=False)]
    longest_first = sorted(cells, key=len, reverse=True)
    listed = dict.fromkeys(method for methods in longest_first for method in methods)
    ends = {method: i - len(CORESETS) for i, method in enumerate(CORESETS)} | {CEILING: 1}
    return sorted(listed, key=lambda method: ends.get(method, 0))


def scored(runs: pd.DataFrame) -> dict[str, Any]:
    """What every table of accuracies says of some networks."""
    networks = distinct(runs)
    sets = networks.groupby("distil_seed").accuracy.agg(mean)
    return {
        "protocol": span_of(runs.get("evaluation", ["ours"])),
        "width": span_of(runs.get("width", [])),
        "mean": 100 * mean(sets),
        "std": 100 * std(sets),
        "std_over_networks": 100 * std(networks.accuracy),
        "sets": len(sets),
        "networks": len(networks),
        "accuracy": spread(networks),
        "accuracy_at_lr_a": spread(distinct(runs, "lr_a")),
        "lr_chosen": f"{networks.lr.min():.2g}–{networks.lr.max():.2g}",
        "lr_ties": int((networks.lr_ties > 1).groupby(networks.distil_seed).first().sum()),
        "lr_at_edge": int(networks.lr_at_edge.groupby(networks.distil_seed).first().sum()),
    }


def beside(rows: pd.DataFrame, method: str, base: str) -> dict[str, Any]:
    """The paired difference to another method and its interval; blank below two seeds."""
    effects = 100 * claims.paired(rows, method, base) if method != base else ()
    if len(effects) < 2:
        return dict.fromkeys(("difference", "low", "high", "pairs"))
    known = part("", effects)
    return {"difference": known.effect, "low": known.low, "high": known.high, "pairs": known.n}


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


def main(results: Results) -> pd.DataFrame:
    """Methods x cells: last-epoch test accuracy by the lr chosen on validation.

    Beside it: whether the outer loop was cut short (`rising`), lr = a where it was learned, of how
    many sets the choice was a tie or lay at an end of the grid, the flattering best-of columns, the
    paired difference to AST, what sets cost.
    """
    rows, lines, cut_short = results.rows("main"), [], rising(results)
    for (cell, data, method), runs in groups(rows, "cell", "data", "method"):
        line = {"cell": cell, "data": data, "ipc": runs.ipc.iloc[0], "method": method}
        line |= scored(runs) | {"rising": cut_short.get((cell, method), ("",))[0]}
        for best in ("best_on_validation", "best_on_test"):
            line[best] = spread(distinct(runs), best)
        lines.append(line | beside(rows[rows.cell == cell], method, "AST"))
    table = pd.DataFrame(lines)
    if not results.has_rows("costs"):
        return table
    spent = costs(results)
    return table.merge(spent[spent.study == "main"][["cell", "method", *EFFORT]], "left")


def costs(results: Results) -> pd.DataFrame:
    """What making sets took, mean over seeds, and most memory; of `noted` sets times are known."""
    by = results.rows("costs").groupby(["study", "cell", "method"], sort=False)
    columns = {
        "sets": ("lr", "size"),
        "noted": ("seconds", "count"),
        "iterations": ("iterations", "max"),
        "learned_lr": ("lr", mean),
        "seconds": ("seconds", mean),
        "seconds_std": ("seconds", std),
        "processor_seconds": ("processor_seconds", mean),
        "megabytes": ("megabytes", "max"),
        "experts_seconds": ("experts_seconds", mean),
    }
    return by.agg(**columns).reset_index()


def scores(results: Results) -> pd.DataFrame:
    """DD-Ranking's scores of the main cell's methods, as fractions: means over seeds, intervals."""
    rows, lines = results.rows("scores"), []
    for method, seeds in robust.by_seed(rows).groupby("method", sort=False):
        line = {"cell": rows.cell.iloc[0], "method": method, "seeds": len(seeds)}
        for name in ("hlr", "ior", "ior_plain", "taught", "ior_taught"):
            line[name] = mean(seeds[name])
        for name in ("lrs", "ars"):
            known = part("", seeds[name])
            line |= {name: known.effect, f"{name}_low": known.low, f"{name}_high": known.high}
        lines.append(line)
    return pd.DataFrame(lines)


def published_rows() -> pd.DataFrame:
    """Accuracies that others published, with the labels, the network's width and norm, the source.

    Percent of test images after training a ConvNet on IPC images per class; "full" has no IPC.
    `protocol` is that of the evaluation: DC's, DSA's, or the authors' own. No accuracy that the AST
    paper reports is known here.
    """
    return pd.read_csv(Path(__file__).parent / "published.csv").astype({"ipc": "Int64"})


def published(_: Results) -> pd.DataFrame:
    """Published accuracies, methods x cells, with their sources; none was measured here."""
    rows, lines = published_rows(), []
    stds = rows["std"].map(lambda std: "" if pd.isna(std) else f" ± {std:.1f}")
    rows["shown"] = rows.accuracy.map("{:.1f}".format) + stds
    rows["column"] = ("IPC " + rows.ipc.astype("string")).fillna("all data")
    for data, on_data in rows.groupby("dataset", sort=False):
        for (method, labels, source), cells in groups(on_data, "method", "labels", "source"):
            network = f"width {span_of(cells.width)}, norm {span_of(cells.norm)}"
            source += f" ({network})" * (network != "width 128, norm instance")
            line = {"data": data, "method": method, "labels": labels, "source": source}
            lines.append(line | dict(zip(cells.column, cells.shown, strict=True)))
        lines.append({"data": data, "method": "AST", "source": "not available"})
    wide = rows.sort_values("ipc", na_position="first").column.unique()
    return pd.DataFrame(lines, columns=["data", "method", "labels", *wide, "source"]).fillna("")


def summary(results: Results) -> pd.DataFrame:
    """The main table as a reader scans it: methods down, cells across."""
    table = main(results)
    ours = table.protocol == "ours"
    table["cell"] += (" by protocol " + table.protocol).where(~ours, "")
    wide = table.pivot(index="method", columns="cell", values="accuracy")
    return wide.loc[in_reading_order(table), table.cell.unique()].reset_index()


def benchmark(results: Results) -> pd.DataFrame:
    """Ours beside what others published on the same data at the same IPC, and a verdict per row.

    A verdict compares mean ± std over networks of either: they meet, or ours is above or below. It
    is given where labels, width and norm are the same. `at_lr_a` is ours at the learned lr, as
    MTT's code judges its sets. Empty without such data.
    """
    rows, lines, cut_short = results.rows("main"), [], rising(results)
    if results.has_rows("cross_architecture"):
        rows = pd.concat([rows, results.rows("cross_architecture")])
    rows = rows[rows.architecture == "convnet"]
    theirs = published_rows().rename(columns={"accuracy": "published", "std": "published_std"})
    theirs = theirs.rename(columns={"dataset": "data"}).assign(verdict="not run here")
    names = theirs.method.str.replace("_", "-").replace("full", CEILING)
    data = rows.data.str.split(",").str[0].str.replace("_", "")
    for dataset, known in theirs.groupby("data", sort=False):
        here = rows[data == dataset.lower()]
        for (ipc, width, norm, cell, method), runs in groups(here, *BENCHMARK):
            at = known.ipc.isna() if pd.isna(ipc) else known.ipc == ipc
            score = scored(runs)
            line = {"data": dataset, "ipc": ipc, "method": method, "labels": "hard"}
            line |= {"width": width, "norm": norm, "protocol": score["protocol"]}
            line |= {"ours": score["mean"], "ours_std": score["std_over_networks"]}
            line["at_lr_a"] = 100 * mean(distinct(runs, "lr_a").accuracy)
            line |= {"sets": score["sets"], "networks": score["networks"]}
            line["rising"], line["iterations"] = cut_short.get((cell, method), ("", None))
            same = known[(names[known.index] == method) & at.fillna(False)]
            lines.append(line | compared(line, same))
        ran = {*zip(here.method, here.ipc, strict=True)}
        others = known[known.ipc.isin(here.ipc) | (known.ipc.isna() & bool(len(here)))]
        pairs = zip(names[others.index], others.ipc, strict=True)
        lines += others[[pair not in ran for pair in pairs]].to_dict("records")
    table = pd.DataFrame(lines, columns=COMPARED).drop_duplicates()  # cells share a ceiling
    return table.sort_values(["data", "ipc"], kind="stable", ignore_index=True)


def compared(ours: dict[str, Any], same: pd.DataFrame) -> dict[str, Any]:
    """A published number beside ours, their difference in points, and the verdict."""
    if same.empty:
        return {"verdict": "no published number"}
    one = same.iloc[0][
        ["published", "published_std", "labels", "width", "norm", "source"]
    ].to_dict()
    gap, stds = ours["ours"] - one["published"], pd.Series([ours["ours_std"], one["published_std"]])
    word = "ours is above" if gap > 0 else "ours is below"
    if abs(gap) <= stds.sum():
        word = "they meet"
    alike = all(ours[name] == one[name] for name in ("labels", "width", "norm"))
    word = word if alike else "another network or other labels"
    return one | ours | {"difference": gap, "verdict": word}


def smoothness(results: Results) -> pd.DataFrame:
    """Recipes: every smoothness measure beside expert accuracy (a fraction), over expert seeds."""
    rows, lines = results.rows("smoothness"), []
    measures = rows.columns.drop(["data", "recipe", "expert_seed", "settings_key"])
    for (data, recipe), experts in groups(rows, "data", "recipe"):
        line = {"data": data, "recipe": recipe, "n": len(experts)}
        for measure in measures:
            line |= {measure: mean(experts[measure]), f"{measure}_std": std(experts[measure])}
        lines.append(line)
    return pd.DataFrame(lines)


def ablation(results: Results) -> pd.DataFrame:
    """Group by group, what differs from its base in one thing, with the paired difference to it."""
    rows, lines = results.rows("ablation"), []
    for (cell, group, base, method), runs in groups(rows, "cell", "group", "base", "method"):
        line = {"cell": cell, "group": group, "base": base, "method": method} | scored(runs)
        lines.append(line | beside(rows[rows.cell == cell], method, base))
    return pd.DataFrame(lines)


def cross_architecture(results: Results) -> pd.DataFrame:
    """Sets made with the first network, evaluated with others."""
    rows, by = results.rows("cross_architecture"), ["cell", "method", "architecture"]
    lines = [dict(zip(by, names, strict=True)) | scored(runs) for names, runs in groups(rows, *by)]
    return pd.DataFrame(lines)[[*by, "mean", "std", "sets", "networks", "accuracy"]]


def tuning(results: Results) -> pd.DataFrame:
    """What was tried for which method, and its accuracy on the validation split.

    A star marks the best of a method's settings, or the best method; every one of a tie has one.
    `edge` names the numbers of a best setting that are the smallest or largest tried. Empty if
    nothing was tuned.
    """
    by = ["cell", "choosing", "method", "iterations"]
    columns = [*by, "tried", "validation_accuracy", "sets", "networks", "best", "edge"]
    if not results.has_rows("tuning"):
        return pd.DataFrame(columns=columns)
    lines = [
        (*names, tried, 100 * mean(n.validation_accuracy), n.distil_seed.nunique(), len(n), "", "")
        for names, runs in groups(distinct(results.rows("tuning")), *by)
        for (tried,), n in groups(runs, "tried")
    ]
    table = pd.DataFrame(lines, columns=columns)
    rivals = table.method.where(table.choosing == "settings", "")
    for _, tried in table.groupby(["cell", "choosing", rivals], sort=False):
        best = tried[tried.validation_accuracy == tried.validation_accuracy.max()]
        table.loc[best.index, "best"] = "*"
        if tried.choosing.iloc[0] == "settings":
            table.loc[best.index, "edge"] = [edges(words, [*tried.tried]) for words in best.tried]
    return table


def edges(best: str, every: list[str]) -> str:
    """The numbers of a setting, written "a = 1, b = 2", that no other setting is beyond."""
    named = [[item.split(" = ") for item in words.split(", ") if " = " in item] for words in every]
    values = pd.DataFrame(map(dict, named)).apply(pd.to_numeric, errors="coerce")
    ours = values.iloc[every.index(best)]
    at_end = (ours == values.min()) | (ours == values.max())
    return ", ".join(values.columns[at_end & (values.nunique() > 1)])


TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    table.__name__: table
    for table in (
        *(main, summary, benchmark, smoothness, ablation),
        *(cross_architecture, tuning, tracking, scores, costs, published),
    )
} | {"claims": claims.table}
