"""Sets and experts that come and go: judging a file, ours or a stranger's, and exporting ours.

n images (n, c, h, w) in the network's space, K classes. As pixels an image is x = space.leave(z).
A PNG clips x to [0, 1] and rounds it to one of 256 levels; only the .safetensors file is exact.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from PIL import Image
from torch.utils.data import TensorDataset

from ddlib.api import judge
from ddlib.base import InputError, validated
from ddlib.data import croissant, datasets, mtt_format
from ddlib.files import Damaged, opened, write_new
from ddlib.method.evaluate import SyntheticSet
from ddlib.paper import pictures, style
from ddlib.paper.claims import mean, std
from ddlib.paper.results import Results
from ddlib.runs import engine, methods, run
from ddlib.runs.profile import profile
from ddlib.runs.stages import settings_of
from ddlib.runs.store import Artefact, Store, peek, read, store_folder
from ddlib.settings import AnySet, Data, Distilled, Evaluation, Network, Selection

CARD = Path(datasets.__file__).with_name("card.md")
# What --whitening says, as fields of Data.
WHITENING: dict[str, dict[str, Any]] = {
    **{"none": {}, "zca": {"zca": True}, "mtt": {"space": "mtt"}},
    "mtt-zca": {"zca": True, "space": "mtt"},
}
NEEDED = {
    "data": f"--data NAME, what the images were distilled from ({', '.join(datasets.SETS)})",
    "whitening": "--whitening WORD, their space: none, zca (ours), mtt, mtt-zca (MTT's code)",
    "lr": "--lr NUMBER, the learning rate to train with (there is no lr_*.pt beside the images)",
    "labels": "--labels FILE, the images' classes (there is no labels_*.pt beside them)",
}


class About(NamedTuple):
    """What the command line says about a stranger's images, for their file does not."""

    data: str | None = None
    lr: float | None = None
    whitening: str | None = None
    labels: Path | None = None
    width: int | None = None
    depth: int | None = None


def evaluate_file(file: Path, networks: int, epochs: int, about: About) -> None:
    """Train fresh networks on a set and print what they score."""
    of, network, synthetic = (_read_ours if _is_ours(file) else _read_foreign)(file, about)
    how: dict[str, Any] = {"of": of, "network": network, "networks": networks, "epochs": epochs}
    how |= {"lrs": (about.lr,)} if about.lr else {}
    settings = validated(Evaluation, how, "--networks and --epochs")
    y = synthetic.labels
    if about.data:
        classes = datasets.load(of.data, store_folder()).classes
        counts = (y.argmax(1) if y.dim() == 2 else y).bincount(minlength=classes)
        each = f"{int(counts.min())} to {int(counts.max())} per class"
        words = f"{len(y)} images of {classes} classes of {about.data} ({each})"
        print(f"{words}, whitening {about.whitening}, lr {synthetic.lr:g}")
    rows = [row for row in judge(settings, synthetic) if row["protocol"] == "lr_chosen"]
    scores = _over_networks(row["accuracy"] for row in rows)
    edge = ", the last of those tried" if rows[0]["lr_at_edge"] else ""
    print(
        f"{scores}: test accuracy in percent of networks trained for {epochs} epochs on the "
        f"{len(y)} images alone, mean ± std (networks), with lr {rows[0]['lr']:g}{edge}"
    )


def _over_networks(accuracies: Iterable[float]) -> str:
    """51.2 ± 0.6 (5): mean ± std of fractions over the networks of one set, in percent."""
    known = list(accuracies)
    return f"{100 * mean(known):.1f} ± {100 * std(known):.1f} ({len(known)})".replace(" ± nan", "")


def _is_ours(file: Path) -> bool:
    """Whether a file is an artefact of this library, whatever it is called."""
    with suppress(InputError), opened(file) as content:
        return "ddlib" in (content.metadata() or {})
    return False


def _read_ours(file: Path, about: About) -> tuple[AnySet, Network, SyntheticSet]:
    if extra := [f"--{name}" for name, value in about._asdict().items() if value is not None]:
        raise InputError(f"{file} says itself what {' and '.join(extra)} would say: leave it out")
    artefact, made = _read_set(file)
    return made, made.network or Network(width=32), SyntheticSet.of(artefact)


def _read_set(file: Path) -> tuple[Artefact, Any]:
    """A set, and the settings that it was made under."""
    artefact = read(file)
    made, tensors = settings_of(artefact.settings), artefact.tensors
    if not isinstance(made, AnySet):
        expected = "expected a set with images, labels and lr: name a file of results/*/sets, or"
        raise InputError(f"{file} holds {made.title}, {expected} one that you saved")
    with _workable(file):
        shape, classes = _shape(artefact, made)
        for hard in (False, True):
            SyntheticSet.of(artefact, hard).check(shape, classes)
        for shown in (pictures.unclipped(artefact), *tensors.get("history", ())):
            if shown.shape != tensors["images"].shape:
                raise InputError(f"its space or its history has the shape {tuple(shown.shape)}")
    return artefact, made


@contextmanager
def _workable(file: Path) -> Iterator[None]:
    """Whatever fails inside is a fault of the set in `file`."""
    try:
        yield
    except (ValueError, RuntimeError, TypeError, IndexError, KeyError, AttributeError) as error:
        raise InputError(f"{file} is no set to work with: {error}") from None


def _shape(artefact: Artefact, made: AnySet) -> tuple[tuple[int, ...], int]:
    """(c, h, w) and the number of classes: the data's, or where that is not there the set's own."""
    tensors = artefact.tensors
    try:
        known = datasets.about(made.data)
        return known.shape, len(known.class_names)
    except InputError:
        soft = tensors["soft"].shape[1] if "soft" in tensors else int(tensors["labels"].max()) + 1
        return tuple(tensors["images"].shape[1:]), soft


def _read_foreign(file: Path, about: About) -> tuple[AnySet, Network, SyntheticSet]:
    if about.data == "folder":
        raise InputError(
            f"{file} cannot say which folder its images were made of: evaluate the .safetensors "
            "file that it was exported from"
        )
    found = mtt_format.read_set(file, about.labels)
    said = {name for name, value in about._asdict().items() if value is not None}
    if lacking := [text for name, text in NEEDED.items() if name not in said | found.keys()]:
        raise InputError(f"{file} does not say how to judge it: add " + "; ".join(lacking))
    fields = {"name": about.data, **WHITENING[about.whitening]}
    data = validated(Data, fields, "--data and --whitening")
    known = datasets.about(data)
    classes, side = len(known.class_names), known.shape[1]
    with _workable(file):
        lr = float(found["lr"] if about.lr is None else about.lr)
        if not 0 < lr < float("inf"):
            raise ValueError(f"its lr is {lr}, expected a positive number (--lr gives another)")
        synthetic = SyntheticSet(found["images"], found["labels"], lr)
        synthetic.check(known.shape, classes)
        y = synthetic.labels
        if y.dim() == 1 and (bare := sorted(set(range(classes)) - set(y.tolist()))):
            raise InputError(f"no image of classes {bare}: expected one of each at least")
    size = {"width": 128, "depth": 3 if side <= 32 else 4 if side <= 64 else 5}  # as is usual
    size |= {k: v for k in size if (v := getattr(about, k)) is not None}
    network = validated(Network, size, "the network of --width and --depth")
    # No settings of ours made these images; those of as many random ones stand for them.
    of = Selection(data=data, method="noise", ipc=-(-len(synthetic.images) // classes))
    return of, network, synthetic


def export_set(file: Path | str, folder: Path, form: str = "mtt", force: bool = False) -> None:
    """Write one of our sets in another form, and print what was written.

    Forms: `mtt` and `ddranking` (.pt files in the set's own space), `png` and `datasets` (pixels).

    Raises:
        InputError: the file holds no set, or the folder other files of these names (unless
            `force`).
    """
    file = Path(file)
    artefact, made = _read_set(file)
    if form in ("png", "datasets"):
        return _export_pixels(file, artefact, folder, form, force)
    data, network = made.data, made.network or Network(width=32)
    space = {"zca": data.zca, "space": data.space}
    whitening = next(w for w, f in WHITENING.items() if {"zca": False, "space": None} | f == space)
    labels = artefact.tensors["soft" if "soft" in artefact.tensors else "labels"]
    images, lr = artefact.tensors["images"], artefact.record["lr"]
    files = mtt_format.write_set(folder, images, labels, lr, form, force)
    print(", ".join(map(str, files)))
    if form == "ddranking":
        print("DD-Ranking normalises images as MTT's code does (`data: {space: mtt}`).")
        if whitening != "mtt":
            print(f"These are in another space, '{whitening}': their score would mean nothing.")
    elif data.name in datasets.SETS and data.seed == 0:
        size = f"--width {network.width} --depth {network.depth}"
        how = f"--data {data.name} --whitening {whitening} {size}"
        print(f"Judge them anywhere with\n  python -m ddlib evaluate {files[0]} {how}")


def dataset(artefact: Artefact, pixels: bool = False, hard: bool = False) -> TensorDataset:
    """A set as a Dataset of PyTorch: images as networks see them, or as `pixels` in [0, 1].

    A label is K probabilities where labels are soft; else, or if `hard`, a class.
    """
    synthetic = SyntheticSet.of(artefact, hard)
    images = pictures.unclipped(artefact).clamp(0, 1) if pixels else synthetic.images
    return TensorDataset(images, synthetic.labels)


def _loss(artefact: Artefact) -> str:
    """Sentences on how far PNGs are from the set's own pixels."""
    x = pictures.unclipped(artefact)
    clipped, away = ((x < 0) | (x > 1)).float().mean(), (x.clamp(0, 1) * 255).round() - 255 * x
    ends = (away.abs().mean(), away.abs().max())
    mean, most = (f"{v:.0f}" if v >= 10 else f"{v:.2g}" for v in ends)
    return (
        f"In PNGs values outside 0 to 255 are clipped ({clipped:.1%} of them), all are rounded. "
        f"The mean pixel is {mean} of 255 levels away from the set's own, the farthest {most}. "
        "Accuracies are those of the exact .safetensors file: PNGs may teach less."
    )


def _export_pixels(file: Path, artefact: Artefact, folder: Path, form: str, force: bool) -> None:
    """Write PNGs by class with labels.csv and a sheet, or a folder for Hugging Face."""
    names = _class_names(artefact)
    rows, card = _image_rows(artefact, names), folder / "README.md"
    home = folder / "train" if form == "datasets" else folder
    files = _pngs(home, artefact, rows.file)
    fresh: dict[Path, bytes] = {}  # of this set, though its rows may be new
    if form == "png":
        if "soft" in rows:
            soft = pd.DataFrame(rows.soft.tolist()).add_prefix("soft_")
            rows = rows.drop(columns="soft").join(soft)
        sheet = io.BytesIO()
        look = {"format": "png", "dpi": 150, "bbox_inches": "tight", "metadata": {"Software": None}}
        with style.style():
            pictures.before_after(artefact, names).savefig(sheet, **look)
        files[folder / "labels.csv"] = rows.to_csv(index=False, lineterminator="\n").encode()
        files[folder / "sheet.png"] = sheet.getvalue()
        shown = f"{folder / 'labels.csv'}, and a sheet of them, {folder / 'sheet.png'}"
    else:
        records = rows.rename(columns={"file": "file_name"}).to_dict("records")
        lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in records)
        files[home / "metadata.jsonl"] = lines.encode()
        ours = card.is_file() and _settings_text(artefact) in card.read_text("utf-8", "replace")
        (fresh if ours else files)[card] = _card(file, artefact, names).encode()
        title, _, licence = _about(artefact)
        files[folder / "croissant.json"] = croissant.describe(title, licence, lines.encode())
        shown = str(card)
    # A reader of the folder would take two sets for one.
    there = {png for depth in ("*/*.png", "*/*/*.png") for png in folder.glob(depth)}
    if others := sorted(there - files.keys()):
        raise InputError(
            f"{folder} holds {len(others)} images of something else, such as {others[0]}: expected "
            "an empty folder, or this set's; write to another"
        )
    write_new(files, force)
    write_new(fresh, force=True)
    print(f"{len(rows)} PNGs and {shown}\n{_loss(artefact)}")


def _image_rows(artefact: Artefact, class_names: tuple[str, ...]) -> pd.DataFrame:
    """One row per image: file, class, label, and its K probabilities where labels are soft.

    The order of the folders is that of the classes.
    """
    y, width = artefact.tensors["labels"].tolist(), len(str(len(class_names) - 1))
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name) for name in class_names]
    files = [f"{k:0{width}}_{plain[k]}/{y[:i].count(k):04}.png" for i, k in enumerate(y)]
    rows = pd.DataFrame({"file": files, "class": [class_names[k] for k in y], "label": y})
    labels = SyntheticSet.of(artefact).labels
    return rows.assign(soft=labels.tolist()) if labels.dim() == 2 else rows


def _pngs(folder: Path, artefact: Artefact, names: pd.Series) -> dict[Path, bytes]:
    """Each image as a PNG file, if it has one channel or three."""
    if (channels := artefact.tensors["images"].shape[1]) not in (1, 3):
        raise InputError(f"{channels} channels make no PNG, 1 or 3 do: export the set as it is")
    files: dict[Path, bytes] = {}
    levels = (pictures.pixels(artefact) * 255).round().astype("uint8")
    for name, image in zip(names, levels, strict=True):
        content = io.BytesIO()
        Image.fromarray(image).save(content, "PNG")
        files[folder / name] = content.getvalue()
    return files


def _class_names(artefact: Artefact) -> tuple[str, ...]:
    """The classes of a set by name; by number where the images it was made of are not there."""
    made = settings_of(artefact.settings)
    try:
        known = datasets.about(made.data)
        return known.words(store_folder()) if known.words else known.class_names
    except (InputError, OSError):
        return tuple(map(str, range(_shape(artefact, made)[1])))


def _about(artefact: Artefact) -> tuple[str, str, str]:
    """A set's title, and source and licence of the images that it was made of."""
    made = settings_of(artefact.settings)
    known = datasets.SETS.get(made.data.name)
    kind = "distilled" if isinstance(made, Distilled) else "a coreset"
    title = f"{made.data.title}, {kind}, {len(artefact.tensors['images'])} images"
    source = known.source if known else "a folder of images of its maker's own"
    return title, source, known.licence if known else "unknown"


def _card(file: Path, artefact: Artefact, class_names: tuple[str, ...]) -> str:
    """The dataset card: YAML for machines (its title is JSON, which YAML reads), then text."""
    title, source, licence = _about(artefact)
    n, *shape = artefact.tensors["images"].shape
    rows = _rows_at_hand(file, artefact)
    accuracy = "No evaluation was at hand when this was written."
    if not rows.empty:
        scores = rows.groupby("architecture").accuracy.apply(_over_networks)
        table = scores.rename("test accuracy").reset_index().to_markdown(index=False)
        own = "lr_networks" in rows and not rows.lr_networks.all()
        rate = "of the set" if own else "selected on the validation set"
        accuracy = (
            "Test accuracy in percent of fresh networks trained on these images alone, after the "
            f"last epoch, with the learning rate {rate}: mean ± std (networks).\n\n{table}"
        )
    return CARD.read_text("utf-8").format(
        title=title,
        name=json.dumps(title),
        licence=licence,
        size="n<1K" if n < 1000 else "1K<n<10K" if n < 10_000 else "10K<n<100K",
        n=n,
        shape=" x ".join(map(str, shape)),
        classes=len(class_names),
        soft=", and soft labels" if "soft" in artefact.tensors else "",
        lr=artefact.record["lr"],
        source=source,
        accuracy=accuracy,
        loss=_loss(artefact),
        made=settings_of(artefact.settings).title,
        settings=_settings_text(artefact),
    )


def _settings_text(artefact: Artefact) -> str:
    """What made a set, as the card says it."""
    return json.dumps(_portable(artefact.settings), indent=1, ensure_ascii=False)


def _portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings without their maker's folders: only the last part of each path."""
    places = {name: Path(settings[name]).name for name in ("path", "buffer") if settings.get(name)}
    inner = {k: _portable(v) if isinstance(v, dict) else v for k, v in settings.items()}
    return inner | places


def _rows_at_hand(file: Path, artefact: Artefact) -> pd.DataFrame:
    """Rows of networks on a set, from the results that it belongs to, else from the store."""
    results, found = Results(file.absolute().parent.parent), []
    if results.has_rows("main"):
        for place, rows in results.rows("main").groupby(["cell", "method", "distil_seed"]):
            if results.set_file(*place).absolute() == file.absolute():
                found.append(rows)
    stored = sorted((store_folder() / Evaluation.stage).glob("*.safetensors"))
    for judged in [] if found else stored:
        with suppress(Damaged):
            about = peek(judged)
            if about["settings"].get("of") == artefact.settings and about["settings"].get("test"):
                found.append(pd.DataFrame(about["record"]["rows"]))
    rows = pd.concat([pd.DataFrame({"protocol": []}), *found])
    return rows[rows.protocol == "lr_chosen"]


def export_experts(
    name: str, recipe: str, folder: Path, cell_name: str | None = None, force: bool = False
) -> None:
    """Write the experts of a profile's recipe as replay_buffer_<n>.pt; train those missing.

    Raises:
        InputError: no such profile, recipe or cell; or other buffers are there (unless `force`).
    """
    engine.settle()
    chosen, store = profile(name), Store(store_folder())
    cell_name = cell_name or chosen.main_cell
    if cell_name not in chosen.cells:
        raise InputError(
            f"no cell '{cell_name}' in profile {name}: expected one of {', '.join(chosen.cells)}; "
            "correct the name"
        )
    cell = chosen.cells[cell_name]
    number = methods.n_experts(chosen, recipe)
    wanted = [methods.recipe(chosen, cell, recipe, seed) for seed in range(number)]
    ours = {f"replay_buffer_{i}.pt" for i in range(ceil(number / mtt_format.PER_FILE))}
    if others := sorted({file.name for file in folder.glob("replay_buffer_*.pt")} - ours):
        raise InputError(
            f"{folder} holds {others[0]}, which {number} experts do not fill: a reader would "
            "take both for one buffer; name another folder, or remove that file"
        )
    run.ensure(wanted, store)
    paths = (store.load(settings).tensors["path"] for settings in wanted)
    files = mtt_format.write_buffer(folder, paths, run.shapes(wanted[0]), force)
    print(f"{len(wanted)} experts '{recipe}' of {cell.data.title} in {', '.join(map(str, files))}")
