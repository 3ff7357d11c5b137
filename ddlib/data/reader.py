"""Run in a child process: find out whether `.pt` files of strangers are harmless and sound.

`python reader.py SECONDS FILE ...` loads each file with torch.load(weights_only=True) in a process
whose memory and time are limited, and prints a line for each that holds tensors, lists, dicts,
numbers and strings alone, in all no larger than the file. It ends at the first that is not, with
what is wrong with it. `mtt_format.prove` starts it; whatever a file does, it does it here.
"""

import re
import resource
import sys
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch

ALLOWANCE = 512 << 20  # bytes of memory beside the file's own
NODES, DEPTH = 2_000_000, 30  # of the tree of lists, dicts and tensors
FLOATS = {torch.float64, torch.float32, torch.float16, torch.bfloat16}
TENSORS = {torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool} | FLOATS


class Unsound(Exception):
    """What is wrong with a file."""


def numbers(file: Path) -> int:
    """Bytes of tensors' numbers in the archive, once its entries and its pickle are sound."""
    with zipfile.ZipFile(file) as archive:
        entries, total = archive.infolist(), 0
        if sum(entry.file_size for entry in entries) > file.stat().st_size:
            raise Unsound("declares entries larger than itself")
        for entry in entries:
            if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
                raise Unsound(
                    f"has a compressed entry, {entry.filename!r}: it could fill the memory"
                )
            if "/data/" in entry.filename:
                total += entry.file_size
            else:
                archive.read(entry)  # checks its checksum
    return total


def check(tree: Any, size: int) -> None:
    """Refuse a tree of anything but tensors, lists, dicts, numbers and strings, or a bomb."""
    stack, nodes, needed = [(tree, 0)], 0, 0
    while stack:
        value, depth = stack.pop()
        kind, nodes = type(value), nodes + 1
        if nodes > NODES or depth > DEPTH:
            raise Unsound(f"holds more than {NODES} values, or lists more than {DEPTH} deep")
        if kind in (torch.Tensor, torch.nn.Parameter):
            plain = value.layout == torch.strided and value.device.type == "cpu"
            if not plain or value.dtype not in TENSORS or value.is_nested:
                raise Unsound(f"holds a {value.layout} tensor of {value.dtype} on {value.device}")
            needed += value.numel() * value.element_size()
            if value.untyped_storage().nbytes() > size:
                raise Unsound("declares a tensor larger than the file: it is damaged")
        elif kind in (list, tuple):
            stack += [(inner, depth + 1) for inner in value]
        elif isinstance(value, dict):
            stack += [(inner, depth + 1) for pair in value.items() for inner in pair]
        elif value is not None and kind not in (bool, int, float, str):
            raise Unsound(f"holds a {kind.__name__}")
    if needed > size:
        raise Unsound(
            f"declares tensors of {needed} bytes but holds {size}: some are expanded, or share "
            "memory, as snapshots of a network on the CPU do that were not cloned (all of them "
            "are then its last state); save a .clone() of each"
        )


def limit_memory(size: int) -> None:
    """Let the process take so much more address space than it has now, and leave no core dump."""
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (taken + size + ALLOWANCE, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def examine(file: Path) -> None:
    """Load a file; what makes it harmful or damaged is raised as Unsound."""
    try:
        size = numbers(file)
        check(torch.load(str(file), map_location="cpu", weights_only=True, mmap=True), size)
    except Unsound:
        raise
    except Exception as error:  # whatever torch finds, it is the file's fault
        text = str(error)
        fault = f"cannot be read ({(text.splitlines() or [repr(error)])[0][:200]})"
        if asked := re.search(r"GLOBAL (\S+)", text):
            fault = f"asks for {asked[1]!r}, which could run code; nothing was run"
        elif isinstance(error, MemoryError) or re.search("allocate memory|unable to mmap", text):
            fault = "asks for far more memory than its size"
        raise Unsound(fault) from None


def main(seconds: str, *names: str) -> None:
    """Examine the files in turn."""
    warnings.simplefilter("ignore")
    files = [Path(name) for name in names]
    resource.setrlimit(resource.RLIMIT_CPU, (int(seconds) * len(files),) * 2)
    limit_memory(max(file.stat().st_size for file in files))
    for file in files:
        try:
            examine(file)
        except Unsound as fault:
            sys.exit(print(fault, flush=True) or 3)
        print("sound", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
