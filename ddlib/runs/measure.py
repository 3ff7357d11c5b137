"""What this machine is, and what an outer gradient costs on it: peak memory above that of the process at rest, and seconds."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from ddlib.method import augment, networks
from ddlib.method.distill import InnerLoss
from ddlib.method.fast import convnet as fused
from ddlib.method.fast import kernels
from ddlib.method.student import EXACT
from ddlib.runs import engine, meter
from ddlib.settings import Measurement, generator

KIND = (
    "processor",
    "model",
    "vectors",
    "device",
    "compiler",
    "torch",
)  # what the bytes of a result may depend on, beside its settings


def machine() -> dict[str, str | int]:
    """What this machine is: KIND, cores, memory in GiB, and Python's version."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    about = {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)
    }
    total = (
        int(Path("/proc/meminfo").read_text().split()[1]) if Path("/proc/meminfo").exists() else 0
    )
    where = engine.device()
    return {
        "processor": about.get("model name", platform.processor()),
        "model": "family {}, model {}, stepping {}".format(
            *(about.get(name, "?") for name in ("cpu family", "model", "stepping"))
        ),
        "vectors": torch.backends.cpu.get_cpu_capability(),
        "device": torch.cuda.get_device_name(where) if where.type == "cuda" else where.type,
        "compiler": kernels.made_by(),
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": int(about.get("cpu cores", 0)),
        "memory": round(total / 2**20),
    }


def described(about: dict[str, str | int]) -> str:
    """A machine in a line."""
    return "{processor}, {cores} cores, {memory} GiB, {vectors}; Python {python}, torch {torch}".format(
        **about
    )


def peak(run: Callable[[], object]) -> float:
    """Megabytes that `run` takes at most, above what the process holds before it; Linux only."""
    meter.reset()
    base = meter.memory("VmRSS")
    run()
    return meter.memory("VmHWM") - base


def outer_gradient(
    settings: Measurement, shape: tuple[int, int, int], classes: int
) -> dict[str, str | float]:
    """megabytes above the base, and the median seconds of three more calls, on random images of this shape; call it in a fresh process."""
    flat = fused.flat(networks.build(settings.network, shape, classes), settings.network.precision)
    chance = generator(0, "measure")
    theta, target = flat.initial(chance), flat.initial(chance)
    images = torch.randn(classes * settings.ipc, *shape, generator=chance)
    labels = torch.arange(classes).repeat_interleave(settings.ipc)
    draws = augment.draws(
        [len(labels)] * settings.inner_steps, tuple(augment.STRATEGIES), chance, "cpu"
    )
    loss = InnerLoss(flat, labels, [torch.arange(len(labels))] * settings.inner_steps, draws, 1.0)

    def once() -> float:
        began, form, steps = time.perf_counter(), EXACT[settings.gradient], settings.inner_steps
        form(
            loss,
            theta,
            images,
            torch.tensor(0.01),
            steps,
            settings.momentum,
            lambda path: (path[steps] - target).square().sum(),
            [steps],
        )
        return time.perf_counter() - began

    megabytes = peak(once)
    return {
        "gradient": settings.gradient,
        "inner_steps": settings.inner_steps,
        "megabytes": megabytes,
        "seconds": median(once() for _ in range(3)),
    }
