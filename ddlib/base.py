"""What all share: settings that are frozen, strict and named by a hash, those of data and networks
among them; errors in one message; named chance; PyTorch as the library expects it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar, get_args

import numpy as np
import torch
from PIL import ImageFile
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_serializer,
    model_validator,
)
from pydantic import SerializerFunctionWrapHandler as Handler
from pydantic_core import CoreSchema, core_schema

FORMAT = 5  # part of every key: raise it when a change of code changes results

PLAIN = (str, int, float, list, tuple, dict, type(None), BaseModel)  # what a message shows

Model = TypeVar("Model", bound=BaseModel)
Count = Annotated[int, Field(ge=1, le=10_000_000)]
Few = Annotated[int, Field(ge=1, le=10_000)]  # of what is made one by one
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Architecture = Literal["convnet", "alexnet", "vgg11", "resnet18", "resnet18_ap", "vit"]


def printable(text: str) -> str:
    """The text with control characters and broken encodings escaped: a name may hold anything."""
    return "".join(c if c.isprintable() or c in "\n\t" else ascii(c)[1:-1] for c in text)


class InputError(ValueError):
    """Bad input: says what was found, what was expected and what to do."""

    def __str__(self) -> str:
        return printable(super().__str__())


@contextmanager
def own_torch() -> Iterator[None]:
    """PyTorch as the library expects it, whatever the caller set: the same settings, same bytes.

    That is float32 in full precision on one thread, the CPU as default device, no autocast, and
    gradients. What was set before is set again at the end. Some of it holds for the whole process:
    of calls in several threads, the last one to end sets it back.
    """
    with _everywhere(), ExitStack() as stack:
        stack.enter_context(np.errstate(divide="warn", over="warn", under="ignore", invalid="warn"))
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        for device in ("cpu", "cuda"):
            stack.enter_context(torch.autocast(device, enabled=False))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        yield


_guard, _inside, _before = Lock(), [0], ExitStack()


@contextmanager
def _everywhere() -> Iterator[None]:
    """What is set for the whole process."""
    try:
        with _guard:
            _inside[0] += 1
            if _inside[0] == 1:
                _set_for_all()
        yield
    finally:
        with _guard:
            _inside[0] -= 1
            if not _inside[0]:
                _before.close()


def _set_for_all() -> None:
    flushes = not (torch.tensor(1e-40, dtype=torch.float32, device="cpu") * 1).any()
    backends: Any = torch.backends
    onednn = backends.mkldnn
    attributes = (
        (backends.cuda.matmul, "fp32_precision", "ieee"),
        (onednn.matmul, "fp32_precision", "ieee"),
        (onednn, "enabled", True),
        (ImageFile, "LOAD_TRUNCATED_IMAGES", False),
    )
    # what sets it, as it is, as it is to be
    states: list[tuple[Callable[[Any], Any], Any, Any]] = [
        (torch.set_default_dtype, torch.get_default_dtype(), torch.float32),
        (torch.set_num_threads, torch.get_num_threads(), 1),
        (torch.set_flush_denormal, flushes, False),
        *((partial(setattr, of, name), getattr(of, name), ours) for of, name, ours in attributes),
    ]
    for change, before, ours in states:
        _before.callback(change, before)
        change(ours)


class AsItIs:
    """What a call takes as it is, if it is an instance; `origin` says where one comes from."""

    origin: ClassVar[str]

    @classmethod
    def __get_pydantic_core_schema__(cls, *_: Any) -> CoreSchema:
        words = f"{cls.__name__}, {cls.origin}"
        return core_schema.is_instance_schema(cls, cls_repr=words)


class Settings(BaseModel):
    """Frozen, strict and closed: an unknown key or a wrong type is an error.

    `later` names fields that were added after the first keys were given. While such a field is None
    it is left out of the key, so that older keys stay as they were.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
    stage: ClassVar[str] = ""  # the store's folder for its results; empty: no stage of its own
    later: ClassVar[tuple[str, ...]] = ()

    def faults(self) -> Iterator[str]:
        """What does not go together, as messages."""
        yield from ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        for fault in self.faults():
            raise ValueError(fault)
        return self

    @model_serializer(mode="wrap")
    def _without_blanks(self, fields: Handler) -> dict[str, Any]:
        return {k: v for k, v in fields(self).items() if v is not None or k not in self.later}

    def __repr_args__(self) -> list[tuple[str | None, Any]]:
        return [(k, v) for k, v in super().__repr_args__() if v is not None or k not in self.later]


class Task(Settings):
    """Settings of a stage: what one artefact of the store depends on."""

    words: ClassVar[str]  # the title, a format of the settings `s`

    @property
    def title(self) -> str:
        """The task in a few words, for progress and errors."""
        return printable(self.words.format(s=self))

    def needs(self) -> list[Task]:
        """Settings of the artefacts that this task reads."""
        return []


class Data(Settings):
    """Which images, how they are split, and in which space networks see them."""

    later: ClassVar[tuple[str, ...]] = ("path", "size", "contents", "space")
    name: str
    seed: int = 0  # of the split, and of everything drawn while the set is made
    zca: bool = False
    path: str | None = None  # of a folder of images, with <class>/* or train/<class>/* ...
    size: Count | None = None  # pixels per side of its images, once they are cut square
    contents: str | None = None  # names its images; filled by `data.datasets.identify`
    space: Literal["mtt"] | None = None  # the space of MTT's code; None: ours

    def faults(self) -> Iterator[str]:
        given = [k for k in ("path", "size", "contents") if getattr(self, k) is not None]
        if given and self.name != "folder":
            yield (
                f"{' and '.join(given)} given with data '{self.name}', but only 'folder' has them: "
                "leave them out, or set `name: folder`"
            )
        if self.name == "folder" and not {"path", "size"} <= set(given):
            where = "`path`, where the images are, and `size`, their side in pixels"
            yield f"data 'folder' needs {where}"

    @property
    def title(self) -> str:
        """What people call it: a folder of images by the folder's name."""
        return printable(Path(self.path).name) if self.path else self.name

    @property
    def label(self) -> str:
        """A name that no other data in a paper has: the title, and what differs from the usual."""
        odd = ["zca"] * self.zca + [f"space {self.space}"] * bool(self.space)
        odd += [f"split {self.seed}"] * bool(self.seed)
        odd += [f"{self.size} px, {(self.contents or '')[:6]}"] * bool(self.path)
        return ", ".join([self.title, *odd])


class Network(Settings):
    """An architecture and its size."""

    architecture: Architecture = "convnet"
    width: Few = 128
    depth: Few = 3  # of a convnet; the others have their own
    # group: four groups; batch: by the statistics of the batch alone, without running ones
    norm: Literal["instance", "group", "batch", "none"] = "instance"
    precision: Literal["float32", "bfloat16"] = "float32"  # bfloat16: automatic mixed precision

    def faults(self) -> Iterator[str]:
        if self.norm != "instance" and self.architecture in ("alexnet", "vit"):
            own = f"{self.architecture} has norms of its own, or none"
            yield f"norm = {self.norm}, but {own}: leave `norm` out"
        if self.norm == "group" and self.width % 4:
            yield f"norm = group with width = {self.width}: expected a multiple of 4 for the width"


def key(settings: Settings) -> str:
    """16 hexadecimal digits that name `settings`, in whatever order they were written."""
    fields = settings.model_dump()
    if place := _unidentified(fields):
        raise InputError(
            f"the contents of {place} are not identified yet: use datasets.identify or "
            "mtt_format.identify on the settings before asking for a result"
        )
    text = json.dumps([FORMAT, settings.stage, fields], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _unidentified(fields: dict[str, Any]) -> str | None:
    """The first folder or buffer in nested fields that lacks `contents`."""
    if (place := fields.get("buffer") or fields.get("path")) and not fields.get("contents"):
        return place
    inner = (_unidentified(value) for value in fields.values() if isinstance(value, dict))
    return next(filter(None, inner), None)


def generator(*names: int | str) -> torch.Generator:
    """A random generator for one use, named by that use: `generator(seed, "augment", step)`.

    Adding a use shifts no other, and any step can be drawn without drawing those before it.
    """
    digest = hashlib.sha256(repr(names).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def validated(kind: type[Model], fields: Any, where: str) -> Model:
    """`kind` from plain fields, or one InputError that lists every fault."""
    try:
        return kind.model_validate(fields)
    except ValidationError as error:
        raise explained(error, where, kind) from None


def explained(error: ValidationError, where: str, kind: type[BaseModel] = BaseModel) -> InputError:
    """Pydantic's findings as one message: where, what was found, what was expected, what to do."""
    lines = []
    for e in error.errors():
        place = ".".join(str(p) for p in e["loc"] if "[" not in str(p)) or "settings"
        value, bare = e["input"], e["type"] in ("missing", "value_error")
        shown = repr(value)[:200] if isinstance(value, PLAIN) else f"of type {type(value).__name__}"
        found = "" if bare else f" (found {shown})"
        advice = e["msg"].removeprefix("Value error, ")
        if e["type"] == "extra_forbidden":
            expected = ", ".join(_keys_at(kind, e["loc"])) or "the fields of its settings"
            advice = f"unknown key: check its spelling, or remove it; expected one of {expected}"
        lines.append(f"  {place}: {advice}{found}")
    these = "this line" if len(lines) == 1 else "these lines"
    return InputError(f"{where} cannot be used:\n" + "\n".join(lines) + f"\ncorrect {these}")


def _models(annotation: Any) -> set[type[BaseModel]]:
    """The models that a field's type is made of."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return {annotation}
    return {model for inner in get_args(annotation) for model in _models(inner)}


def _keys_at(kind: type[BaseModel], place: Sequence[int | str]) -> list[str]:
    """The keys that may stand beside the last of `place`, a path into `kind`."""
    models = {kind}
    # a step that names no field is a key of a mapping, or a form of a union
    for step in place[:-1]:
        fields = [model.model_fields[step] for model in models if step in model.model_fields]
        models = {model for field in fields for model in _models(field.annotation)} or models
    return sorted({name for model in models for name in model.model_fields})
