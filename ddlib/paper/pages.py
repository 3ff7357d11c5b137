"""The blocks of the README and of the docs that are made from what is kept: `make readme`.

A block stands between `<!-- name:start -->` and `<!-- name:end -->`; no number in it is typed.
"""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from pathlib import Path

import pandas as pd

from ddlib.base import InputError
from ddlib.data import datasets
from ddlib.files import write_whole
from ddlib.paper.claims import UNTESTED, accuracy, mean, std
from ddlib.paper.paper import Paper
from ddlib.paper.tables import beside
from ddlib.runs import cost, studies
from ddlib.runs.profile import Profile
from ddlib.runs.store import HOME
from ddlib.settings import Distillation

README, DOCS, CELLS = HOME / "README.md", HOME / "docs", HOME / "results" / "scale" / "cells.csv"


def readme() -> None:
    """Fill every block that is made from kept results."""
    for block, (profile, text_of) in BLOCKS.items():
        if page_of(block):
            fill(block, text_of(Paper.printed(profile)))
    others = {"cells": cells_table, "verdicts": verdicts, "processors": processors}
    for block, text in others.items():
        if page_of(block):
            fill(block, text())


def cells() -> None:
    """`python -m ddlib plan cells`: predict every cell of the paper, and fill the docs' table."""
    predicted = cost.cells().to_csv(index=False, lineterminator="\n", float_format="%.4g")
    write_whole(CELLS, predicted.encode())
    if page_of("cells"):
        fill("cells", cells_table())


def page_of(block: str) -> Path | None:
    """The page that holds a block, if any does."""
    pages = (page for page in (README, *sorted(DOCS.glob("*.md"))) if page.exists())
    marks = (f"<!-- {block}:start -->", f"<!-- {block}:end -->")
    return next(
        (page for page in pages if any(mark in page.read_text("utf-8") for mark in marks)), None
    )


def fill(block: str, text: str) -> None:
    """Put a text between the markers of a block; raises InputError where no page has them."""
    page = page_of(block)
    if page is None:
        raise InputError(
            f"no page has a block '{block}': expected <!-- {block}:start --> and "
            f"<!-- {block}:end --> in {README} or a page of {DOCS}; put them where it belongs"
        )
    write_whole(page, filled(page, block, text).encode())


def filled(page: Path, block: str, text: str) -> str:
    """The page with that text in the block; raises InputError where it has lost a marker."""
    start, end = f"<!-- {block}:start -->", f"<!-- {block}:end -->"
    head, first, rest = page.read_text("utf-8").partition(start)
    _, last, tail = rest.partition(end)
    if not (first and last):
        raise InputError(
            f"{page} has lost its markers: expected {start} and below it {end}, found no "
            f"{end if first else start}; put them back where that block belongs"
        )
    return head + "\n\n".join([start, text, end]) + tail


def benchmark(paper: Paper) -> str:
    """Ours beside published numbers, one line per method and IPC."""
    table = pd.read_csv(paper.results.folder / "tables" / "benchmark.csv")
    lines = pd.DataFrame({"IPC": table.ipc.astype("Int64").astype(object), "method": table.method})
    lines["protocol"] = table.protocol
    for column in ("ours", "published"):
        stds = table[f"{column}_std"].map(lambda std: "" if pd.isna(std) else f" ± {std:.1f}")
        lines[column] = table[column].map("{:.1f}".format).replace("nan", "") + stds
    lines.insert(4, "at its own lr", table.at_lr_a.map("{:.1f}".format).replace("nan", ""))
    each = (table.networks / table.sets).map("{:.0f}".format)
    lines["sets × networks"] = (table.sets.map("{:.0f} × ".format) + each).replace("nan × nan", "")
    rising = table.rising.fillna("").map(lambda words: words and f", {words}")
    lines["verdict"] = table.verdict + rising
    return lines.fillna("all").to_markdown(index=False, disable_numparse=True)


def summary(paper: Paper) -> str:
    """What came out under a profile: the main table, the verdicts on the claims, the scale."""
    folder = paper.results.folder
    place = f"results/{folder.name}"
    claims = pd.read_csv(folder / "tables" / "claims.csv", dtype={"claim": str})
    verdicts = [
        f"{row.claim}. {row.statement}: **{row.verdict}**"
        for row in claims[claims.claim.str.len() == 1].itertuples()
    ]
    return "\n\n".join(
        [
            "Test accuracy in percent after the last epoch: mean ± standard deviation over sets "
            "(sets × networks trained on each). The learning rate was chosen on validation images, "
            "for every method from the same grid. The "
            f"[main figure]({place}/figures/main.svg) shows the same.",
            (folder / "tables" / "summary.md").read_text("utf-8").strip(),
            "The paper's seven claims and a control of ours, at this scale. What decides each is "
            f"named in brackets; [claims.md]({place}/claims.md) has all that was measured.",
            "\n".join(verdicts),
            scale(paper.profile),
        ]
    )


def caption(paper: Paper) -> str:
    """What the README's picture shows, with the accuracies of its cell."""
    table = pd.read_csv(paper.results.folder / "tables" / "summary.csv").set_index("method")
    cell = next(name for name in table if name.endswith("-ipc1"))
    picked, distilled = (table[cell][name].partition(" (")[0] for name in ("k-means", "AST"))
    return (
        "Top row: one real image per class. Middle row: [what AST made of them]"
        f"(results/{paper.name}/figures/film.gif). Bottom row: the difference. Test accuracy of "
        "networks trained on ten images only, in percent (mean ± standard deviation over sets): "
        f"{picked} on real images picked by k-means, {distilled} on the images distilled by AST."
    )


def scale(profile: Profile) -> str:
    """How small the first cell is on which a method follows experts, in one sentence."""
    sets = ((run.cell, run.settings.of) for run in studies.main(profile))
    every = [(cell, of) for cell, of in sets if isinstance(of, Distillation)]
    if not every:
        return "No method follows experts."
    cell, of = every[0]
    counts = [other.iterations for name, other in every if name == cell]
    iterations = " to ".join(f"{n}" for n in dict.fromkeys((min(counts), max(counts))))
    images, n = datasets.about(of.data).n_train, len(studies.seeds(profile, cell))
    steps = ceil(images / of.experts.batch) if hasattr(of.experts, "batch") else None
    epochs = f"{of.experts.until or of.experts.epochs} epochs" + f" × {steps} steps" * bool(steps)
    return (
        f"Scale of `{cell}`: {iterations} outer iterations, {of.n_experts} "
        f"experts of {epochs}, a {of.network.architecture} of width {of.network.width}, {images} "
        f"training images, {n} distillation seed{'s, which follow' if n > 1 else ', which follows'}"
        " these same experts."
    )


BLOCKS: dict[str, tuple[str, Callable[[Paper], str]]] = {  # profiles, and what they fill in
    "paper": ("laptop", summary),
    "picture": ("laptop", caption),
    "benchmark": ("fashion-published", benchmark),
}


def verdicts() -> str:
    """The claims under every kept profile, side by side; blank: no rows. Then how large each is."""
    columns, scales = {}, []
    for file in sorted(CELLS.parents[1].glob("*/tables/claims.csv")):
        paper = Paper.printed(file.parents[1].name)
        table = pd.read_csv(file, dtype={"claim": str})
        whole = table[table.claim.str.isdigit()]
        names = whole.claim + ". " + whole.statement.str.partition(" (decided by ")[0]
        known = whole.verdict.where((whole.n > 0) | (whole.verdict != UNTESTED), "")
        columns[paper.name] = pd.Series(known.to_numpy(), names)
        scales.append(f"`{paper.name}`. {scale(paper.profile)}")
    wide = pd.DataFrame(columns).fillna("").rename_axis("claim").reset_index()
    return "\n\n".join([wide.to_markdown(index=False), *scales])


def processors() -> str:
    """The same seeds on another processor: accuracies, how far a seed moves, AST's lead on both.

    `results/processors/NAME.csv` holds rows of `laptop`'s main study that NAME computed.
    """
    printed, lines = Paper.printed("laptop").results.rows("main"), []
    for file in sorted((CELLS.parents[1] / "processors").glob("*.csv")):
        there = pd.read_csv(file)
        both = printed[printed.cell.isin(there.cell)], there
        for method in there.method.unique():
            line = {"processor": file.stem, "method": method}
            scores = [100 * accuracy(rows, method) for rows in both]
            for name, of in zip(("as printed", "there"), scores, strict=True):
                line[name] = f"{mean(of):.1f} ± {std(of):.1f}"
            moved = scores[1] - scores[0]
            line["a seed moves by"] = f"{mean(moved):+.1f} ± {std(moved):.1f}"
            leads = [beside(rows, "AST", method) for rows in both]
            for name, lead in zip(("as printed", "there"), leads, strict=True):
                words = "{difference:+.1f} [{low:+.1f}, {high:+.1f}]"
                line[f"AST's lead, {name}"] = words.format(**lead) if lead["pairs"] else ""
            lines.append(line)
    return pd.DataFrame(lines).to_markdown(index=False)


def cells_table() -> str:
    """One line per data set; IPC 1 / 10 / 50 side by side."""
    rows = pd.read_csv(CELLS)
    here = {
        "MNIST-M-5k": ("`laptop`", "yes, on two cores"),
        "FashionMNIST, whole": ("`fashion-published`, `fashion`", "yes, in hours"),
        "MNIST-M-5k, 1 000 outer iterations": ("`laptop-full`", "yes, in hours"),
        "digits": ("`smoke`", "yes, its numbers mean nothing"),
    }
    columns = ["data", "cells", "run here"]
    lines = [dict(zip(columns, (data, *told), strict=True)) for data, told in here.items()]
    for (pixels, name), cells in rows.groupby(["pixels", "data"], sort=False):
        first, *others = cells.cell
        names = ", ".join([f"`{first}`", *(f"`-{other.rsplit('-', 1)[1]}`" for other in others)])
        line = {"data": f"{name}, {pixels} px", "cells": names, "run here": "no, a dry run only"}
        for title, column in (
            (f"{cells.gpu.iloc[0]}: hours", "hours"),
            ("GB, adjoint", "adjoint GB"),
            ("GB, unroll", "unroll GB"),
            ("GB of disk", "disk GB"),
        ):
            line[title] = " / ".join(f"{value:.0f}" for value in cells[column])
        lines.append(line)
    return pd.DataFrame(lines).fillna("").to_markdown(index=False)
