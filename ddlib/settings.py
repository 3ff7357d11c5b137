"""Settings: what a result depends on, validated before any work, and the profiles that hold them.

A stage's settings contain the settings of the stages before it, so a distilled set names its
experts and its experts name their data. `key` hashes the whole nest: two results share a key exactly when
they were asked for in the same way. Nothing that cannot change a result (workers, progress, folders) is in here.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import torch
import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    Tag,
    ValidationError,
    model_serializer,
    model_validator,
)

PROFILES = Path(__file__).parent / "runs" / "profiles"
FORMAT = 2  # part of every key: raise it when a change of code changes results
DECODING = (
    2  # part of the key of a folder of one's own: raise it when its images come out otherwise
)
PARTS = ("train", "val", "test")
ENDING = 17 << 20  # bytes; an archive's list of entries takes less
PICTURES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")  # in capitals too

Count = Annotated[int, Field(ge=1)]
Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Strategy = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]


Model = TypeVar("Model", bound=BaseModel)


class InputError(ValueError):
    """Bad input: says what was found, what was expected and what to do."""


class Settings(BaseModel):
    """Frozen, strict, closed: an unknown key or a wrong type is an error.

    `later` names the fields that came after the first keys were given: one that is not asked for, None, is left out and changes no key.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    stage: ClassVar[str] = ""
    later: ClassVar[tuple[str, ...]] = ()

    @model_serializer(mode="wrap")
    def _without_blanks(self, fields: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {
            name: value
            for name, value in fields(self).items()
            if value is not None or name not in self.later
        }

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [
            (name, value)
            for name, value in super().__repr_args__()
            if value is not None or name not in self.later
        ]


def key(settings: Settings) -> str:
    """16 hexadecimal digits that name `settings`, whatever the order in which they were written."""
    text = json.dumps([FORMAT, settings.stage, settings.model_dump()], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def generator(*names: int | str) -> torch.Generator:
    """A random generator of its own for each use: `generator(seed, "augment", step)`.

    Adding a use shifts no other, and any step can be drawn again without drawing those before it.
    """
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


class Data(Settings):
    """Which images, cut how, shown in which space."""

    later: ClassVar[tuple[str, ...]] = ("path", "size", "contents", "space")
    name: str
    seed: int = 0  # of the split and of everything drawn while the set is made
    zca: bool = False
    path: str | None = (
        None  # of a folder of one's own, with <class>/*, or train/<class>/* and perhaps val/<class>/*, test/<class>/*
    )
    size: Count | None = None  # side of its images in pixels, once they are cut square
    contents: str | None = (
        None  # its `listing`, taken when left out: with other files it is other data, under another key
    )
    space: Literal["mtt"] | None = (
        None  # not ours but that of MTT's code, which its experts and images are in
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        own = {"path": self.path, "size": self.size}
        if self.name != "folder":
            given = [
                name
                for name, value in (own | {"contents": self.contents}).items()
                if value is not None
            ]
            if given:
                raise ValueError(
                    f"{' and '.join(given)} given with data '{self.name}', but only 'folder' has them: leave them out, or set `name: folder`"
                )
            return self
        if lacking := [name for name, value in own.items() if value is None]:
            raise ValueError(
                f"data 'folder' lacks {' and '.join(lacking)}: expected `path`, where the images lie, and `size`, their side in pixels"
            )
        if self.contents is None:
            self.__dict__["contents"] = listing(Path(self.path))  # frozen from here on
        return self

    @property
    def title(self) -> str:
        """What people call it: a folder of one's own by its own name."""
        return Path(self.path).name if self.path else self.name


def parts_in(folder: Path) -> dict[str, Path]:
    """Where the parts of a folder of one's own lie, each with a folder a class: in train, val and test, if any of these is there; else all of it is to train."""
    return {part: folder / part for part in PARTS if (folder / part).is_dir()} or {"train": folder}


def pictures(folder: Path) -> list[Path]:
    """The images that lie in `folder` itself, by name."""
    return sorted(
        file
        for file in folder.iterdir()
        if file.suffix.lower() in PICTURES and not file.name.startswith(".")
    )


def listing(folder: Path) -> str:
    """16 hexadecimal digits that name the images of a folder by relative path and size in bytes, and the way in which they are decoded.

    Raises:
        ValueError: there are none.
    """
    files = [
        file
        for part in parts_in(folder).values()
        for home in sorted(part.glob("*/"))
        for file in pictures(home)
    ]
    if not files:
        raise ValueError(
            f"no images in {folder.absolute()}: expected <class>/* or train/<class>/*, with names that end in {', '.join(PICTURES)}; correct `path`"
        )
    text = json.dumps(
        [DECODING, [(file.relative_to(folder).as_posix(), file.stat().st_size) for file in files]]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def buffer_files(path: Path) -> list[Path]:
    """The files of a buffer: `path` itself, or the replay_buffer_<n>.pt in it, by number.

    Raises:
        InputError: there are none.
    """
    if not path.is_dir():
        if not path.is_file():
            raise InputError(
                f"no buffer {path.absolute()}: expected a replay_buffer_<n>.pt, or the folder of several; correct `buffer`"
            )
        return [path]
    numbered = {
        int(found[1]): file
        for file in path.iterdir()
        if (found := re.fullmatch(r"replay_buffer_([0-9]+)\.pt", file.name))
    }
    if not numbered:
        raise InputError(f"no replay_buffer_<n>.pt in {path.absolute()}: correct `buffer`")
    return [numbered[n] for n in sorted(numbered)]


def fingerprint(buffer: Path) -> str:
    """16 hexadecimal digits that name a buffer's contents, by names, sizes and how each file ends: there a `.pt` archive lists the checksums of all that it holds."""
    text = json.dumps(
        [
            (
                file.name,
                (about := file.stat()).st_size,
                _ending(file, about.st_size, about.st_mtime_ns),
            )
            for file in buffer_files(buffer)
        ]
    )
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@lru_cache(maxsize=1024)
def _ending(file: Path, size: int, changed: int) -> str:
    with file.open("rb") as held:
        held.seek(max(0, size - ENDING))
        return hashlib.sha256(held.read(ENDING)).hexdigest()


class Network(Settings):
    architecture: Literal["convnet", "alexnet", "vgg11", "resnet18", "resnet18_ap", "vit"] = (
        "convnet"
    )
    width: Count = 128
    depth: Count = 3  # of a convnet; the others have their own
    precision: Literal["float32", "bfloat16"] = (
        "float32"  # bfloat16: automatic mixed precision, for devices that have it
    )


class OnData(Settings):
    """A network on a data set."""

    data: Data
    network: Network = Network()


class Recipe(Settings):
    """How to train a network; the defaults are those of the experts."""

    optimiser: Literal["sgd", "momentum", "adam"] = "momentum"
    lr: Positive = 0.003
    weight_decay: Size = 0.001
    batch: Count = 256
    epochs: Count = 50  # E
    drop: Positive = 0.6  # lr factor after epoch index E // 2 + 1, where the optimiser restarts
    ramp: Literal["none", "loss", "lr"] = "none"  # clipping loss; "lr": its control, a warm-up
    ramp_epochs: Count = 10  # epochs until the factor, 0.5 at first, is 1
    penalty: Literal["none", "per_pixel", "per_sample"] = "none"
    penalty_weight: Size = 2.0  # lambda
    penalty_target: Size = 1.0  # the norm that the penalty pulls towards
    # rho: the gradient is taken this far uphill (FTD's experts; the authors' code: 0.01)
    sharpness: Positive | None = None
    # alpha: how much of the orthogonal part of the gradient is removed (GSAM; FTD's code: 0.4)
    sharpness_alpha: Positive | None = None
    strategies: Annotated[tuple[Strategy, ...], Field(strict=False)] = (
        "color",
        "crop",
        "cutout",
        "flip",
        "scale",
        "rotate",
    )


class Expert(Recipe, OnData):
    """One expert network: its recipe, and the seed of its start, batches and augmentation."""

    stage: ClassVar[str] = "experts"
    later: ClassVar[tuple[str, ...]] = ("sharpness", "sharpness_alpha")
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.sharpness_alpha is not None and self.sharpness is None:
            raise ValueError(
                f"sharpness_alpha = {self.sharpness_alpha:g} without `sharpness`, whose steps it "
                "corrects: set `sharpness`, or leave it out"
            )
        return self


class Imported(Settings):
    """One expert that was trained elsewhere: a trajectory of a buffer in MTT's form."""

    stage: ClassVar[str] = "experts"
    data: Data
    network: Network = Network()
    buffer: str  # a replay_buffer_<n>.pt, or the folder of several
    epochs: Count = 50  # E; the buffer holds E + 1 snapshots of each
    contents: str | None = (
        None  # the buffer's `fingerprint`, taken when left out: with other contents it is another expert, under another key
    )
    seed: int = 0  # which trajectory, from 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.network.architecture != "convnet":
            raise ValueError(
                f"a buffer of {self.network.architecture} cannot be imported: only a convnet's parameters are known to mean the same there; set `network`"
            )
        if self.contents is None:
            self.__dict__["contents"] = fingerprint(Path(self.buffer))  # frozen from here on
        return self


def _origin(expert: Any) -> str:
    """Which of the two kinds of expert is meant."""
    return (
        "imported"
        if (expert.get("buffer") if isinstance(expert, dict) else getattr(expert, "buffer", None))
        else "trained"
    )


AnyExpert = Annotated[
    Annotated[Expert, Tag("trained")] | Annotated[Imported, Tag("imported")], Discriminator(_origin)
]


class Selection(Settings):
    """Images to start from, or to train on as they are: a coreset is an initialisation with nothing after it."""

    stage: ClassVar[str] = "selections"
    data: Data
    method: Literal["noise", "real", "correct", "representative", "herding", "k_center", "all"]
    ipc: Count = 1  # images per class
    expert: AnyExpert | None = None  # whose features the selection looks at
    features: Literal["logits", "penultimate"] = "logits"
    centres: Count | None = None  # k-means centres a class; None: as many as images
    lr: Positive = 0.01  # to train on the selection with: nothing is learned here
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (
            self.method in ("correct", "representative", "herding", "k_center")
            and self.expert is None
        ):
            raise ValueError(
                f"initialisation '{self.method}' looks at an expert's features, but no expert is given: set `expert`"
            )
        if self.method == "correct" and self.features != "logits":
            raise ValueError(
                f"initialisation 'correct' with features '{self.features}': expected 'logits', which say what an expert takes an image for; leave it out"
            )
        if self.centres and (self.method != "representative" or self.ipc % self.centres):
            raise ValueError(
                f"centres = {self.centres} with ipc = {self.ipc}: expected a divisor of ipc, with 'representative'; leave `centres` out to have one centre an image"
            )
        return self


class Distillation(Settings):
    """The outer loop, its student and what it follows."""

    stage: ClassVar[str] = "sets"
    later: ClassVar[tuple[str, ...]] = (
        "first_start",
        "early_epochs",
        "growth",
        "ema",
        "labels",
        "lr_labels",
    )
    experts: AnyExpert  # their recipe, or their buffer; expert i takes seed i
    n_experts: Count = 100
    start: Selection
    inner_steps: Count = 20  # N
    matched_epochs: Count = 2  # M
    start_epochs: Count = 20  # T_max: s ~ U{0 ... T_max - 1}
    first_start: Count | None = None  # DATM's T-: s ~ U{T- ... T_max - 1}; None: 0
    early_epochs: Count | None = (
        None  # DATM's T: what T_max is in the first iteration, from where it grows to `start_epochs`, DATM's T+
    )
    growth: Count | None = None  # outer iterations until it is there
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9  # mu of the inner loop
    batch: Count | None = None  # synthetic images an inner step; None: all
    balance: bool = False  # balanced inner-loop loss
    perturbation: Size = 0.0  # alpha; 0: none
    perturbation_form: Literal["elementwise", "norm_matched"] = "elementwise"
    intermediate: Literal["none", "equal", "adaptive"] = "none"
    lr_images: Positive = 1000.0
    lr_lr: Size = 1e-5  # of the inner lr, in the published unit (a step on a, not on log a)
    a0: Positive = 0.01
    iterations: Count = 5000
    checks: Count = 10  # looks at the validation split, evenly spaced, the last at the end
    check_epochs: Count = 300
    gradient: Literal["adjoint", "unroll", "tesla"] = "adjoint"
    ema: Annotated[float, Field(gt=0, lt=1)] | None = (
        None  # decay of the average of S over the iterations, which is what is kept (FTD; its authors' scripts: 0.9995)
    )
    labels: Literal["learned", "expert"] | None = (
        None  # soft ones: learned, from an expert's on (DATM), or the followed expert's own (TESLA); None: classes
    )
    lr_labels: Positive | None = (
        None  # of their logits (DATM's settings: 2 at ten images a class of CIFAR-10, 5 at one)
    )
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        n, m, t, e = self.inner_steps, self.matched_epochs, self.start_epochs, self.experts.epochs
        if n < m:
            raise ValueError(
                f"inner_steps N = {n} is below matched_epochs M = {m}: every matched epoch needs a step of its own; raise N or lower M"
            )
        if t - 1 + m > e:
            raise ValueError(
                f"start_epochs T_max = {t} with matched_epochs M = {m} reaches expert epoch {t - 1 + m}, but the experts have {e}: lower T_max or M, or train longer"
            )
        if self.experts.data != self.start.data:
            raise ValueError(
                f"experts saw {self.experts.data} but the start images come from {self.start.data}: give both the same data"
            )
        if self.checks > self.iterations:
            raise ValueError(
                f"checks = {self.checks} is above iterations = {self.iterations}: lower it"
            )
        self._window()
        if (self.labels == "learned") != (self.lr_labels is not None):
            raise ValueError(
                f"labels = {self.labels} with lr_labels = {self.lr_labels}: 'learned' labels, and no others, have an lr: set it, or leave it out"
            )
        return self

    def _window(self) -> None:
        first, early, last = (
            self.first_start or 0,
            self.early_epochs or self.start_epochs,
            self.start_epochs,
        )
        if (self.early_epochs is None) != (self.growth is None):
            raise ValueError(
                f"early_epochs = {self.early_epochs} with growth = {self.growth}: set both, from where and in how many iterations T_max grows, or neither"
            )
        if not first < early <= last:
            raise ValueError(
                f"the start epoch is drawn from first_start = {first} on, below early_epochs = {early} at first and start_epochs = {last} at last: "
                "expected first_start < early_epochs <= start_epochs"
            )

    @property
    def network(self) -> Network:
        """The student's: that of its experts."""
        return self.experts.network


LOOPS = {
    1: (1, 1),
    10: (10, 50),
    20: (20, 25),
    30: (30, 20),
    40: (40, 15),
    50: (50, 10),
}  # IPC -> outer, inner of DC and DSA, as their authors' code has them


class Condensation(Settings):
    """The outer loop of DC, DSA and DM, which follow no expert and learn no lr; defaults are DC's and DSA's, from the authors' code."""

    stage: ClassVar[str] = "sets"
    batch: ClassVar[int] = 256  # synthetic images a step of a network's training
    ema: ClassVar[None] = None  # no average is kept, and labels stay hard
    labels: ClassVar[None] = None
    start: Selection
    network: Network = Network()
    method: Literal["dc", "dsa", "dm"]
    outer: Count | None = None  # steps on the images with each network; None: as published
    inner: Count | None = (
        None  # epochs between them that the network trains on the images; None: as published
    )
    iterations: Count = 1000  # networks, each drawn anew; DM: 20 000
    checks: Count = 10  # looks at the validation split, evenly spaced, the last at the end
    check_epochs: Count = 300
    lr_images: Positive = 0.1  # DM: 1
    batch_real: Count = (
        256  # real images of a class beside its synthetic ones; all, where there are fewer
    )
    lr_net: Positive = 0.01  # of the training between steps
    seed: int = 0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.method == "dm" and not {self.outer, self.inner} <= {None, 1}:
            raise ValueError(
                f"outer = {self.outer}, inner = {self.inner}, but dm takes one step with each network and trains none: leave them out"
            )
        if self.checks > self.iterations:
            raise ValueError(
                f"checks = {self.checks} is above iterations = {self.iterations}: lower it"
            )
        if None in (self.outer, self.inner):
            published = (1, 1) if self.method == "dm" else LOOPS.get(self.start.ipc)
            if not published:
                raise ValueError(
                    f"no outer and inner are published for ipc = {self.start.ipc}, only for {', '.join(map(str, LOOPS))}: give both"
                )
            self.__dict__.update(
                outer=self.outer or published[0], inner=self.inner or published[1]
            )  # frozen from here on
        return self

    @property
    def a0(self) -> float:
        """The lr to train on the images with: the start's."""
        return self.start.lr


Distilled = Distillation | Condensation  # all that an outer loop makes


class Evaluation(Settings):
    """Fresh networks trained on a set, and what they score."""

    stage: ClassVar[str] = "rows"
    later: ClassVar[tuple[str, ...]] = ("labels",)
    of: Distillation | Condensation | Selection
    network: Network
    networks: Count = 5
    epochs: Count = 1000
    batch: Count = 256
    weight_decay: Size = 5e-4
    factors: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = (
        0.1,
        0.3,
        1.0,
    )  # of a, chosen on validation
    search_networks: Count = 1  # networks a factor while choosing
    test: bool = True  # False while tuning: the test images stay unseen
    looks: Count = 5  # looks at the accuracy along the way, for the best-of columns
    labels: Literal["hard"] | None = (
        None  # the classes, though the set has soft labels; None: the set's own
    )
    strategies: Annotated[tuple[Strategy, ...], Field(strict=False)] = (
        "color",
        "crop",
        "cutout",
        "flip",
        "scale",
        "rotate",
    )


class Following(Settings):
    """A student that walks an expert's whole way on a distilled set, never put back on its path: its error accumulates."""

    stage: ClassVar[str] = "followings"
    of: Distillation


class Continual(Settings):
    """A network that learns the classes task by task, and replays a set's images of those before."""

    stage: ClassVar[str] = "continual"
    data: Data
    memory: Distillation | Condensation | Selection | None = (
        None  # of what is kept of every class once it was learned; None: nothing
    )
    network: Network
    tasks: Count = 5  # of equal numbers of classes, in their order
    epochs: Count = 1  # a task; once: the images come as a stream
    batch: Count = 64
    lr: Positive = 0.01
    weight_decay: Size = 5e-4
    strategies: Annotated[tuple[Strategy, ...], Field(strict=False)] = (
        "color",
        "crop",
        "cutout",
        "flip",
        "scale",
        "rotate",
    )
    seed: int = 0  # of the network, and of order and augmentation in every epoch

    @model_validator(mode="after")
    def _check(self) -> Self:
        held = (
            self.memory.data
            if isinstance(self.memory, Selection)
            else self.memory.start.data
            if self.memory
            else self.data
        )
        if held != self.data:
            raise ValueError(
                f"the tasks are of {self.data} but the memory's images of {held}: give both the same data"
            )
        return self


class Film(Settings):
    """The images of a distillation on their way. Its outer loop is run again without looks, which change nothing: each frame is a state that the set was in."""

    stage: ClassVar[str] = "films"
    of: Distillation
    frames: Count = 50  # after the start, evenly spaced, the last at the end; one an iteration, where there are fewer
    shown: Count = 10  # classes, the first; of each its first image

    @property
    def iterations(self) -> int:
        """Of the outer loop."""
        return self.of.iterations


class Measurement(Settings):
    """Memory and time of one outer gradient, taken once in a process of its own."""

    stage: ClassVar[str] = "measurements"
    network: Network
    data: Data
    ipc: Count
    gradient: Literal["adjoint", "unroll"]
    inner_steps: Count
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9


def models(annotation: Any) -> set[type[BaseModel]]:
    """The models that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for inner in get_args(annotation) for model in models(inner)}


def keys_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that may stand beside the last of `place`, a way into `kind`."""
    here = {kind}
    for step in place[
        :-1
    ]:  # one that names no field is a key of a mapping, or one of several forms
        here = {
            model
            for one in here
            if step in one.model_fields
            for model in models(one.model_fields[step].annotation)
        } or here
    return sorted({name for one in here for name in one.model_fields})


def complain(error: ValidationError, where: str, kind: type[BaseModel]) -> InputError:
    """Pydantic's findings as one message: where, what was found, what was expected, what to do."""
    lines = []
    for e in error.errors():
        place = ".".join(str(p) for p in e["loc"]) or "settings"
        found = "" if e["type"] in ("missing", "value_error") else f" (found {e['input']!r})"
        advice = e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            advice = f"unknown key: check its spelling, or remove it; expected one of {', '.join(keys_at(kind, e['loc']))}"
        lines.append(f"  {place}: {advice}{found}")
    return InputError(
        f"{where} cannot be used:\n"
        + "\n".join(lines)
        + f"\ncorrect {'this line' if len(lines) == 1 else 'these lines'}"
    )


class Cell(Settings):
    """One data set at one IPC: what its methods share, and what was tuned for each on the validation split."""

    data: Data
    ipc: Count
    methods: Annotated[tuple[str, ...], Field(strict=False)]
    seeds: Count | None = None  # distillation seeds; None: as many as the profile has
    student: dict[
        str, Any
    ] = {}  # fields of Distillation, for every method; of Condensation those that it has too
    tuned: dict[
        str, dict[str, Any]
    ] = {}  # method -> fields of what it runs, before its switches; `init`: another initialisation than the method's
    coreset_lr: Positive = 0.01  # a for sets that learn none
    evaluation: dict[str, Any] = {}  # fields of Evaluation


class Group(Settings):
    """Methods that each differ from `base` in one thing."""

    base: str
    methods: Annotated[tuple[str, ...], Field(strict=False)]
    cell: str | None = None  # None: that of the other groups
    seeds: Count | None = None  # distillation seeds; None: as many as the cell has


class Ablation(Settings):
    """One thing changed at a time, group by group, beside what it was changed from."""

    cell: str
    networks: Count = 3
    groups: Annotated[tuple[str, ...], Field(strict=False)] = (
        "AST minus one",
        "controls",
    )  # of those that `studies.GROUPS` knows
    more: dict[str, Group] = {}  # groups of the profile's own


class Cross(Settings):
    """Sets made with one architecture, judged by others."""

    cells: Annotated[tuple[str, ...], Field(strict=False, min_length=1)]
    methods: Annotated[tuple[str, ...], Field(strict=False)]
    networks: list[Network]
    seeds: Count = 3
    evaluation: dict[str, Any] = {}


class Ceiling(Settings):
    """Training on the whole training set."""

    lr: Positive
    evaluation: dict[str, Any] = {}


class Trial(Settings):
    """What is tried on a cell while tuning: every method gets the same number of candidates and the same budget."""

    cell: str
    choosing: Literal["settings", "method"] = (
        "settings"  # the best candidate of each method, or the best method
    )
    seeds: Count = 1
    budget: dict[str, Any] = {}  # fields of Distillation, or of Condensation
    evaluation: dict[str, Any] = {}  # fields of Evaluation
    candidates: dict[str, list[dict[str, Any]]]  # method -> fields of what it runs


class Profile(Settings):
    """All that a paper needs to know; the same notebooks run under every profile."""

    title: str
    network: Network
    recipes: dict[
        str, dict[str, Any]
    ]  # expert recipe -> fields of Expert; of Imported, if one of them is `buffer`
    n_experts: Count
    seeds: Count  # distillation seeds
    evaluation: dict[str, Any]
    cells: dict[str, Cell]  # the first is the main one
    ablation: Ablation
    cross_architecture: Cross
    ceiling: Ceiling
    variants: dict[
        str, dict[str, Any]
    ] = {}  # methods of the profile's own: name -> `of`, the method that is changed, and what is changed in it
    tuning: list[Trial] = []


def profiles() -> list[str]:
    """The profiles that come with the library; a file whose name begins with _ is only extended by others."""
    return sorted(p.stem for p in PROFILES.glob("[!_]*.yaml"))


def profile(name: str) -> Profile:
    """The profile of that name, or of that YAML file.

    Raises:
        InputError: no such profile, or it holds what no profile may.
    """
    file = Path(name) if name.endswith((".yaml", ".yml")) else PROFILES / f"{name}.yaml"
    if not file.exists():
        raise InputError(
            f"no profile '{name}': expected one of {', '.join(profiles())}, or the path of a YAML file; correct the name, or write that file"
        )
    return validated(Profile, fields_of(file), f"profile {name}")


def fields_of(file: Path, inside: tuple[Path, ...] = ()) -> Any:
    """What a profile's file says, over what those that it `extends` say, in their order.

    Raises:
        InputError: no YAML, or it extends what is not there, or itself.
    """
    try:
        fields = yaml.safe_load(file.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, OSError) as error:
        raise InputError(
            f"profile {file.stem} is no YAML: {error}\nexpected `name: value` lines as in {PROFILES / 'smoke.yaml'}; correct {file}"
        ) from None
    if not isinstance(fields, dict):
        return fields
    bases = fields.pop("extends", [])
    merged: dict[str, Any] = {}
    for base in [bases] if isinstance(bases, str) else bases:
        other = file.parent / f"{base}.yaml"
        other = other if other.exists() else PROFILES / f"{base}.yaml"
        if not other.exists() or other in (*inside, file):
            fault = "which extends it" if other.exists() else "which is not there"
            raise InputError(
                f"profile {file.stem} extends '{base}', {fault}: name a profile beside it or of the library"
            )
        merged = over(merged, fields_of(other, (*inside, file)))
    return over(merged, fields)


def over(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """`above` laid over `below`, key by key where both hold mappings."""
    both = {
        k: over(below[k], v) if isinstance(v, dict) and isinstance(below.get(k), dict) else v
        for k, v in above.items()
    }
    return below | both


def validated(kind: type[Model], fields: Any, where: str) -> Model:
    """`kind` from plain fields, or a InputError that lists every fault.

    Raises:
        InputError: unknown keys, wrong types, values out of range or that do not go together.
    """
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise complain(error, where, kind) from None
