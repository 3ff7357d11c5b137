"""The hand-written kernels of kernels.c: compiled once for this processor by the machine's C compiler, kept, called on tensors.

Tensors are (n, c, h, w) and lie channels last in memory; n images, z the output of a convolution, p the pooled block that follows it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
REAL = {torch.float32: "float", torch.float64: "double"}
EPS = 1e-5  # of the instance norm
KERNELS = {  # how many sizes and how many pointers each takes
    "forward": (4, 4),
    "backward": (4, 6),
    "forward_along": (4, 8),
    "backward_along": (4, 12),
    "first_forward": (5, 3),
    "first_weight": (5, 3),
    "first_image": (5, 3),
}
log = logging.getLogger("ddlib")


def lanes(dtype: torch.dtype) -> int:
    """Channel counts must be a multiple of this."""
    return 32 // dtype.itemsize


def kept() -> Path:
    """Where compiled kernels stay."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"


def processor() -> str:
    """What `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def compiler() -> str | None:
    """The C compiler, as the environment's CC names it or as it is found."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")


def made_by() -> str:
    """The compiler that made the kernels in use, in its own words; none where there are none."""
    if library(torch.float32) is None:
        return "none"
    return subprocess.run(
        [compiler(), "--version"], check=True, capture_output=True, text=True
    ).stdout.splitlines()[0]


def build(real: str) -> Path:
    """The shared library for float or double, compiled if this source was not yet compiled here, whole or not at all.

    Raises:
        OSError: no compiler, or nowhere to keep what it makes.
        subprocess.CalledProcessError: the compiler refused.
    """
    cc = compiler()
    if cc is None:
        raise OSError("no C compiler found (set CC)")
    about = repr((SOURCE.read_text(), FLAGS, EPS, real, processor(), platform.machine(), cc))
    file = kept() / f"kernels-{real}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryDirectory(dir=file.parent) as half:
            made = Path(half) / file.name
            subprocess.run(
                [cc, *FLAGS, f"-DREAL={real}", f"-DEPS={EPS}", str(SOURCE), "-o", str(made), "-lm"],
                check=True,
                capture_output=True,
                text=True,
            )
            os.replace(made, file)
    return file


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for that type; None, and one line in the log, where there are none."""
    if os.environ.get("DDLIB_KERNELS") == "0":
        log.info("kernels are switched off (DDLIB_KERNELS=0): plain PyTorch is used")
        return None
    try:
        made = ctypes.CDLL(str(build(REAL[dtype])))
        for name, (counts, pointers) in KERNELS.items():
            kernel = getattr(made, name)
            kernel.argtypes, kernel.restype = (
                [ctypes.c_long] * counts + [ctypes.c_void_p] * pointers,
                None,
            )
        return made
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1] if error.stderr.strip() else str(error)
    except (OSError, RuntimeError) as error:  # RuntimeError: nobody's home is known
        reason = str(error)
    log.warning(
        "no fast kernels: %s; plain PyTorch is used, slower, with the same results up to rounding",
        reason,
    )
    return None


def call(name: str, like: Tensor, sizes: tuple[int, ...], *arguments: Tensor | None) -> None:
    """Run one kernel; None is a null pointer."""
    getattr(library(like.dtype), name)(
        *sizes, *(a if a is None else a.data_ptr() for a in arguments)
    )


def empty(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """(n, c, h, w), channels last, not filled."""
    return torch.empty((n, c, h, w), dtype=like.dtype, memory_format=torch.channels_last)


def last(x: Tensor) -> Tensor:
    """x, laid out channels last."""
    return x.contiguous(memory_format=torch.channels_last)


def sizes(z: Tensor) -> tuple[int, int, int, int]:
    """n, h, w, c as the kernels take them."""
    n, c, h, w = z.shape
    return n, h, w, c


def forward(z: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """p, and the mean and reciprocal deviation of z over an image's pixels, (2, n, c). `affine` holds gamma and beta, (2c,)."""
    n, c, h, w = z.shape
    p, stats = empty(n, c, h // 2, w // 2, z), z.new_empty(2, n, c)
    call("forward", z, sizes(z), z, affine, p, stats)
    return p, stats


def backward(z: Tensor, affine: Tensor, stats: Tensor, pbar: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangent of z from that of p; and those of gamma and beta, each image's share, (2, n, c)."""
    zbar, sums = torch.empty_like(z), torch.empty_like(stats)
    call("backward", z, sizes(z), z, affine, stats, pbar, zbar, sums)
    return zbar, sums


def forward_along(
    z: Tensor, affine: Tensor, stats: Tensor, zdot: Tensor, more: Tensor | None, adot: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How p changes where z moves by zdot + more (their sum is left in zdot) and affine by adot; and what `backward_along` needs of it."""
    n, c, h, w = z.shape
    pdot, moved = empty(n, c, h // 2, w // 2, z), torch.empty_like(stats)
    call("forward_along", z, sizes(z), z, affine, stats, zdot, more, adot, pdot, moved)
    return pdot, moved


def backward_along(z: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    """How what `backward` returned changes. `rest`: affine, stats, pbar, sums, zdot, adot, moved, pbardot and what is added to it."""
    zbardot, sumsdot = torch.empty_like(z), torch.empty_like(rest[1])
    call("backward_along", z, sizes(z), z, *rest, zbardot, sumsdot)
    return zbardot, sumsdot


def first_forward(x: Tensor, weight: Tensor) -> Tensor:
    """z of the first convolution; weight (3, 3, c, k)."""
    z = empty(len(x), weight.shape[3], x.shape[2], x.shape[3], x)
    call("first_forward", x, (*sizes(x), weight.shape[3]), x, weight, z)
    return z


def first_weight(x: Tensor, zbar: Tensor) -> Tensor:
    """Cotangent of its weight, (3, 3, c, k)."""
    wbar = x.new_zeros(3, 3, x.shape[1], zbar.shape[1])
    call("first_weight", x, (*sizes(x), zbar.shape[1]), x, zbar, wbar)
    return wbar


def first_image(zbar: Tensor, weight: Tensor, xbar: Tensor) -> Tensor:
    """Cotangent of its images, added to xbar."""
    call("first_image", zbar, (*sizes(xbar), weight.shape[3]), zbar, weight, xbar)
    return xbar
