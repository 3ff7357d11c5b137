"""A set where others use it: as a Dataset of PyTorch, as a folder of PNGs by class, as a folder that Hugging Face's `datasets` reads.

n images (n, c, h, w) in the network's space, K classes. On a screen an image is its pixels in [0, 1], x = space.leave(z), clipped, for a synthetic image
may leave that range; in a PNG each is rounded to one of 256 levels besides. Only the artefact itself is exact, and a card says how far a PNG is from it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from torch import Tensor
from torch.utils.data import TensorDataset

from ddlib.data.space import Space
from ddlib.method.evaluate import trained_on
from ddlib.runs.store import Artefact, write_whole
from ddlib.settings import InputError

NO_ROWS = "No rows of an evaluation were at hand when this was written."
PROTOCOL = (
    "Test accuracy in percent of fresh networks trained on these images alone, after the last epoch, the learning rate chosen on validation images: "
    "mean ± std over networks (their number)."
)
SIZES = {
    1_000: "n<1K",
    10_000: "1K<n<10K",
    100_000: "10K<n<100K",
}  # as Hugging Face's cards word them


def dataset(held: Artefact, pixels: bool = False, hard: bool = False) -> TensorDataset:
    """A set's images, as networks see them or as `pixels` in [0, 1], each with its label: K probabilities where labels are soft, else, or if `hard`, a class."""
    return TensorDataset(
        unbounded(held).clamp(0, 1) if pixels else held.tensors["images"], trained_on(held, hard)
    )


def unbounded(held: Artefact) -> Tensor:
    """A set's images as pixels, not clipped."""
    space = {
        name.removeprefix("space."): t
        for name, t in held.tensors.items()
        if name.startswith("space.")
    }
    return Space.from_tensors(space).leave(held.tensors["images"])


def levels(held: Artefact) -> Tensor:
    """Them as a PNG keeps them, uint8."""
    return (unbounded(held).clamp(0, 1) * 255).round().byte()


@dataclass(frozen=True)
class Loss:
    """What PNGs lose, in pixels of [0, 1]: the part that is clipped, and the mean and the largest difference from the set's own pixels."""

    clipped: float
    mean: float
    largest: float

    @classmethod
    def of(cls, held: Artefact) -> Loss:
        """Measured."""
        x = unbounded(held)
        away = (levels(held) / 255 - x).abs()
        return cls(float(((x < 0) | (x > 1)).float().mean()), float(away.mean()), float(away.max()))

    @staticmethod
    def levels(away: float) -> str:
        """Such a difference in levels of 255, to the level or, below ten, to two digits."""
        return f"{255 * away:.0f}" if 255 * away >= 10 else f"{255 * away:.2g}"


def table(held: Artefact, class_names: Sequence[str]) -> pd.DataFrame:
    """A row an image: `file`, its class's name and number, and, where labels are soft, `soft`, its K probabilities. The folders' order is the classes'."""
    y, width = held.tensors["labels"].tolist(), len(str(len(class_names) - 1))
    plain = ["".join(c if c.isalnum() or c in "-_" else "_" for c in name) for name in class_names]
    counts, files = dict.fromkeys(y, 0), []
    for k in y:
        files.append(f"{k:0{width}}_{plain[k]}/{counts[k]:04}.png")
        counts[k] += 1
    rows = pd.DataFrame({"file": files, "class": [class_names[k] for k in y], "label": y})
    return rows.assign(soft=trained_on(held).tolist()) if "soft" in held.tensors else rows


def write_images(folder: Path, held: Artefact, files: Sequence[str]) -> None:
    """A PNG each, grey or in colour, in a folder that holds no others, folder by folder: whoever reads it would take two sets for one.

    Raises:
        InputError: neither one channel nor three; there are other PNGs.
    """
    channels = held.tensors["images"].shape[1]
    if channels not in (1, 3):
        raise InputError(
            f"images of {channels} channels are no PNGs: expected 1 or 3; export the set in another form"
        )
    pngs: dict[Path, bytes] = {}
    for file, image in zip(files, levels(held).permute(0, 2, 3, 1).numpy(), strict=True):
        content = io.BytesIO()
        Image.fromarray(image[..., 0] if channels == 1 else image).save(content, "PNG")
        pngs[folder / file] = content.getvalue()
    there = sorted(file for depth in ("*/*.png", "*/*/*.png") for file in folder.glob(depth))
    if others := [file for file in there if file not in pngs or file.read_bytes() != pngs[file]]:
        raise InputError(
            f"{folder} holds {len(others)} images of something else, such as {others[0]}: expected an empty folder, or this set's; write to another"
        )
    for place, png in pngs.items():
        write_whole(place, png)


def write_pngs(folder: Path, held: Artefact, class_names: Sequence[str]) -> Path:
    """<class>/<image>.png, and labels.csv, which lists them: file, class, label, and a column of probabilities a class where labels are soft."""
    rows = table(held, class_names)
    write_images(folder, held, list(rows.file))
    if "soft" in rows:
        rows = rows.drop(columns="soft").join(
            pd.DataFrame(rows.soft.tolist(), columns=[f"soft_{k}" for k in range(len(class_names))])
        )
    write_whole(folder / "labels.csv", rows.to_csv(index=False, lineterminator="\n").encode())
    return folder / "labels.csv"


def write_datasets(folder: Path, held: Artefact, class_names: Sequence[str], card: str) -> Path:
    """train/<class>/<image>.png with train/metadata.jsonl, which `datasets.load_dataset("imagefolder", data_dir=...)` reads, and the card as README.md."""
    rows = table(held, class_names).rename(columns={"file": "file_name"})
    write_images(folder, held, [f"train/{file}" for file in rows.file_name])
    lines = (json.dumps(row, ensure_ascii=False) for row in rows.to_dict("records"))
    write_whole(folder / "train" / "metadata.jsonl", ("\n".join(lines) + "\n").encode())
    write_whole(folder / "README.md", card.encode())
    return folder / "README.md"


@dataclass(frozen=True)
class About:
    """What a card says of a set, beside what the set says itself."""

    title: str
    kind: str  # of images: synthetic, or real
    made: str  # how, in a sentence
    source: str  # what it was made of, and whose that is
    licence: str  # of that
    accuracy: pd.DataFrame | None  # a row an architecture; None: no rows were at hand


def card(held: Artefact, class_names: Sequence[str], about: About) -> str:
    """The dataset card: YAML for machines, then what the set is, how it was made, what it teaches, how it is loaded, and what PNGs lose."""
    n, loss = len(held.tensors["images"]), Loss.of(held)
    soft, shape = "soft" in held.tensors, " x ".join(map(str, held.tensors["images"].shape[1:]))
    accuracy = (
        NO_ROWS
        if about.accuracy is None
        else f"{PROTOCOL}\n\n{about.accuracy.to_markdown(index=False)}"
    )
    settings = json.dumps(portable(held.settings), indent=1, ensure_ascii=False)
    return f"""{header(n, class_names, soft, about)}
# {about.title}

{n} {about.kind} images of {len(class_names)} classes ({shape}), {"with soft labels" if soft else "each labelled by its class"}, that stand for a whole training set.

Source: {about.source}. The images are derived from it: its licence holds for them (`{about.licence}`).

## How to load them

```python
from datasets import load_dataset

images = load_dataset("imagefolder", data_dir="path/of/this/folder", split="train")
images[0]["image"], images[0]["class"], images[0]["label"]{', images[0]["soft"]' if soft else ""}
```

## What they teach

{accuracy}

## How they were made

{about.made}. The learning rate to train with is {held.record["lr"]:.6g}. All settings, as ddlib has them, of places the name alone:

```json
{settings}
```

## What PNGs lose

{loss.clipped:.1%} of the numbers lay outside [0, 1] and are clipped; all are rounded to 256 levels, by half a level at most. Together that takes the
PNGs from the set's own pixels by {loss.levels(loss.mean)} of 255 levels in the mean and {loss.levels(loss.largest)} at most. The `.safetensors` file that
this folder was made of is exact, and what accuracies are of.
"""


def portable(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings for other people's eyes: of folders on the maker's machine the last name alone."""
    places = {name: Path(settings[name]).name for name in ("path", "buffer") if settings.get(name)}
    return {
        name: portable(value) if isinstance(value, dict) else value
        for name, value in settings.items()
    } | places


def header(n: int, class_names: Sequence[str], soft: bool, about: About) -> str:
    """The card's YAML; its strings are JSON's, which YAML reads."""
    lines = [
        "---",
        f"pretty_name: {json.dumps(about.title)}",
        f"license: {about.licence}",
        "task_categories: [image-classification]",
        f"size_categories: [{json.dumps(next((word for most, word in SIZES.items() if n < most), '100K<n<1M'))}]",
        "tags: [dataset-distillation, synthetic]",
        "configs: [{config_name: default, data_files: [{split: train, path: train/**}]}]",
        "dataset_info:",
        "  features:",
        "  - {name: image, dtype: image}",
        "  - {name: class, dtype: string}",
        "  - {name: label, dtype: int64}",
        *(["  - {name: soft, sequence: float64}"] if soft else []),
        f"class_names: {json.dumps(list(class_names), ensure_ascii=False)}",
        "---",
        "",
    ]
    return "\n".join(lines)
