"""The tables, as functions of rows: mean ± std over networks and seeds, with the number behind each; a cell that was not run is blank."""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

from ddlib.paper import claims, reuse, scores, teaching
from ddlib.paper.published import published
from ddlib.paper.results import Results, in_reading_order


def spread(values: pd.Series) -> str:
    """51.2 ± 0.6 (5): mean ± std of fractions, in percent, with n."""
    values = values.dropna()
    if values.empty:
        return ""
    std = f" ± {100 * values.std(ddof=1):.1f}" if len(values) > 1 else ""
    return f"{100 * values.mean():.1f}{std} ({len(values)})"


def in_order(rows: pd.DataFrame, by: list[str]) -> list[tuple]:
    """Groups in the order in which the rows name them."""
    return list(rows.groupby(by, sort=False, dropna=False))


def main(results: Results) -> pd.DataFrame:
    """Methods x cells: last-epoch test accuracy by the lr chosen on validation; beside it lr = a, the flattering best-of columns, the paired difference to AST,
    and what the sets cost.
    """
    rows, lines, efforts = results.rows("main"), [], effort(results)
    for (cell, data, method), mine in in_order(rows, ["cell", "data", "method"]):
        chosen, fixed = mine[mine.protocol == "lr_chosen"], mine[mine.protocol == "lr_a"]
        seeds = chosen.groupby("distil_seed").accuracy.mean()
        lines.append(
            {
                "cell": cell,
                "data": data,
                "ipc": mine.ipc.iloc[0],
                "method": method,
                "mean": 100 * chosen.accuracy.mean(),
                "std": 100 * chosen.accuracy.std(ddof=1) if len(chosen) > 1 else None,
                "std_over_seeds": 100 * seeds.std(ddof=1) if len(seeds) > 1 else None,
                "seeds": len(seeds),
                "networks": len(chosen),
                "accuracy": spread(chosen.accuracy),
                "accuracy_at_lr_a": spread(fixed.accuracy),
                "best_on_validation": spread(chosen.best_on_validation),
                "best_on_test": spread(chosen.best_on_test),
                **beside(rows[rows.cell == cell], method, "AST"),
                **(efforts.get((cell, method)) or dict.fromkeys(EFFORT if efforts else ())),
            }
        )
    return pd.DataFrame(lines)


def beside(rows: pd.DataFrame, method: str, base: str) -> dict:
    """The paired difference to another method in points, with its bootstrap interval over seeds; nothing where no seed is shared."""
    effects = 100 * claims.paired(rows, method, base) if method != base else ()
    if not len(effects):
        return dict.fromkeys(("difference", "low", "high", "pairs"))
    part = claims.part("", "", effects)
    return {"difference": part.effect, "low": part.low, "high": part.high, "pairs": part.n}


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
INTERACTS = {
    claims.SUPPORTED: "they help each other",
    claims.NOT: "they stand in each other's way",
    claims.OPEN: claims.OPEN,
}
EFFORT = ("learned_lr", "iterations", "seconds", "megabytes")


def effort(results: Results) -> dict[tuple[str, str], dict]:
    """For each cell and distilling method of the main study: mean learned lr, outer iterations, and, as far as they were noted, mean seconds and most megabytes."""
    if not results.has_rows("costs"):
        return {}
    rows, found = results.rows("costs"), {}
    for (cell, method), mine in in_order(rows[rows.study == "main"], ["cell", "method"]):
        values = (mine.lr.mean(), mine.iterations.max(), mine.seconds.mean(), mine.megabytes.max())
        found[cell, method] = dict(zip(EFFORT, values, strict=True))
    return found


def costs(results: Results) -> pd.DataFrame:
    """What making the sets took, mean over seeds: by the clock, of the processor, of its experts, the most memory; `noted` of the `sets` were made since it is noted."""
    lines = []
    for (study, cell, method), mine in in_order(results.rows("costs"), ["study", "cell", "method"]):
        line = {
            "study": study,
            "cell": cell,
            "method": method,
            "sets": len(mine),
            "noted": int(mine.seconds.notna().sum()),
            "iterations": mine.iterations.max(),
        }
        line |= {
            "learned_lr": mine.lr.mean(),
            "seconds": mine.seconds.mean(),
            "seconds_std": mine.seconds.std(ddof=1) if len(mine) > 1 else None,
        }
        line |= {
            "processor_seconds": mine.processor_seconds.mean(),
            "megabytes": mine.megabytes.max(),
            "experts_seconds": mine.experts_seconds.mean(),
        }
        lines.append(line)
    return pd.DataFrame(lines)


def robust(results: Results) -> pd.DataFrame:
    """DD-Ranking's scores of the main cell's methods, as fractions: means over seeds, LRS and ARS with their bootstrap intervals."""
    lines = []
    for (method,), mine in in_order(
        scores.by_seed(results.rows("scores")).reset_index(), ["method"]
    ):
        line = {"cell": results.rows("scores").cell.iloc[0], "method": method, "seeds": len(mine)}
        line |= {name: mine[name].mean() for name in ("hlr", "ior", "ior_plain")}
        for name in ("lrs", "ars"):
            part = claims.part("", "", mine[name])
            line |= {name: part.effect, f"{name}_low": part.low, f"{name}_high": part.high}
        lines.append(line)
    return pd.DataFrame(lines)


def others(results: Results) -> pd.DataFrame:
    """Published accuracies in percent, methods x cells, each line with its source; nothing in it was measured here, and of AST none is known."""
    rows, lines = published(), []
    wide = [f"IPC {ipc}" for ipc in sorted(rows.ipc.dropna().unique())]
    for (dataset,), here in in_order(rows, ["dataset"]):
        for (method, labels, source), mine in in_order(here, ["method", "labels", "source"]):
            line = {
                "data": dataset,
                "method": method,
                "labels": labels,
                **dict.fromkeys(["all data", *wide], ""),
            }
            for row in mine.itertuples():
                said = f"{row.accuracy:.1f}" + ("" if pd.isna(row.std) else f" ± {row.std:.1f}")
                line["all data" if pd.isna(row.ipc) else f"IPC {row.ipc}"] = said
            lines.append(line | {"source": source})
        lines.append({"data": dataset, "method": "AST", "source": "not available"})
    return pd.DataFrame(lines).fillna("")


def summary(results: Results) -> pd.DataFrame:
    """The main table as a reader scans it: methods down, cells across."""
    table = main(results)
    return (
        table.pivot(index="method", columns="cell", values="accuracy")
        .loc[in_reading_order(table), table.cell.unique()]
        .reset_index()
    )


def smoothness(results: Results) -> pd.DataFrame:
    """Recipes: every smoothness measure beside expert accuracy, mean and std over expert seeds."""
    lines = []
    rows = results.rows("smoothness")
    measures = [
        c for c in rows.columns if c not in ("data", "recipe", "expert_seed", "settings_key")
    ]
    for (data, recipe), mine in in_order(rows, ["data", "recipe"]):
        line = {"data": data, "recipe": recipe, "n": len(mine)}
        for measure in measures:
            line |= {
                measure: mine[measure].mean(),
                f"{measure}_std": mine[measure].std(ddof=1) if len(mine) > 1 else None,
            }
        lines.append(line)
    return pd.DataFrame(lines)


def ablation(results: Results) -> pd.DataFrame:
    """Group by group, what differs from its base in one thing; the paired difference to the base in points with its bootstrap interval over seeds."""
    rows, lines = results.rows("ablation"), []
    for (cell, group, base, method), mine in in_order(rows, ["cell", "group", "base", "method"]):
        chosen = mine[mine.protocol == "lr_chosen"]
        line = {
            "cell": cell,
            "group": group,
            "base": base,
            "method": method,
            "mean": 100 * chosen.accuracy.mean(),
        }
        line |= {"seeds": chosen.distil_seed.nunique(), "networks": len(chosen)}
        line |= {
            "accuracy": spread(chosen.accuracy),
            "accuracy_at_lr_a": spread(mine[mine.protocol == "lr_a"].accuracy),
        }
        lines.append(line | beside(rows[rows.cell == cell], method, base))
    return pd.DataFrame(lines)


def interactions(results: Results) -> pd.DataFrame:
    """Where two ingredients overlap: the paired difference, in points, between what one is worth beside the other and what it is worth alone."""
    rows, lines = results.rows("ablation"), []
    for words, (both, one, other, neither) in INTERACTIONS.items():
        scored = [100 * claims.accuracy(rows, method) for method in (both, one, other, neither)]
        effects = (scored[0] - scored[1] - scored[2] + scored[3]).dropna()
        if len(effects):
            part = claims.part("", "", effects)
            lines.append(
                {
                    "interaction": words,
                    "points": part.effect,
                    "low": part.low,
                    "high": part.high,
                    "pairs": part.n,
                    "verdict": INTERACTS[part.verdict],
                }
            )
    return pd.DataFrame(lines, columns=["interaction", "points", "low", "high", "pairs", "verdict"])


def recipes(results: Results) -> pd.DataFrame:
    """Expert recipes: how good and how smooth their experts are, and how well AST's sets from them teach; mean and std over experts, and over sets."""
    held = teaching.points(results)
    held[["test_accuracy", "test_accuracy_std", "accuracy", "accuracy_std"]] *= 100
    return held.rename(columns={"accuracy": "sets_accuracy", "accuracy_std": "sets_accuracy_std"})


def cross_architecture(results: Results) -> pd.DataFrame:
    """Sets made with the first network, judged by others."""
    lines = []
    for (cell, method, architecture), mine in in_order(
        results.rows("cross_architecture"), ["cell", "method", "architecture"]
    ):
        chosen = mine[mine.protocol == "lr_chosen"].accuracy
        line = {
            "cell": cell,
            "method": method,
            "architecture": architecture,
            "mean": 100 * chosen.mean(),
        }
        lines.append(
            line
            | {
                "std": 100 * chosen.std(ddof=1) if len(chosen) > 1 else None,
                "networks": len(chosen),
                "accuracy": spread(chosen),
            }
        )
    return pd.DataFrame(lines)


def tuning(results: Results) -> pd.DataFrame:
    """What was tried for whom, and what it scored on the validation split; marked is the best of a method's settings, or the best method. Empty where nothing was
    tuned.
    """
    if not results.has_rows("tuning"):
        return pd.DataFrame(
            columns=[
                "cell",
                "choosing",
                "method",
                "iterations",
                "tried",
                "validation_accuracy",
                "networks",
                "best",
            ]
        )
    rows = results.rows("tuning")
    rows = rows[rows.protocol == "lr_chosen"]
    lines = []
    for (cell, choosing, method, iterations), mine in in_order(
        rows, ["cell", "choosing", "method", "iterations"]
    ):
        found = [
            {
                "tried": tried,
                "validation_accuracy": 100 * a.validation_accuracy.mean(),
                "networks": len(a),
            }
            for (tried,), a in in_order(mine, ["tried"])
        ]
        lines += [
            {
                "cell": cell,
                "choosing": choosing,
                "method": method,
                "iterations": iterations,
                **line,
                "best": "",
            }
            for line in found
        ]
    for cell, choosing, method in {
        (line["cell"], line["choosing"], line["method"] if line["choosing"] == "settings" else None)
        for line in lines
    }:
        mine = [
            line
            for line in lines
            if (line["cell"], line["choosing"]) == (cell, choosing)
            and method in (None, line["method"])
        ]
        max(mine, key=lambda line: line["validation_accuracy"])["best"] = "*"
    return pd.DataFrame(lines)


TABLES: dict[str, Callable[[Results], pd.DataFrame]] = {
    "main": main,
    "summary": summary,
    "smoothness": smoothness,
    "ablation": ablation,
    "interactions": interactions,
    "recipes": recipes,
    "cross_architecture": cross_architecture,
    "tuning": tuning,
    "claims": claims.table,
    "teachers": teaching.table,
    "scores": robust,
    "costs": costs,
    "continual": reuse.memories,
    "architectures": reuse.choices,
    "published": others,
}
