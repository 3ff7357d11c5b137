"""The tables, as functions of rows: `TABLES[name](results)`.

Mean ± std over networks and seeds, with the number behind each; a cell that was not run is blank.
Accuracies are in percent and their differences in points, unless a docstring says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pandas as pd

from ddlib.paper import claims
from ddlib.paper import scores as robust
from ddlib.paper.claims import mean, std
from ddlib.paper.results import Results

INTERACTIONS = {  # both, one alone, the other alone, neither
    "ramp and penalty": ("AST", "AST − penalty", "AST − ramp", "AST, unsmoothed experts"),
    "warm-up and penalty": (
        "AST, lr warm-up for the ramp",
        "AST, momentum_warmup experts",
        "AST − ramp",
        "AST, unsmoothed experts",
    ),
    "balanced loss and inner momentum": (
        "AST",
        "AST − inner momentum",
        "AST − balanced loss",
        "AST − balanced loss, inner momentum",
    ),
}
EFFORT = ["learned_lr", "iterations", "seconds", "megabytes"]
INTERACTS = {
    claims.SUPPORTED: "they help each other",
    claims.NOT: "they stand in each other's way",
    claims.OPEN: claims.OPEN,
}


def spread(values: Iterable[float]) -> str:
    """51.2 ± 0.6 (5): mean ± std of fractions, in percent, with n."""
    known = [value for value in values if value == value]
    if not known:
        return ""
    deviation = f" ± {100 * std(known):.1f}" if len(known) > 1 else ""
    return f"{100 * mean(known):.1f}{deviation} ({len(known)})"


def groups(rows: pd.DataFrame, *by: str) -> list[tuple[tuple, pd.DataFrame]]:
    """Groups in the order in which the rows name them."""
    return list(rows.groupby(list(by), sort=False, dropna=False))


def in_reading_order(rows: pd.DataFrame) -> list[str]:
    """The methods as the cell with most of them lists them, then those that it lacks."""
    cells = [list(of_cell.method.unique()) for _, of_cell in rows.groupby("cell", sort=False)]
    longest_first = sorted(cells, key=len, reverse=True)
    return list(dict.fromkeys(method for methods in longest_first for method in methods))


def chosen(rows: pd.DataFrame, protocol: str = "lr_chosen") -> pd.DataFrame:
    """The networks whose lr was selected on the validation set, or those of another protocol."""
    return rows[rows.protocol == protocol]


def scored(runs: pd.DataFrame) -> dict[str, Any]:
    """What every table of accuracies says of some networks."""
    networks = chosen(runs)
    seeds = networks.groupby("distil_seed").accuracy.agg(mean)
    return {
        "mean": 100 * mean(networks.accuracy),
        "std": 100 * std(networks.accuracy),
        "std_over_seeds": 100 * std(seeds),
        "seeds": len(seeds),
        "networks": len(networks),
        "accuracy": spread(networks.accuracy),
        "accuracy_at_lr_a": spread(chosen(runs, "lr_a").accuracy),
    }


def beside(rows: pd.DataFrame, method: str, base: str) -> dict[str, Any]:
    """The paired difference to another method and its interval; blank if no seed is shared."""
    effects = 100 * claims.paired(rows, method, base) if method != base else ()
    if not len(effects):
        return dict.fromkeys(("difference", "low", "high", "pairs"))
    part = claims.part("", effects)
    return {"difference": part.effect, "low": part.low, "high": part.high, "pairs": part.n}


def main(results: Results) -> pd.DataFrame:
    """Methods x cells: last-epoch test accuracy by the lr chosen on validation.

    Beside it: lr = a, the flattering best-of columns, the paired difference to AST, what sets cost.
    """
    rows, lines, efforts = results.rows("main"), [], effort(results)
    for (cell, data, method), runs in groups(rows, "cell", "data", "method"):
        line = {"cell": cell, "data": data, "ipc": runs.ipc.iloc[0], "method": method}
        line |= scored(runs)
        for best in ("best_on_validation", "best_on_test"):
            line[best] = spread(chosen(runs)[best])
        line |= beside(rows[rows.cell == cell], method, "AST") | efforts.get((cell, method), {})
        lines.append(line)
    return pd.DataFrame(lines)


def effort(results: Results) -> dict[tuple[str, str], dict[str, float]]:
    """What sets of the main study took, by cell and method; nothing where no costs are kept."""
    table = costs(results) if results.has_rows("costs") else pd.DataFrame({"study": []})
    sets = table[table.study == "main"]
    return sets.set_index(["cell", "method"])[EFFORT].to_dict("index") if len(sets) else {}


def costs(results: Results) -> pd.DataFrame:
    """What making sets took, mean over seeds, and most memory; of `noted` sets times are known."""
    return pd.DataFrame(
        {
            "study": study,
            "cell": cell,
            "method": method,
            "sets": len(sets),
            "noted": int(sets.seconds.notna().sum()),
            "iterations": sets.iterations.max(),
            "learned_lr": mean(sets.lr),
            "seconds": mean(sets.seconds),
            "seconds_std": std(sets.seconds),
            "processor_seconds": mean(sets.processor_seconds),
            "megabytes": sets.megabytes.max(),
            "experts_seconds": mean(sets.experts_seconds),
        }
        for (study, cell, method), sets in groups(results.rows("costs"), "study", "cell", "method")
    )


def scores(results: Results) -> pd.DataFrame:
    """DD-Ranking's scores of the main cell's methods, as fractions: means over seeds, intervals."""
    rows, lines = results.rows("scores"), []
    for (method,), seeds in groups(robust.by_seed(rows).reset_index(), "method"):
        line = {"cell": rows.cell.iloc[0], "method": method, "seeds": len(seeds)}
        line |= {name: mean(seeds[name]) for name in ("hlr", "ior", "ior_plain")}
        for name in ("lrs", "ars"):
            part = claims.part("", seeds[name])
            line |= {name: part.effect, f"{name}_low": part.low, f"{name}_high": part.high}
        lines.append(line)
    return pd.DataFrame(lines)


def published_rows() -> pd.DataFrame:
    """Accuracies that others published: method, labels, dataset, ipc, accuracy, std, source.

    Percent of test images after training a ConvNet on IPC images per class; "full" has no IPC.
    No accuracy that the AST paper reports is known here.
    """
    return pd.read_csv(Path(__file__).parent / "published.csv").astype({"ipc": "Int64"})


def published(_: Results) -> pd.DataFrame:
    """Published accuracies, methods x cells, with their sources; none was measured here."""
    rows, lines = published_rows(), []
    wide = [f"IPC {ipc}" for ipc in sorted(rows.ipc.dropna().unique())]
    for (data,), on_data in groups(rows, "dataset"):
        for (method, labels, source), cells in groups(on_data, "method", "labels", "source"):
            line = {"data": data, "method": method, "labels": labels}
            line |= dict.fromkeys(["all data", *wide], "")
            for row in cells.itertuples():
                deviation = "" if pd.isna(row.std) else f" ± {row.std:.1f}"
                column = "all data" if pd.isna(row.ipc) else f"IPC {row.ipc}"
                line[column] = f"{row.accuracy:.1f}{deviation}"
            lines.append(line | {"source": source})
        lines.append({"data": data, "method": "AST", "source": "not available"})
    return pd.DataFrame(lines).fillna("")


def summary(results: Results) -> pd.DataFrame:
    """The main table as a reader scans it: methods down, cells across."""
    table = main(results)
    wide = table.pivot(index="method", columns="cell", values="accuracy")
    return wide.loc[in_reading_order(table), table.cell.unique()].reset_index()


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
    return pd.DataFrame(lines).drop(columns=["std", "std_over_seeds"])


def interactions(results: Results) -> pd.DataFrame:
    """Where two ingredients overlap: what one adds beside the other, less what it adds alone."""
    rows, lines = results.rows("ablation"), []
    for words, methods in INTERACTIONS.items():
        both, one, other, neither = (100 * claims.accuracy(rows, method) for method in methods)
        part = claims.part("", (both - one - other + neither).dropna())
        if part.n:
            verdict = INTERACTS[part.verdict]
            lines.append((words, part.effect, part.low, part.high, part.n, verdict))
    columns = ["interaction", "points", "low", "high", "pairs", "verdict"]
    return pd.DataFrame(lines, columns=columns)


def cross_architecture(results: Results) -> pd.DataFrame:
    """Sets made with the first network, evaluated with others."""
    rows, by = results.rows("cross_architecture"), ["cell", "method", "architecture"]
    lines = [dict(zip(by, names, strict=True)) | scored(runs) for names, runs in groups(rows, *by)]
    return pd.DataFrame(lines)[[*by, "mean", "std", "networks", "accuracy"]]


def tuning(results: Results) -> pd.DataFrame:
    """What was tried for which method, and its accuracy on the validation split.

    A star marks the best of a method's settings, or the best method. Empty if nothing was tuned.
    """
    by = ["cell", "choosing", "method", "iterations"]
    columns = [*by, "tried", "validation_accuracy", "networks", "best"]
    if not results.has_rows("tuning"):
        return pd.DataFrame(columns=columns)
    lines = [
        (*names, tried, 100 * mean(networks.validation_accuracy), len(networks), "")
        for names, runs in groups(chosen(results.rows("tuning")), *by)
        for (tried,), networks in groups(runs, "tried")
    ]
    table = pd.DataFrame(lines, columns=columns)
    rivals = table.method.where(table.choosing == "settings", "")
    best = table.groupby(["cell", "choosing", rivals]).validation_accuracy.idxmax()
    table.loc[best, "best"] = "*"
    return table


TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    table.__name__: table
    for table in (
        *(main, summary, smoothness, ablation, interactions),
        *(cross_architecture, tuning, scores, costs, published),
    )
} | {"claims": claims.table}
