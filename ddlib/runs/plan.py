"""What a profile costs, predicted before it is paid, here and on GPUs that need not be here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from ddlib.data import datasets
from ddlib.method.functional import network
from ddlib.method.student import GRADIENTS
from ddlib.runs import cost, run, studies
from ddlib.runs.cost import (
    COMPUTE,
    GPUS,
    LAUNCH,
    REAL,
    RESERVED,
    STREAM,
    Form,
    Work,
    advice,
    device_bytes,
    on_gpu,
    trained,
)
from ddlib.runs.cost import cost as counted
from ddlib.runs.profile import Profile, profile, profiles
from ddlib.settings import Condensation, Distillation, Evaluation, Expert, Selection

HELD_OUT = 0.33  # validation and test images to training images


@dataclass(frozen=True)
class Part:
    """Tasks of a stage that are alike: how many, what each runs, and what it leaves on disk."""

    stage: str
    what: str
    tasks: int
    works: tuple[tuple[Work, float], ...]  # and how often; the first needs the most memory
    disk: float  # bytes
    seconds: float  # of one task, as `cost.seconds` predicts it
    switch: str = "batch"  # the setting that bounds the images of the first work


def part(task: Any) -> Part:
    """What one expert, outer loop or evaluation runs."""
    known, name = datasets.about(task.data), task.data.name
    k, train_images = len(known.class_names), known.per_class * len(known.class_names)

    def work(form: Form, images: float, steps: int = 1) -> Work:
        return Work(task.network, known.shape, k, form, int(images), steps)

    if isinstance(task, Expert):
        batch = min(task.batch, train_images)
        form: Form = "gradient" if task.penalty == "none" else "penalty"
        epochs = task.until or task.epochs
        often = epochs * train_images / batch * (2 if task.sharpness else 1)
        evaluated = (epochs + 1) * train_images * HELD_OUT / 250
        path = REAL * (epochs + 1) * network(task.network, known.shape, k).parameters
        what = f"{name}, {'with' if form == 'penalty' else 'no'} penalty"
        works = ((work(form, batch), often), (work("forward", 250), evaluated))
        return Part("experts", what, 1, works, path, cost.seconds(task))
    if isinstance(task, Evaluation):
        of = task.of
        n = train_images if isinstance(of, Selection) and of.method == "all" else k * of.ipc
        batch, networks = min(task.batch, n), trained(task)
        often = networks * task.epochs * n / batch
        evaluated = networks * task.looks * train_images * HELD_OUT / 250
        what = f"{task.network.architecture} on {n} images of {name}"
        works = ((work("gradient", batch), often), (work("forward", 250), evaluated))
        return Part("evaluation", what, 1, works, 0.0, cost.seconds(task))
    n = k * task.ipc
    checks = (work("gradient", min(n, 256)), task.checks * task.check_epochs * max(1.0, n / 256))
    c, h, w = known.shape
    disk = (task.checks + 2) * n * REAL * c * h * w
    if isinstance(task, Condensation):
        batch, often = min(task.batch_real, known.per_class), task.iterations * task.outer * k
        dm = task.method == "dm"
        real: Form = "forward" if dm else "gradient"
        ours: Form = "gradient" if dm else "adjoint"
        matched: tuple[tuple[Work, float], ...] = (
            (work(real, batch), often),
            (work(ours, task.ipc), often),
            checks,
        )
        what = f"{name}, {task.method.upper()}, ipc {task.ipc}"
        return Part("distillation", what, 1, matched, disk, cost.seconds(task), "batch_real")
    batch = min(task.batch or n, n)
    exact: Form = "unroll" if task.gradient == "unroll" else "adjoint"  # tesla: the same sweep
    what = f"{name}, ipc {task.ipc}, N = {task.inner_steps}, {batch} images per step"
    works = ((work(exact, batch, task.inner_steps), task.iterations), checks)
    return Part("distillation", what, 1, works, disk, cost.seconds(task))


def parts(given: Profile) -> list[Part]:
    """All tasks of a paper, like ones counted together, stage after stage."""
    stages = {"experts": 0, "distillation": 1, "evaluation": 2}
    kinds = Expert | Distillation | Condensation | Evaluation
    tasks = run.missing(studies.check(given), None)
    counts = Counter(part(task) for task in tasks if isinstance(task, kinds))
    found = [replace(one, tasks=n) for one, n in counts.items()]
    return sorted(found, key=lambda one: stages[one.stage])


def table(given: Profile, pace: float | None = None) -> pd.DataFrame:
    """One row per part: tasks, FLOP, GB with both gradients, disk, hours here and on each GPU."""
    lines = []
    for one in parts(given):
        main, n = one.works[0][0], one.tasks
        unrolled = replace(main, form="unroll") if main.form in GRADIENTS else main
        line = {
            "stage": one.stage,
            "what": one.what,
            "tasks": n,
            "FLOP": n * sum(often * counted(work).flops for work, often in one.works),
            "unroll GB": device_bytes(unrolled) / 1e9,
            "adjoint GB": device_bytes(main) / 1e9,
            "disk GB": n * one.disk / 1e9,
        }
        if pace is not None:
            line["here h"] = n * pace * one.seconds / 3600
        for name, gpu in GPUS.items():
            line[f"{name} h"] = n * sum(o * on_gpu(work, gpu) for work, o in one.works) / 3600
        lines.append(line)
    return pd.DataFrame(lines)


def report(name: str) -> None:
    """Measure this machine's pace, then print what a profile costs and what fits no GPU."""
    given = profile(name)
    pace = cost.pace()
    print(
        f"{given.title}: predicted cost. One process of one thread; pace of this machine {pace:.2f}"
    )
    every, lines = parts(given), table(given, pace)
    sums = ["tasks", "FLOP", "disk GB", *(column for column in lines if column.endswith(" h"))]
    total = {**lines[sums].sum(), **lines[["unroll GB", "adjoint GB"]].max()}
    every_line = pd.concat([lines, pd.DataFrame([{"stage": "all", "what": "", **total}])])
    print(every_line.to_markdown(index=False, floatfmt=".3g"))
    print(
        f"GPU columns are predictions, never measured here: {COMPUTE:.0%} of the TF32 peak, "
        f"{STREAM:.0%} of the bandwidth, {LAUNCH * 1e6:.0f} us per kernel, {RESERVED / 1e9:.1f} GB "
        "reserved. Hours are of all tasks, one after another."
    )
    for one in every:
        for gpu, rate in GPUS.items():
            if switch := advice(one.works[0][0], rate.memory, one.switch):
                print(f"{one.stage}, {one.what} does not fit {gpu}; what fits: {switch}")


def cell(name: str, gpu: str = "A100-80GB") -> dict[str, Any]:
    """One cell of the paper: predicted hours on one GPU, peak GB and GB of disk."""
    given = profile(name)
    (one,) = given.cells.values()
    lines = table(given)
    sets = lines[lines.stage == "distillation"]
    return {
        "cell": name,
        "data": given.title.split(",")[0],
        "pixels": datasets.about(one.data).shape[1],
        "ipc": one.ipc,
        "hours": lines[f"{gpu} h"].sum(),
        "unroll GB": sets["unroll GB"].max(),
        "adjoint GB": sets["adjoint GB"].max(),
        "any stage GB": lines["adjoint GB"].max(),
        "disk GB": lines["disk GB"].sum(),
        "gpu": gpu,
    }


def cells() -> pd.DataFrame:
    """One row for each cell of the paper."""
    lines = [cell(name) for name in profiles() if list(profile(name).cells) == [name]]
    return pd.DataFrame(lines).sort_values(["pixels", "data", "ipc"], ignore_index=True)
