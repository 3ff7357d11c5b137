"""Bring a data set that does not ship inside a wheel into a store, and check it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ddlib.base import validated
from ddlib.data import catalogue, datasets
from ddlib.files import trouble, write_whole
from ddlib.settings import Data, InputError

DEBIAN = {"fashion_mnist": ("dataset-fashion-mnist", "usr/share/datasets/fashion-mnist")}
TIMEOUT = 600  # seconds for a package


def fetch(name: str, folder: Path) -> datasets.Images:
    """The data set, brought into `folder/data` unless it is there whole.

    Raises:
        InputError: unknown data, or none that could be fetched: says what to put where.
    """
    settings, reasons = validated(Data, {"name": name}, f"fetch {name}"), ""
    try:
        return datasets.load(settings, folder)
    except InputError:
        if name not in catalogue.TORCHVISION:
            raise  # its message says what to put where
    for way in (_from_debian, _from_torchvision):
        try:
            way(name, folder)
            return datasets.load(settings, folder)
        except (InputError, OSError, RuntimeError, subprocess.SubprocessError) as error:
            reason = trouble(error) if isinstance(error, OSError) else str(error)
            reasons += f"  {way.__name__[6:]}: {reason}\n"
    raise InputError(
        f"data '{name}' could not be fetched:\n{reasons}"
        f"Put its files into {folder / 'data'} by hand, {catalogue.NO_DOWNLOAD}"
    )


def _from_debian(name: str, folder: Path) -> None:
    """Unpack Debian's package of it, which takes no right to install."""
    if name not in DEBIAN or not (shutil.which("apt-get") and shutil.which("dpkg")):
        raise RuntimeError("no package that apt-get and dpkg could unpack here")
    package, place = DEBIAN[name]
    with tempfile.TemporaryDirectory() as home:

        def run(*command: str) -> None:
            done = subprocess.run(
                command, cwd=home, capture_output=True, text=True, timeout=TIMEOUT
            )
            if done.returncode:
                said = (done.stderr.strip().splitlines() or ["no word of why"])[-1]
                raise RuntimeError(f"{' '.join(command[:2])} failed: {said}")

        run("apt-get", "download", package)
        run("dpkg", "-x", *map(str, Path(home).glob("*.deb")), "files")
        for file in sorted(Path(home, "files", place).glob("*ubyte*")):
            raw = catalogue.raw_folder(name, folder)
            (raw / file.name.removesuffix(".gz")).unlink(missing_ok=True)  # it was not sound
            write_whole(raw / file.name, file.read_bytes())


def _from_torchvision(name: str, folder: Path) -> None:
    """Download it from where torchvision knows it to be."""
    from torchvision import datasets as known

    getattr(known, catalogue.TORCHVISION[name])(folder / "data", download=True)
