"""The kernels of kernels.c: compiled once per processor and kept, then called on tensors.

Tensors are (n, c, h, w), channels last in memory: z is the output of a convolution of n images, p
the pooled block that follows it.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import stat
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
PLAIN = "plain PyTorch is used, slower, with the same results up to rounding"
log = logging.getLogger("ddlib")


def lanes(dtype: torch.dtype) -> int:
    """Channel counts must be a multiple of this."""
    return 32 // dtype.itemsize


def cache_folder() -> Path:
    """Where compiled kernels are kept: a folder that nobody else can write into.

    Raises:
        OSError: it is another user's, or a link.
    """
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ddlib"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    about = folder.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.getuid():
        raise OSError(f"{folder} is not a folder of yours: remove it, or set XDG_CACHE_HOME")
    if about.st_mode & 0o077:  # others could have left something to run here
        folder.chmod(0o700)
        for file in folder.glob("kernels-*"):
            file.unlink(missing_ok=True)
    return folder


def processor() -> str:
    """The processor's features, which `-march=native` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return platform.processor()


def compiler() -> str | None:
    """The C compiler, as the environment's CC names it or as it is found."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")


def made_by() -> str:
    """The version line of the compiler that made the kernels in use, or "none"."""
    if library(torch.float32) is None:
        return "none"
    asked = subprocess.run([compiler(), "--version"], capture_output=True, text=True, check=False)
    return next(iter(asked.stdout.splitlines()), "a compiler that does not say its version")


def build(real: str) -> Path:
    """The shared library for float or double, compiled unless it is here, whole and one's own.

    Raises:
        OSError: no compiler, or the cache folder cannot be written.
        subprocess.CalledProcessError: the compiler failed.
    """
    cc = compiler()
    if cc is None:
        raise OSError("no C compiler found (set CC)")
    about = repr((SOURCE.read_text("utf-8"), FLAGS, EPS, real, processor(), platform.machine(), cc))
    name = f"kernels-{real}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    file = cache_folder() / name
    if not sound(file):
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # never a half-written library
            new = Path(folder) / name
            options = [*FLAGS, f"-DREAL={real}", f"-DEPS={EPS}", str(SOURCE), "-o", str(new), "-lm"]
            subprocess.run([cc, *options], check=True, capture_output=True, text=True)
            new.with_suffix(".sha256").write_text(digest(new))
            for part in (new, new.with_suffix(".sha256")):
                os.replace(part, file.parent / part.name)
    return file


def digest(file: Path) -> str:
    """The sha256 of a file."""
    return hashlib.sha256(file.read_bytes()).hexdigest()


def sound(file: Path) -> bool:
    """Whether a library is as it was compiled: a damaged one would kill the process."""
    try:
        private = all(
            stat.S_ISREG(part.lstat().st_mode) and part.stat().st_uid == os.getuid()
            for part in (file, file.with_suffix(".sha256"))
        )
        return private and file.with_suffix(".sha256").read_text() == digest(file)
    except (OSError, UnicodeDecodeError):
        return False


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for that type; None, and one line in the log, where there are none."""
    if os.environ.get("DDLIB_KERNELS") == "0":
        log.info("kernels are switched off (DDLIB_KERNELS=0): plain PyTorch is used")
        return None
    try:
        return ctypes.CDLL(str(build(REAL[dtype])))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.strip().splitlines()[-1] if error.stderr.strip() else str(error)
    except (OSError, RuntimeError) as error:  # RuntimeError: no home folder is known
        reason = str(error)
    log.warning("no fast kernels: %s; %s", reason, PLAIN)
    return None


def call(name: str, z: Tensor, *arguments: int | Tensor | None) -> None:
    """Run one kernel on n, h, w, c of z and the arguments; None is a null pointer."""
    n, c, h, w = z.shape
    converted = [
        ctypes.c_long(a)
        if isinstance(a, int)
        else ctypes.c_void_p(None if a is None else a.data_ptr())
        for a in (n, h, w, c, *arguments)
    ]
    getattr(library(z.dtype), name)(*converted)


def empty(n: int, c: int, h: int, w: int, like: Tensor) -> Tensor:
    """(n, c, h, w), channels last, not filled."""
    return torch.empty((n, c, h, w), dtype=like.dtype, memory_format=torch.channels_last)


def last(x: Tensor) -> Tensor:
    """x, laid out channels last."""
    return x.contiguous(memory_format=torch.channels_last)


def forward(z: Tensor, affine: Tensor) -> tuple[Tensor, Tensor]:
    """p, and the mean and reciprocal deviation of z per image, (2, n, c); affine: gamma, beta."""
    n, c, h, w = z.shape
    p, stats = empty(n, c, h // 2, w // 2, z), z.new_empty(2, n, c)
    call("forward", z, z, affine, p, stats)
    return p, stats


def backward(z: Tensor, affine: Tensor, stats: Tensor, pbar: Tensor) -> tuple[Tensor, Tensor]:
    """Cotangents of z, and of gamma and beta per image, (2, n, c), from that of p."""
    zbar, sums = torch.empty_like(z), torch.empty_like(stats)
    call("backward", z, z, affine, stats, pbar, zbar, sums)
    return zbar, sums


def forward_along(
    z: Tensor, affine: Tensor, stats: Tensor, zdot: Tensor, more: Tensor | None, adot: Tensor | None
) -> tuple[Tensor, Tensor]:
    """How p changes where z moves by zdot + more and affine by adot; what `backward_along` needs.

    The sum zdot + more is left in zdot.
    """
    n, c, h, w = z.shape
    pdot, moved = empty(n, c, h // 2, w // 2, z), torch.empty_like(stats)
    call("forward_along", z, z, affine, stats, zdot, more, adot, pdot, moved)
    return pdot, moved


def backward_along(z: Tensor, *rest: Tensor | None) -> tuple[Tensor, Tensor]:
    """How what `backward` returned changes.

    `rest`: affine, stats, pbar, sums, zdot, adot, moved, pbardot and what is added to it.
    """
    zbardot, sumsdot = torch.empty_like(z), torch.empty_like(rest[1])
    call("backward_along", z, z, *rest, zbardot, sumsdot)
    return zbardot, sumsdot


def first_forward(x: Tensor, weight: Tensor) -> Tensor:
    """z of the first convolution; weight (3, 3, c, k)."""
    z = empty(len(x), weight.shape[3], x.shape[2], x.shape[3], x)
    call("first_forward", x, weight.shape[3], x, weight, z)
    return z


def first_weight(x: Tensor, zbar: Tensor) -> Tensor:
    """Cotangent of its weight, (3, 3, c, k)."""
    wbar = x.new_zeros(3, 3, x.shape[1], zbar.shape[1])
    call("first_weight", x, zbar.shape[1], x, zbar, wbar)
    return wbar


def first_image(zbar: Tensor, weight: Tensor, xbar: Tensor) -> Tensor:
    """Cotangent of its images, added to xbar."""
    call("first_image", xbar, weight.shape[3], zbar, weight, xbar)
    return xbar
