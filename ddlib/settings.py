"""Settings: what a result depends on, validated before any work.

The settings of a stage contain those of the stages before it: a distilled set names its experts,
and its experts name their data. `key` hashes the whole nest, so two results share a key exactly
when they were asked for in the same way. Workers, progress and folders are not in here: they change
no result. Validation reads no disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from ddlib.base import (
    Count,
    Data,
    Few,
    InputError,
    Network,
    Positive,
    Settings,
    Task,
    generator,
    key,
    validated,
)

Size = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
LRS = (0.001, 0.003, 0.01, 0.03, 0.1)
Strategy = Literal["color", "crop", "cutout", "flip", "scale", "rotate"]
Strategies = Annotated[tuple[Strategy, ...], Field(strict=False)]
EVERY_STRATEGY: Strategies = ("color", "crop", "cutout", "flip", "scale", "rotate")


class OnData(Task):
    """A network on a data set."""

    data: Data
    network: Network = Network()

    def at(self, seed: int) -> Self:
        """The same under another seed."""
        return self.model_copy(update={"seed": seed})


class Recipe(Settings):
    """How a network is trained. The defaults are those of AST's experts."""

    optimiser: Literal["sgd", "momentum", "adam"] = "momentum"  # momentum: SGD with 0.9
    lr: Positive = 0.003
    weight_decay: Size = 0.001
    batch: Count = 256
    epochs: Count = 50  # E
    until: Count | None = None  # only the first so many of them are trained
    drop: Positive = 0.6  # lr factor after epoch index E // 2 + 1, where the optimiser restarts
    ramp: Literal["none", "loss", "lr"] = "none"  # "loss": clipping loss; "lr": a plain warm-up
    ramp_epochs: Count = 10  # epochs until the factor, 0.5 at first, is 1
    penalty: Literal["none", "per_pixel", "per_sample"] = "none"
    penalty_weight: Size = 2.0  # lambda
    penalty_target: Size = 1.0  # the norm that the penalty pulls towards
    # rho: the gradient is taken so far uphill (FTD's experts; 0.01 in its authors' code)
    sharpness: Positive | None = None
    # alpha: the share of g's orthogonal part that is taken away (GSAM; FTD's authors' code: 0.4)
    sharpness_alpha: Positive | None = None
    strategies: Strategies = EVERY_STRATEGY  # of augmentation

    def faults(self) -> Iterator[str]:
        if self.sharpness_alpha is not None and self.sharpness is None:
            yield "sharpness_alpha is given without `sharpness`: set that, or leave it out"
        if self.until is not None and self.until > self.epochs:
            found = f"until = {self.until} is beyond epochs = {self.epochs}"
            yield f"{found}: lower it, or leave it out"


class Expert(Recipe, OnData):
    """One expert: its recipe, and the seed of its initialisation, batches and augmentation."""

    stage: ClassVar[str] = "experts"
    words: ClassVar[str] = "expert {s.optimiser} {s.seed} on {s.data.title}"
    later: ClassVar[tuple[str, ...]] = ("sharpness", "sharpness_alpha", "until")
    seed: int = 0


class Imported(OnData):
    """One expert that was trained elsewhere: a trajectory of a buffer in MTT's form."""

    stage: ClassVar[str] = "experts"
    words: ClassVar[str] = "expert {s.seed} of {s.buffer} on {s.data.title}"
    buffer: str  # a replay_buffer_<n>.pt, or the folder of several
    epochs: Count = 50  # E; the buffer holds E + 1 snapshots of each
    until: ClassVar[None] = None  # all of them are read
    contents: str | None = None  # names its contents; filled by `data.mtt_format.identify`
    seed: int = 0  # which trajectory, from 0

    def faults(self) -> Iterator[str]:
        if (kind := self.network.architecture) != "convnet":
            yield f"a buffer of {kind} cannot be imported, only one of a convnet: set `network`"


def _origin(expert: Any) -> str:
    """Which of the two kinds of expert is meant."""
    buffer = expert.get("buffer") if isinstance(expert, dict) else getattr(expert, "buffer", None)
    return "imported" if buffer else "trained"


AnyExpert = Annotated[
    Annotated[Expert, Tag("trained")] | Annotated[Imported, Tag("imported")], Discriminator(_origin)
]
NEED_EXPERT = ("correct", "representative", "herding", "k_center")  # selections that use features
Choice = Literal[
    "noise", "real", "correct", "representative", "herding", "k_center", "all", "given"
]


class Selection(Task):
    """Images to start from, or to train on as they are (a coreset)."""

    stage: ClassVar[str] = "selections"
    words: ClassVar[str] = "{s.method} images, ipc {s.ipc}, seed {s.seed}, of {s.data.title}"
    later: ClassVar[tuple[str, ...]] = ("contents",)
    data: Data
    method: Choice
    ipc: Count = 1  # images per class
    expert: AnyExpert | None = None  # whose features the selection uses
    features: Literal["logits", "penultimate"] = "logits"
    centres: Count | None = None  # k-means centres per class; None: as many as images
    lr: Positive = 0.01  # to train on the selection with: nothing is learned here
    contents: str | None = None  # names a set that was handed over ("given")
    seed: int = 0

    def faults(self) -> Iterator[str]:
        if self.expert is None and self.method in NEED_EXPERT:
            yield f"selection '{self.method}' uses the features of an expert: set `expert`"
        if (self.method == "given") != (self.contents is not None):
            yield "'given' images are those of a set that distil or merge is handed: hand one over"
        if self.method == "correct" and self.features != "logits":
            found = f"selection 'correct' with features '{self.features}'"
            yield f"{found}: expected 'logits'; leave it out"
        if self.centres and (self.method != "representative" or self.ipc % self.centres):
            yield (
                f"centres = {self.centres} with ipc = {self.ipc}: expected a divisor of ipc, with "
                "'representative'; leave `centres` out to have one centre per image"
            )

    @property
    def network(self) -> Network | None:
        """The network whose features are used, if any."""
        return self.expert.network if self.expert else None

    def needs(self) -> list[Task]:
        return [self.expert] if self.expert else []


class OuterLoop(Task):
    """What every outer loop has: a start, and images that are moved from there."""

    stage: ClassVar[str] = "sets"

    @property
    def data(self) -> Data:
        """The data that the set stands for."""
        return self.start.data  # type: ignore[attr-defined]

    @property
    def ipc(self) -> int:
        """Images per class."""
        return self.start.ipc  # type: ignore[attr-defined]

    def faults(self) -> Iterator[str]:
        checks, iterations = self.checks, self.iterations  # type: ignore[attr-defined]
        if checks > iterations:
            yield f"checks = {checks} is above iterations = {iterations}: lower it"


class Distillation(OuterLoop):
    """Trajectory matching: the outer loop, its student, and the experts that it follows."""

    words: ClassVar[str] = "distilling ipc {s.ipc}, seed {s.seed}, of {s.data.title}"
    later: ClassVar[tuple[str, ...]] = ("first_start", "early_epochs", "growth", "convex")
    later += ("ema", "labels", "lr_labels")
    experts: AnyExpert  # their recipe, or their buffer; expert i has seed i
    n_experts: Few = 100
    start: Selection
    inner_steps: Count = 20  # N
    matched_epochs: Count = 2  # M
    start_epochs: Count = 20  # T_max: s ~ U{0 ... T_max - 1}
    first_start: Count | None = None  # DATM's T-: s ~ U{T- ... T_max - 1}; None: 0
    early_epochs: Count | None = None  # DATM's T: T_max at first; it grows to `start_epochs`, T+
    growth: Count | None = None  # outer iterations until T_max has grown
    convex: Literal[True] | None = None  # follow straight lines from first to last (MCT)
    momentum: Fraction = 0.9  # mu of the inner loop
    batch: Count | None = None  # synthetic images per inner step; None: all
    balance: bool = False  # balanced inner-loop loss
    perturbation: Size = 0.0  # alpha; 0: none
    perturbation_form: Literal["elementwise", "norm_matched"] = "elementwise"
    intermediate: Literal["none", "equal", "adaptive"] = "none"
    lr_images: Positive = 1000.0
    lr_lr: Size = 1e-5  # of the inner lr, in the published unit (a step on a, not on log a)
    a0: Positive = 0.01
    iterations: Count = 5000
    checks: Count = 10  # evaluations on the validation split, evenly spaced, the last at the end
    check_epochs: Count = 300
    gradient: Literal["adjoint", "unroll", "tesla"] = "adjoint"
    # decay of the average of S over the iterations, which is what is kept (FTD's scripts: 0.9995)
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None
    labels: Literal["learned"] | None = None  # soft labels that start from an expert's (DATM)
    lr_labels: Positive | None = None  # of their logits (DATM: 5 at IPC 1 of CIFAR-10, 2 at IPC 10)
    seed: int = 0

    def faults(self) -> Iterator[str]:
        yield from super().faults()
        n, m, t = self.inner_steps, self.matched_epochs, self.start_epochs
        e = self.experts.until or self.experts.epochs
        if n < m:
            yield (
                f"inner_steps N = {n} is below matched_epochs M = {m}: every matched epoch needs a "
                "step of its own; raise N or lower M"
            )
        if t - 1 + m > e:
            yield (
                f"start_epochs T_max = {t} with matched_epochs M = {m} reaches epoch {t - 1 + m}, "
                f"but the experts have {e}: lower T_max or M, or train longer"
            )
        if (seen := self.experts.data) != self.start.data:
            both = f"experts saw {seen} but the start images come from {self.start.data}"
            yield f"{both}: give both the same data"
        if (self.labels == "learned") != (self.lr_labels is not None):
            yield (
                f"labels = {self.labels} with lr_labels = {self.lr_labels}: 'learned' labels, and "
                "no others, have an lr: set it, or leave it out"
            )
        if (self.early_epochs is None) != (self.growth is None):
            yield (
                f"early_epochs = {self.early_epochs} with growth = {self.growth}: set both, from "
                "where and in how many iterations T_max grows, or neither"
            )
        first, early = self.first_start or 0, self.early_epochs or t
        if not first < early <= t:
            yield (
                f"first_start = {first}, early_epochs = {early}, start_epochs = {t}: expected "
                "first_start < early_epochs <= start_epochs"
            )

    @property
    def network(self) -> Network:
        """The student's."""
        return self.experts.network

    def needs(self) -> list[Task]:
        return [self.start, *(self.experts.at(i) for i in range(self.n_experts))]


# IPC -> outer, inner of DC and DSA, as their authors' code has them
LOOPS = {1: (1, 1), 10: (10, 50), 20: (20, 25), 30: (30, 20), 40: (40, 15), 50: (50, 10)}


class Condensation(OuterLoop):
    """DC, DSA and DM, which follow no expert and learn no lr. Defaults: their authors' code."""

    words: ClassVar[str] = "condensing by {s.method}, ipc {s.ipc}, seed {s.seed}, of {s.data.title}"
    batch: ClassVar[int] = 256  # synthetic images per step of a network's training
    ema: ClassVar[None] = None  # no average is kept, and labels stay hard
    labels: ClassVar[None] = None
    start: Selection
    network: Network = Network()
    method: Literal["dc", "dsa", "dm"]
    outer: Count | None = None  # steps on the images with each network; None: as published
    inner: Count | None = None  # epochs of training between them; None: as published
    iterations: Count = 1000  # networks, each drawn anew; DM: 20 000
    checks: Count = 10  # evaluations on the validation split, evenly spaced, the last at the end
    check_epochs: Count = 300
    lr_images: Positive = 0.1  # DM: 1
    batch_real: Count = 256  # real images of a class beside its synthetic ones, at most
    lr_net: Positive = 0.01  # of the training between steps
    seed: int = 0

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, fields: Any) -> Any:
        """Fill `outer` and `inner` with the published numbers where they are not given."""
        if not isinstance(fields, dict) or not {"method", "start"} <= fields.keys():
            return fields
        start, method = fields["start"], fields["method"]
        ipc = start.get("ipc", 1) if isinstance(start, dict) else getattr(start, "ipc", 1)
        published = (1, 1) if method == "dm" else LOOPS.get(ipc)
        given = (fields.get("outer"), fields.get("inner"))
        if method == "dm" and not set(given) <= {None, 1}:
            raise ValueError(
                f"outer = {given[0]}, inner = {given[1]}, but dm takes one step with each network "
                "and trains none: leave them out"
            )
        if published is None and None in given:
            raise ValueError(
                f"no outer and inner are published for ipc = {ipc}, only for "
                f"{', '.join(map(str, LOOPS))}: give both"
            )
        both = zip(("outer", "inner"), given, published or given, strict=True)
        return fields | {name: p if g is None else g for name, g, p in both}

    @property
    def a0(self) -> float:
        """The lr to train on the images with: the start's."""
        return self.start.lr

    def needs(self) -> list[Task]:
        return [self.start]


Distilled = Distillation | Condensation  # all that an outer loop makes
AnySet = Distillation | Condensation | Selection


class OfSet(Task):
    """A task about one set."""

    @property
    def data(self) -> Data:
        """The data that the set stands for."""
        return self.of.data  # type: ignore[attr-defined]

    def needs(self) -> list[Task]:
        return [self.of]  # type: ignore[attr-defined]


# How a published method judges its sets; arXiv 2006.05929 and 2102.08259, by their authors' code.
PUBLISHED = {"lrs": (0.01,), "batch": 256, "weight_decay": 5e-4, "images": "last"}
PROTOCOLS: dict[str, dict[str, Any]] = {
    "ours": {},  # whatever the fields say
    "dc": {"epochs": 300, "strategies": (), **PUBLISHED},
    "dsa": {"epochs": 1000, "strategies": EVERY_STRATEGY, **PUBLISHED},
}


class Evaluation(OfSet):
    """Fresh networks trained on a set, and what they score."""

    stage: ClassVar[str] = "rows"
    words: ClassVar[str] = "{s.network.architecture} on {s.of.title}"
    later: ClassVar[tuple[str, ...]] = ("labels", "teacher")
    of: Distillation | Condensation | Selection
    network: Network
    protocol: Literal["ours", "dc", "dsa"] = "ours"  # of others: fills the fields of PROTOCOLS
    networks: Few = 5
    epochs: Count = 1000
    batch: Count = 256
    weight_decay: Size = 5e-4
    # the same for every method; the best on validation images is taken, beyond an end if need be
    lrs: Annotated[tuple[Positive, ...], Field(strict=False, min_length=1)] = LRS
    search_networks: Few = 1  # networks per lr while choosing
    test: bool = True  # False while tuning: the test images stay unseen
    looks: Count = 5  # evaluations along the way, for the best-of columns
    images: Literal["chosen", "last"] = "chosen"  # by the validation split, or of the last check
    labels: Literal["hard"] | None = None  # the classes, though the set has soft labels
    teacher: AnyExpert | None = None  # its predictions, fixed and soft, replace the set's labels
    strategies: Strategies = EVERY_STRATEGY

    @model_validator(mode="before")
    @classmethod
    def _as_published(cls, fields: Any) -> Any:
        """Fill in what the protocol says; other numbers are refused."""
        name = fields.get("protocol", "ours") if isinstance(fields, dict) else "ours"
        fixed = PROTOCOLS.get(name, {}) if isinstance(name, str) else {}
        for field, value in fixed.items():
            given = fields.get(field, value)
            if (tuple(given) if isinstance(given, list) else given) != value:
                fault = f"{field} = {given!r}, but protocol '{name}' has {value!r}: leave it out"
                raise ValueError(f"{fault}, or set `protocol: ours`")
        return fields | fixed if fixed else fields

    def faults(self) -> Iterator[str]:
        if list(self.lrs) != sorted(set(self.lrs)):
            yield f"lrs = {list(self.lrs)}: expected each once, the smallest first"
        if self.labels is not None and self.teacher is not None:
            yield "labels = 'hard' beside a teacher, whose labels are soft: leave one of them out"

    def needs(self) -> list[Task]:
        return [self.of, self.teacher] if self.teacher else [self.of]
