"""The library of kernels.c: compiled once per processor and kept."""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_suffix(".c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-ffp-contract=fast", "-fPIC", "-shared")
REAL = {torch.float32: "float", torch.float64: "double"}
EPS = 1e-5  # of the instance norm
PLAIN = "plain PyTorch is used, slower, with the same results up to rounding"
log = logging.getLogger("ddlib")


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


def compiler() -> str | None:
    """The C compiler, as the environment's CC names it or as it is found."""
    return shutil.which(os.environ.get("CC") or "cc") or shutil.which("gcc")


def build(real: str) -> Path:
    """The shared library for float or double, compiled unless it is here, whole and one's own.

    Raises:
        OSError: no compiler, or the cache folder cannot be written.
        subprocess.CalledProcessError: the compiler failed.
    """
    if (cc := compiler()) is None:
        raise OSError("no C compiler found (set CC)")

    def run(*options: str) -> str:
        command = [cc, *FLAGS, f"-DREAL={real}", f"-DEPS={EPS}", *options]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    defined = run("-E", "-dM", "-x", "c", os.devnull)  # names the compiler and the processor
    about = repr((SOURCE.read_text("utf-8"), FLAGS, cc, defined))
    file = cache_folder() / f"kernels-{real}-{hashlib.sha256(about.encode()).hexdigest()[:16]}.so"
    if not sound(file):
        with tempfile.TemporaryDirectory(dir=file.parent) as folder:  # never a half-written library
            new = Path(folder) / file.name
            run(str(SOURCE), "-o", str(new), "-lm")
            new.write_bytes((code := new.read_bytes()) + hashlib.sha256(code).digest())
            new.replace(file)
    return file


def sound(file: Path) -> bool:
    """Whether a library, its digest at its end, is as it was compiled: else it may crash."""
    try:
        about, content = file.lstat(), file.read_bytes()
    except OSError:
        return False
    own = stat.S_ISREG(about.st_mode) and about.st_uid == os.getuid()
    return own and content[-32:] == hashlib.sha256(content[:-32]).digest()


@cache
def library(dtype: torch.dtype) -> ctypes.CDLL | None:
    """The kernels for that type; None, and one line in the log, where there are none."""
    if os.environ.get("DDLIB_KERNELS") == "0":
        log.info("kernels are switched off (DDLIB_KERNELS=0): plain PyTorch is used")
    elif dtype not in REAL:
        log.warning("no fast kernels for numbers of type %s: %s", dtype, PLAIN)
    else:
        try:
            return ctypes.CDLL(str(build(REAL[dtype])))
        except (OSError, RuntimeError, subprocess.CalledProcessError) as error:
            said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
            log.warning("no fast kernels: %s; %s", said[-1], PLAIN)
    return None
