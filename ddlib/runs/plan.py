"""What a profile will cost, before it is paid: operations, memory, disk and time, here and on GPUs that need not be here.

Time here comes from a calibration: seconds = r_steps * steps + r_flops * FLOP, its two rates measured for each network and form on a few
images. Time on a GPU is a prediction, the roofline: the longest of FLOP / (peak * COMPUTE), bytes moved / (bandwidth * STREAM) and
kernels * LAUNCH, for plain PyTorch in float32 with TF32 convolutions, its default.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from statistics import median
from typing import Any, NamedTuple

import pandas as pd

from ddlib import settings as config
from ddlib.data import datasets as data
from ddlib.method.student import EXACT
from ddlib.runs import counts, engine, studies
from ddlib.runs import stages as pipeline
from ddlib.runs.cost import runs, size
from ddlib.runs.counts import Form, Work
from ddlib.settings import (
    Condensation,
    Data,
    Distilled,
    Evaluation,
    Expert,
    Network,
    Profile,
    Settings,
)

COMPUTE, STREAM, LAUNCH = (
    0.3,
    0.6,
    1e-5,
)  # fractions of the published rates that small convolutions reach; seconds of Python and driver a kernel
RESERVED = 2**30  # bytes of a GPU that its driver and its libraries' workspaces take
HALF = 0.6  # memory with bfloat16 to that without: convolutions' outputs are halved, norms and theta are not
LOOKED = 0.33  # validation and test images to training images
WIDE, DEEP = (
    Network(width=128, depth=3),
    Network(width=128, depth=4),
)  # of the field's tables, at 32 pixels and at 64
BUDGET = 30.0  # seconds of calibration
SMALL, LARGE = 1e9, 4e9  # FLOP of a measured work


class Gpu(NamedTuple):
    """Published dense rates: TF32 FLOP/s, bytes/s, bytes."""

    flops: float
    bandwidth: float
    memory: float
    source: str


GPUS = {
    "RTX 3090": Gpu(35.6e12, 936e9, 24e9, "NVIDIA, GA102 whitepaper, 2020"),
    "RTX 4090": Gpu(82.6e12, 1008e9, 24e9, "NVIDIA, Ada whitepaper, 2022"),
    "A100-40GB": Gpu(156e12, 1555e9, 40e9, "NVIDIA, A100 data sheet, SXM"),
    "A100-80GB": Gpu(156e12, 2039e9, 80e9, "NVIDIA, A100 data sheet, SXM"),
    "H100-80GB": Gpu(494e12, 3350e9, 80e9, "NVIDIA, H100 data sheet, SXM, half of the sparse rate"),
}


class Rates(NamedTuple):
    """Seconds a step and seconds a FLOP."""

    step: float
    flop: float


@dataclass(frozen=True)
class Part:
    """Like tasks of a stage: how many, what one of them runs, what it leaves on disk and holds on the host, in bytes."""

    stage: str
    what: str
    tasks: int
    works: tuple[tuple[Work, float], ...]  # and how often; the first needs the most memory
    disk: float
    host: float
    batch: str = "batch"  # the switch that bounds the images of the first work


def on_gpu(work: Work, gpu: Gpu) -> float:
    """Predicted seconds."""
    cost = counts.cost(work)
    return max(
        cost.flops / (gpu.flops * COMPUTE),
        cost.moved / (gpu.bandwidth * STREAM),
        cost.kernels * LAUNCH,
    )


def kind(work: Work) -> Work:
    """What shares its rates."""
    return replace(work, images=1, steps=1)


def operations(work: Work) -> float:
    """FLOP on this machine's CPU."""
    return counts.flops(work, counts.FUSED if counts.by_hand(work) else counts.FORMS)


def seconds(work: Work, repeats: int, until: float) -> float:
    """The median of some calls after one that warms up, fewer where time runs out."""
    run = counts.prepare(work, "cpu")
    found: list[float] = []
    run()
    while not found or (len(found) < repeats and time.monotonic() < until):
        began = time.perf_counter()
        run()
        found.append(time.perf_counter() - began)
    return median(found)


def calibrate(works: Iterable[Work], budget: float = BUDGET) -> dict[Work, Rates]:
    """The rates of each kind of work, from two small sizes of it; at most about `budget` seconds, kept nowhere."""
    engine.settle()
    kinds, rates = list(dict.fromkeys(map(kind, works))), {}
    for one in kinds:
        steps = 2 if one.form in ("adjoint", "unroll") else 1
        until = time.monotonic() + budget / len(kinds) / 2
        few = max(1, round(SMALL / (steps * operations(one))))
        more = max(few * 4, round(LARGE / (steps * operations(one))))
        small, large = (replace(one, images=n, steps=steps) for n in (few, more))
        low, high = seconds(small, 5, until), seconds(large, 5, until + budget / len(kinds) / 2)
        flop = max(
            (high - low) / (operations(large) - operations(small)), 0.5 * high / operations(large)
        )
        rates[one] = Rates(max(low - flop * operations(small), 0.0) / steps, flop)
    return rates


def here(work: Work, rates: dict[Work, Rates]) -> float:
    """Predicted seconds on this machine, one thread."""
    rate = rates[kind(work)]
    return rate.step * work.steps + rate.flop * operations(work)


def where(settings: Expert | Distilled | Evaluation) -> Data:
    """The data that a task is about."""
    made = settings.of if isinstance(settings, Evaluation) else settings
    return (made.start if isinstance(made, Distilled) else made).data


def part(settings: Expert | Distilled | Evaluation) -> Part:
    """What one task runs."""
    entry, name = data.about(where(settings)), where(settings).name
    k, shape = len(entry.class_names), entry.shape
    train, pixels = entry.per_class * k, counts.REAL * shape[0] * shape[1] * shape[2]
    resident = train * (1 + LOOKED) * pixels

    def work(network: Network, form: Form, images: int, steps: int = 1) -> Work:
        return Work(network, shape, k, form, images, steps)

    if isinstance(settings, Expert):
        batch, path = (
            min(settings.batch, train),
            counts.REAL * (settings.epochs + 1) * counts.parameters(settings.network, shape, k),
        )
        form: Form = "gradient" if settings.penalty == "none" else "penalty"
        steps = (
            work(settings.network, form, batch),
            settings.epochs * train / batch * (2 if settings.sharpness else 1),
        )
        looks = (
            work(settings.network, "forward", 250),
            (settings.epochs + 1) * train * LOOKED / 250,
        )
        return Part(
            "experts",
            f"{name}, {'with' if form == 'penalty' else 'no'} penalty",
            1,
            (steps, looks),
            path,
            2 * path + resident,
        )
    if isinstance(settings, Distilled):
        n, network = size(settings, train, k), settings.network
        checks = (
            work(network, "gradient", min(n, 256)),
            settings.checks * settings.check_epochs * max(1.0, n / 256),
        )
        kept, held = (
            (settings.checks + 2) * n * pixels,
            (settings.checks + 5) * n * pixels + resident,
        )
        if isinstance(settings, Condensation):
            batch = min(settings.batch_real, entry.per_class)
            what = f"{name}, {settings.method.upper()}, ipc {settings.start.ipc}, outer = {settings.outer}, inner = {settings.inner}, {batch} real images a class"
            return Part(
                "distillation",
                what,
                1,
                (*matchings(settings, work, batch, n, k), checks),
                kept,
                held,
                "batch_real",
            )
        batch = min(settings.batch or n, n)
        form = "adjoint" if settings.gradient == "tesla" else settings.gradient  # the same sweep
        inner = (work(network, form, batch, settings.inner_steps), float(settings.iterations))
        what = (
            f"{name}, ipc {settings.start.ipc}, N = {settings.inner_steps}, {batch} images a step"
        )
        follow = (settings.matched_epochs + 1) * counts.REAL * counts.parameters(network, shape, k)
        return Part("distillation", what, 1, (inner, checks), kept, follow + held)
    n = size(settings.of, train, k)
    batch = min(settings.batch, n)
    trained = runs(settings)
    steps = (work(settings.network, "gradient", batch), trained * settings.epochs * n / batch)
    looks = (
        work(settings.network, "forward", 250),
        trained * settings.looks * train * LOOKED / 250,
    )
    what = f"{settings.network.architecture} on {n} images of {name}, {settings.networks} networks, {settings.epochs} epochs"
    return Part("evaluation", what, 1, (steps, looks), 0.0, resident)


def matchings(
    settings: Condensation, work: Callable[..., Work], batch: int, n: int, classes: int
) -> list[tuple[Work, float]]:
    """What DC, DSA or DM runs and how often, the most memory first: classes of real images and of synthetic ones, and the training between."""
    steps = float(settings.iterations * settings.outer * classes)
    real, ours = ("forward", "gradient") if settings.method == "dm" else ("gradient", "adjoint")
    found = [
        (work(settings.network, real, batch), steps),
        (work(settings.network, ours, n // classes), steps),
    ]
    if settings.outer > 1:
        walks = (
            settings.iterations
            * (settings.outer - 1)
            * settings.inner
            * max(1.0, n / settings.batch)
        )
        found.append((work(settings.network, "gradient", min(n, settings.batch)), walks))
    return sorted(found, key=lambda one: -counts.cost(one[0]).peak)


def parts(profile: Profile) -> list[Part]:
    """All tasks of a paper, like ones counted together, stage after stage."""
    tasks: dict[Settings, None] = {}

    def visit(settings: Settings) -> None:
        if settings not in tasks:
            tasks[settings] = None
            for other in pipeline.needs(settings):
                visit(other)

    for settings in studies.everything(profile):
        visit(settings)
    found = Counter(
        part(settings)
        for settings in tasks
        if isinstance(settings, Expert | Distilled | Evaluation)
    )
    order = ["experts", "distillation", "evaluation"]
    return sorted(
        (replace(one, tasks=n) for one, n in found.items()), key=lambda p: order.index(p.stage)
    )


def device_bytes(work: Work) -> float:
    """Peak on a GPU, what driver and libraries take included."""
    return RESERVED + counts.cost(work).peak * (HALF if work.network.precision == "bfloat16" else 1)


def advice(work: Work, memory: float, switch: str = "batch") -> str | None:
    """The first switch that makes the work fit `memory` bytes of a GPU; None where it fits as it is. `switch` is that of its batch.

    Smaller batches are halved until they fit; the unroll's own bytes are what `gradient: adjoint` saves.
    """
    if device_bytes(work) <= memory:
        return None
    first = ["gradient: adjoint"] if work.form == "unroll" else []
    if first and device_bytes(work := replace(work, form="adjoint")) <= memory:
        return first[0]
    half = replace(work, network=work.network.model_copy(update={"precision": "bfloat16"}))
    if device_bytes(half) <= memory:
        return " and ".join([*first, "precision: bfloat16"])
    batch = work.images
    while batch > 1 and device_bytes(replace(work, images=batch)) > memory:
        batch //= 2
    if device_bytes(replace(work, images=batch)) > memory:
        return "no switch: a narrower network or smaller images"
    return " and ".join([*first, f"{switch}: {batch}"])


def table(profile: Profile, rates: dict[Work, Rates] | None = None) -> pd.DataFrame:
    """A line a part: tasks, FLOP, peak GB on a GPU with the unroll and with the adjoint, disk and host GB, hours of all its tasks here and on each GPU."""
    lines = []
    for one in parts(profile):
        main = one.works[0][0]
        both = [
            replace(main, form=form) if main.form in EXACT else main
            for form in ("unroll", "adjoint")
        ]
        peaks = {
            f"{form} GB": device_bytes(work) / 1e9
            for form, work in zip(("unroll", "adjoint"), both, strict=True)
        }
        line = {
            "stage": one.stage,
            "what": one.what,
            "tasks": one.tasks,
            "FLOP": one.tasks * sum(often * counts.flops(work) for work, often in one.works),
        }
        line |= peaks | {"disk GB": one.tasks * one.disk / 1e9, "host GB": one.host / 1e9}
        if rates is not None:
            line["here GB"] = counts.peak_here(main) / 1e9
            line["here h"] = (
                one.tasks * sum(often * here(work, rates) for work, often in one.works) / 3600
            )
        lines.append(
            line
            | {
                f"{name} h": one.tasks
                * sum(often * on_gpu(work, gpu) for work, often in one.works)
                / 3600
                for name, gpu in GPUS.items()
            }
        )
    return pd.DataFrame(lines)


def warnings(profile: Profile) -> list[str]:
    """A sentence for each part that does not fit a GPU as it is set, with the switch that makes it fit; and for the unroll, whether it would."""
    said = []
    for one in parts(profile):
        main = one.works[0][0]
        works = {"": main} | (
            {" with the unroll": replace(main, form="unroll")} if main.form == "adjoint" else {}
        )
        for words, work in works.items():
            misfits: dict[str, list[str]] = {}
            for name, gpu in GPUS.items():
                if (switch := advice(work, gpu.memory, one.batch)) is not None:
                    misfits.setdefault(switch, []).append(name)
            for switch, names in misfits.items():
                said.append(
                    f"{one.stage}, {one.what}{words}: {device_bytes(work) / 1e9:.0f} GB do not fit {', '.join(names)}; what fits: {switch}"
                )
    return said


def report(name: str) -> None:
    """`python -m ddlib plan PROFILE`: calibrate, then print the table and what does not fit."""
    profile = config.profile(name)
    print(f"{profile.title}: predicted cost")
    began = time.monotonic()
    rates = calibrate(work for one in parts(profile) for work, _ in one.works)
    print(
        f"This machine, one process of one thread, was calibrated in {time.monotonic() - began:.0f} s."
    )
    held = table(profile, rates)
    times = [column for column in held if column.endswith(" h")]
    total = {
        "stage": "all",
        "what": "",
        **held[["tasks", "FLOP", "disk GB", *times]].sum(),
        **held[["unroll GB", "adjoint GB", "host GB", "here GB"]].max(),
    }
    print(pd.concat([held, pd.DataFrame([total])]).to_markdown(index=False, floatfmt=".3g"))
    print(
        f"GPU columns are predictions, never measured here: {COMPUTE:.0%} of the TF32 peak, {STREAM:.0%} of the bandwidth, {LAUNCH * 1e6:.0f} us a kernel, "
        f"{RESERVED / 1e9:.1f} GB reserved; hours are of all tasks one after another. "
        "Memory is what is live: a heap that keeps freed memory, as here, was seen to hold up to 1.9 times that with the unroll."
    )
    print(
        "\n".join(warnings(profile))
        or "Everything fits every GPU of the table, with the unroll too."
    )


def cell(name: str, gpu: str = "A100-80GB") -> dict[str, Any]:
    """Of one cell's profile: predicted hours on one GPU, peak GB of its largest distillation with each gradient and of any stage, GB of disk."""
    profile = config.profile(name)
    ((where, what),) = ((data.about(each.data), each) for each in profile.cells.values())
    held = table(profile)
    sets = held[held.stage == "distillation"]
    peaks = {
        "unroll GB": sets["unroll GB"].max(),
        "adjoint GB": sets["adjoint GB"].max(),
        "any stage GB": held["adjoint GB"].max(),
    }
    about = {
        "cell": name,
        "data": profile.title.split(",")[0],
        "pixels": where.shape[1],
        "ipc": what.ipc,
    }
    return (
        about
        | {"hours": held[f"{gpu} h"].sum()}
        | peaks
        | {"disk GB": held["disk GB"].sum(), "gpu": gpu}
    )


def cells() -> pd.DataFrame:
    """A line for each cell of the paper."""
    lines = [cell(name) for name in config.profiles() if list(config.profile(name).cells) == [name]]
    return pd.DataFrame(lines).sort_values(["pixels", "data", "ipc"], ignore_index=True)


PEERS = {  # what MTT's users report as needing several GPUs, at its published settings
    "CIFAR-100, IPC 10": Work(WIDE, (3, 32, 32), 100, "unroll", 1000, 20),
    "CIFAR-100, IPC 50": Work(WIDE, (3, 32, 32), 100, "unroll", 125, 80),
    "Tiny ImageNet, IPC 10": Work(DEEP, (3, 64, 64), 200, "unroll", 200, 20),
    "Tiny ImageNet, IPC 50": Work(DEEP, (3, 64, 64), 200, "unroll", 300, 20),
}


def scaling(gpu: str = "A100-80GB", iterations: int = 5000) -> pd.DataFrame:
    """Rows of the figures `scaling` and `peers`: predicted GB and hours of one distillation of each gradient, one size varied at a time.

    The middle is CIFAR-10 at ten images a class, N = 30. Rows of part "experts" hold the hours and GB of disk of so many experts with penalty.
    """
    shape, rows = (3, 32, 32), []

    def row(part: str, x: float, work: Work) -> dict[str, Any]:
        return {
            "part": part,
            "x": x,
            "gradient": work.form,
            "gigabytes": device_bytes(work) / 1e9,
            "hours": iterations * on_gpu(work, GPUS[gpu]) / 3600,
            "gpu": gpu,
        }

    for form in ("unroll", "adjoint"):
        middle = Work(WIDE, shape, 10, form, 100, 30)
        rows += [row("inner steps N", n, replace(middle, steps=n)) for n in (5, 10, 20, 40, 80)]
        rows += [
            row("images per class", ipc, replace(middle, images=10 * ipc)) for ipc in (1, 5, 10, 50)
        ]
        for depth, side in ((3, 32), (4, 64), (5, 128)):
            rows.append(
                row(
                    "pixels a side",
                    side,
                    replace(middle, network=Network(width=128, depth=depth), shape=(3, side, side)),
                )
            )
        rows += [row(name, 1, replace(work, form=form)) for name, work in PEERS.items()]
    expert = Work(WIDE, shape, 10, "penalty", 256)
    path = counts.REAL * 51 * counts.parameters(expert.network, shape, 10)
    for n in (10, 50, 100, 200):
        hours = n * 50 * 45000 / 256 * on_gpu(expert, GPUS[gpu]) / 3600
        rows.append(
            {
                "part": "experts",
                "x": n,
                "gradient": "experts",
                "gigabytes": n * path / 1e9,
                "hours": hours,
                "gpu": gpu,
            }
        )
    return pd.DataFrame(rows)
