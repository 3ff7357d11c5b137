"""The commands for sets and experts that come and go: `evaluate` one, ours or a stranger's; `export` ours, for other code or for people."""

from __future__ import annotations

import io
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from ddlib import album
from ddlib.data import datasets as data
from ddlib.data import mtt_format as exchange
from ddlib.method.evaluate import trained_on
from ddlib.paper import figures as plots
from ddlib.paper import tables
from ddlib.paper.paper import Paper, store_folder
from ddlib.paper.results import Results
from ddlib.runs import stages as pipeline
from ddlib.runs import studies
from ddlib.runs.store import Artefact, Damaged, Store, peek, read, write_whole
from ddlib.settings import (
    Condensation,
    Data,
    Distillation,
    Distilled,
    Evaluation,
    InputError,
    Network,
    Selection,
    validated,
)

WHITENING: dict[str, dict[str, Any]] = {  # --whitening, as fields of Data
    "none": {},
    "zca": {"zca": True},
    "mtt": {"space": "mtt"},
    "mtt-zca": {"zca": True, "space": "mtt"},
}
ASKED = {
    "data": f"--data NAME, what its images were distilled from ({', '.join(data.SETS)})",
    "whitening": "--whitening WORD, the space that they are in: none (our normalised pixels), zca (ours whitened), mtt or mtt-zca (these two as MTT's code has them)",
    "lr": "--lr NUMBER, to train with, the one that was learned with them (no lr_*.pt lies beside them)",
}
ALBUMS = ("png", "datasets")  # forms of a set as pixels
DEPTHS = {
    32: 3,
    64: 4,
    128: 5,
}  # of the convnet that the field takes, by the side of the images up to which


@dataclass(frozen=True)
class Words:
    """What the command line says about a stranger's set, where the file does not."""

    data: str | None = None
    lr: float | None = None
    whitening: str | None = None
    labels: Path | None = None
    width: int | None = None
    depth: int | None = None


def evaluate_file(file: Path, networks: int, epochs: int, said: Words) -> None:
    """Fresh networks on a set: one of ours says itself what it was made of, of a stranger's .pt the command line says it.

    Raises:
        InputError: the file is not sound, or does not fit what is said; something is not said, or said twice.
    """
    judge = _ours if file.suffix == ".safetensors" else _theirs
    settings, x, y, lr = judge(file, said)
    settings = validated(
        Evaluation,
        dict(settings) | {"networks": networks, "epochs": epochs},
        "--networks and --epochs",
    )
    store = Store(store_folder())
    if said.data:
        classes = pipeline.images(pipeline.of_data(settings.of), store).classes
        counts = (y.argmax(1) if y.dim() == 2 else y).bincount(minlength=classes)
        print(
            f"{len(y)} images of {classes} classes of {said.data} ({int(counts.min())} to {int(counts.max())} a class), whitening {said.whitening}, lr {lr:g}"
        )
    rows = pipeline.judge(settings, x, y, lr, store)
    scored = pd.Series([row["accuracy"] for row in rows if row["protocol"] == "lr_chosen"])
    print(
        f"{tables.spread(scored)}: test accuracy in percent of networks trained for {epochs} epochs on the {len(y)} images alone, mean ± std (networks)"
    )


def _judged(where: Data, network: Network) -> Evaluation:
    return Evaluation(of=Selection(data=where, method="all"), network=network)


def _ours(file: Path, said: Words) -> tuple[Evaluation, torch.Tensor, torch.Tensor, float]:
    if extra := [f"--{name}" for name, value in vars(said).items() if value is not None]:
        raise InputError(
            f"{file} says itself what {' and '.join(extra)} would say: leave {'it' if len(extra) == 1 else 'them'} out"
        )
    held = read(file)
    return (
        _judged(*_made_of(held.settings)),
        held.tensors["images"],
        trained_on(held),
        held.record["lr"],
    )


def _made_of(settings: dict) -> tuple[Data, Network]:
    """The data of one of our sets, and the network it was made with."""
    made: Any = pipeline.settled(settings)
    return pipeline.of_data(made), pipeline.made_with(made) or Network(width=32)


def _theirs(file: Path, said: Words) -> tuple[Evaluation, torch.Tensor, torch.Tensor, float]:
    lacking = [ASKED[name] for name in ("data", "whitening") if getattr(said, name) is None]
    if said.lr is None and not exchange.has_lr(file):
        lacking.append(ASKED["lr"])
    if said.data == "folder":
        raise InputError(
            f"{file} cannot say which folder its images were made of: judge the .safetensors that it was exported from, which can"
        )
    if lacking:
        raise InputError(
            f"{file} does not say all that is needed to judge it: add " + "; ".join(lacking)
        )
    where = validated(
        Data, {"name": said.data, **WHITENING[said.whitening]}, "--data and --whitening"
    )
    known = data.about(where)
    classes = len(known.class_names)
    found = exchange.read_set(file, said.labels, known.shape, classes, classes * known.per_class)
    lr = found.lr if said.lr is None else exchange.positive(said.lr, "--lr")
    depth = (
        said.depth
        if said.depth is not None
        else next((depth for side, depth in DEPTHS.items() if known.shape[1] <= side), 5)
    )
    network = validated(
        Network,
        {"width": 128 if said.width is None else said.width, "depth": depth},
        "the network of --width and --depth",
    )
    return _judged(where, network), found.images, found.labels, lr


def export_set(file: Path, folder: Path, form: str = "mtt") -> None:
    """One of our sets as `exchange.write_set` writes it, its images in the space that they are in; and the command that judges them, or what to know before they are.

    As `png` or `datasets`, which are for looking and for plain pipelines, as `album` writes it, its images as pixels.
    """
    held = read(file)
    if "images" not in held.tensors:
        raise InputError(
            f"{file} holds {', '.join(held.tensors) or 'no tensors'}, expected a set: images, labels and lr; name one of results/*/sets"
        )
    where, network = _made_of(held.settings)
    if form in ALBUMS:
        print(_export_album(file, held, where, folder, form))
        return
    whitening = next(
        word
        for word, fields in WHITENING.items()
        if fields.get("zca", False) == where.zca and fields.get("space") == where.space
    )
    files = exchange.write_set(
        folder,
        held.tensors["images"],
        held.tensors["soft" if "soft" in held.tensors else "labels"],
        held.record["lr"],
        form,
    )
    print(", ".join(map(str, files)))
    if form == "ddranking":
        same = (
            "as these are"
            if whitening == "mtt"
            else f"and these are in another space, '{whitening}': their score there would mean nothing"
        )
        print(
            f"DD-Ranking shows networks its real images by the fixed means and deviations of MTT's code (`data: {{space: mtt}}`), {same}."
        )
        return
    if where.name in data.SETS and where.seed == 0:
        said = f"--data {where.name} --whitening {whitening} --width {network.width} --depth {network.depth}"
        print(f"Judge them anywhere with\n  python -m ddlib evaluate {files[0]} {said}")


def _export_album(file: Path, held: Artefact, where: Data, folder: Path, form: str) -> str:
    """What was written, and how far it is from the set."""
    names, loss = class_names(where, held), album.Loss.of(held)
    if form == "datasets":
        card = album.card(held, names, _about(file, held, where))
        written = f"{album.write_datasets(folder, held, names, card)}"
    else:
        written = (
            f"{album.write_pngs(folder, held, names)}, and {_sheet(folder, held, names)} to look at"
        )
    away = f"the mean pixel is {loss.levels(loss.mean)} of 255 levels away and the farthest {loss.levels(loss.largest)}"
    return (
        f"{len(held.tensors['images'])} PNGs and {written}\n"
        f"They do to look at. Levels of a PNG end at black and white, those of a set need not: {loss.clipped:.1%} of the numbers are clipped, {away}. "
        f"Only {file} is exact."
    )


def _sheet(folder: Path, held: Artefact, names: tuple[str, ...]) -> Path:
    """The first images of each class, large, below what they began as."""
    content = io.BytesIO()
    with plots.style():
        plots.before_after(held, names).savefig(
            content, format="png", dpi=150, bbox_inches="tight", metadata={"Software": None}
        )
    write_whole(folder / "sheet.png", content.getvalue())
    return folder / "sheet.png"


def class_names(where: Data, held: Artefact) -> tuple[str, ...]:
    """The classes of a set, by name; by number, where the images that it was made of are not there to tell."""
    try:
        known = data.about(where)
        return known.words(store_folder()) if known.words else known.class_names
    except (InputError, OSError):
        soft = held.tensors.get("soft")
        return tuple(
            map(
                str, range(int(held.tensors["labels"].max()) + 1 if soft is None else soft.shape[1])
            )
        )


def _about(file: Path, held: Artefact, where: Data) -> album.About:
    """What the card of a set says beside it."""
    made: Any = pipeline.settled(held.settings)
    rows = rows_at_hand(file, held)
    known = data.SETS.get(where.name)
    ipc = (
        f"{len(held.tensors['labels'])} images"
        if held.settings.get("method") == "all"
        else f"{(made.start if isinstance(made, Distilled) else made).ipc} a class"
    )
    return album.About(
        f"{where.title}, {'distilled' if isinstance(made, Distilled) else 'a coreset'}, {ipc}",
        "synthetic" if isinstance(made, Distilled) or made.method == "noise" else "real",
        _how(made),
        known.source if known else "a folder of images of its maker's own",
        known.licence if known else "unknown",
        None
        if rows.empty
        else rows.groupby("architecture")
        .accuracy.apply(tables.spread)
        .rename("test accuracy")
        .reset_index(),
    )


def _how(made: Distilled | Selection) -> str:
    """A sentence on how a set was made, without its full stop."""
    if isinstance(made, Distillation):
        trained = (
            f"{made.n_experts} networks ({made.network.architecture}) trained on the real images"
        )
        return f"Trajectory matching: {made.iterations} outer iterations, in each {made.inner_steps} steps on these images were to lead where one of {trained} went"
    if isinstance(made, Condensation):
        return f"Condensation by {made.method.upper()}: {made.iterations} outer iterations, each on a new network ({made.network.architecture})"
    return f"Images of the training set, picked by '{made.method}'"


def rows_at_hand(file: Path, held: Artefact) -> pd.DataFrame:
    """Networks that were judged on a set, the lr chosen on validation: by the rows beside it, where it is one of a paper's, else by those that the store holds."""
    found, beside = [], Results(file.absolute().parent.parent)
    if beside.has_rows("main"):
        rows = beside.rows("main")
        found += [
            some
            for place, some in rows.groupby(["cell", "method", "distil_seed"])
            if beside.set_file(*place).absolute() == file.absolute()
        ]
    for judged in (
        [] if found else sorted((store_folder() / Evaluation.stage).glob("*.safetensors"))
    ):
        with suppress(Damaged):
            about = peek(judged)
            if about["settings"].get("of") == held.settings and about["settings"].get("test"):
                found.append(pd.DataFrame(about["record"]["rows"]))
    rows = pd.concat(found) if found else pd.DataFrame({"protocol": []})
    return rows[rows.protocol == "lr_chosen"]


def export_experts(profile: str, recipe: str, folder: Path, cell: str | None = None) -> None:
    """The experts of a recipe as replay_buffer_<n>.pt, ten a file; those that are missing are trained. Of a profile's first cell, if none is named.

    Raises:
        InputError: no such profile, recipe or cell.
    """
    held = Paper(profile)
    if cell is not None and cell not in held.profile.cells:
        raise InputError(
            f"no cell '{cell}' in profile {held.name}: expected one of {', '.join(held.profile.cells)}"
        )
    where = held.profile.cells[cell or next(iter(held.profile.cells))]
    wanted = [
        studies.recipe(held.profile, where, recipe, seed) for seed in range(held.profile.n_experts)
    ]
    pipeline.ensure(wanted, held.store)
    paths = (held.store.load(settings).tensors["path"] for settings in wanted)
    files = exchange.write_buffer(folder, paths, pipeline.shapes(wanted[0]))
    print(f"{len(wanted)} experts '{recipe}' of {where.data.title} in {', '.join(map(str, files))}")
