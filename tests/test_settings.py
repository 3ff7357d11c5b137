"""Settings: each fault is one message of what was found and expected; each field is in the key."""

import math

import pytest
import torch

from ddlib import base
from ddlib.base import FORMAT, InputError, generator, key, validated
from ddlib.runs.stages import Film, Following, Measurement
from ddlib.settings import (
    Condensation,
    Data,
    Distillation,
    Evaluation,
    Expert,
    Imported,
    Network,
    Selection,
)

DATA = Data(name="digits")
EXPERT = Expert(data=DATA)
START = Selection(data=DATA, method="real", ipc=2)
SET = Distillation(experts=EXPERT, start=START)
FOLDER = Data(name="folder", path="here", size=8, contents="0")
ON = {"data": DATA}
OF = {"experts": EXPERT, "start": START}
FAULTS = [  # kind, fields, what the message says
    (Expert, ON | {"epoch": 3}, ["epoch: unknown key: check its spelling", "one of ", "epochs"]),
    (Expert, {"data": {"name": "digits", "zcaa": True}}, ["data.zcaa: unknown key", "zca"]),
    (Expert, ON | {"epochs": "5"}, ["epochs", "valid integer", "found '5'"]),
    (Expert, ON | {"epochs": 5.0}, ["epochs", "valid integer", "found 5.0"]),
    (Expert, ON | {"epochs": True}, ["epochs", "valid integer", "found True"]),
    (Expert, ON | {"lr": -0.1}, ["lr", "greater than 0", "found -0.1"]),
    (Expert, ON | {"lr": math.nan}, ["lr", "finite number", "found nan"]),
    (Expert, ON | {"lr": "1e-3"}, ["lr", "valid number", "found '1e-3'"]),  # YAML's reading of 1e-3
    (Expert, ON | {"optimiser": "rmsprop"}, ["'sgd', 'momentum' or 'adam'", "found 'rmsprop'"]),
    (Expert, ON | {"strategies": ["crop", "mirror"]}, ["strategies.1", "found 'mirror'"]),
    (Expert, {"epochs": 0, "lr": 0}, ["data: Field required", "epochs", "lr", "these lines"]),
    (Expert, ON | {"sharpness_alpha": 0.4}, ["sharpness_alpha is given without `sharpness`"]),
    (Expert, ON | {"epochs": 5, "until": 6}, ["until = 6 is beyond epochs = 5"]),
    (Imported, ON | {"buffer": "b", "network": {"architecture": "vit"}}, ["a buffer of vit"]),
    (Data, {"name": "digits", "path": "p"}, ["path given with data 'digits'", "leave them out"]),
    (Data, {"name": "folder", "path": "p"}, ["needs `path`", "and `size`"]),
    (Selection, ON | {"method": "kmeans"}, ["'representative'", "found 'kmeans'"]),
    (Selection, ON | {"method": "herding"}, ["'herding' uses the features", "set `expert`"]),
    (
        Selection,
        ON | {"method": "correct", "expert": EXPERT, "features": "penultimate"},
        ["features 'penultimate': expected 'logits'"],
    ),
    (Selection, ON | {"method": "real", "ipc": 4, "centres": 2}, ["centres = 2 with ipc = 4"]),
    (Distillation, OF | {"inner_steps": 2, "matched_epochs": 3}, ["N = 2 is below", "lower M"]),
    (
        Distillation,
        OF | {"start_epochs": 50},
        ["T_max = 50", "M = 2 reaches epoch 51", "have 50", "lower T_max or M, or train longer"],
    ),
    (
        Distillation,
        OF | {"experts": EXPERT.model_copy(update={"until": 2}), "start_epochs": 2},
        ["reaches epoch 3", "have 2"],
    ),
    (Distillation, OF | {"checks": 11, "iterations": 10}, ["checks = 11 is above iterations = 10"]),
    (Distillation, OF | {"momentum": 1.0}, ["momentum", "less than 1", "found 1.0"]),
    (Distillation, OF | {"labels": "learned"}, ["labels = learned with lr_labels = None"]),
    (Distillation, OF | {"lr_labels": 2.0}, ["labels = None with lr_labels = 2.0"]),
    (Distillation, OF | {"labels": "expert"}, ["labels", "found 'expert'"]),
    (Distillation, OF | {"early_epochs": 5}, ["early_epochs = 5 with growth = None: set both"]),
    (
        Distillation,
        OF | {"early_epochs": 21, "growth": 5},
        ["early_epochs = 21, start_epochs = 20: expected first_start < early_epochs"],
    ),
    (Distillation, OF | {"first_start": 20}, ["first_start = 20", "expected first_start <"]),
    (
        Distillation,
        OF | {"experts": Expert(data=Data(name="digits", seed=1))},
        ["seed=1", "seed=0", "give both the same data"],
    ),
    (Condensation, {"start": START, "method": "dsa"}, ["published for ipc = 2", "give both"]),
    (Condensation, {"start": START, "method": "dm", "inner": 3}, ["inner = 3", "leave them out"]),
    (Evaluation, {"of": START, "network": {"architecture": "mlp"}}, ["'vgg11'", "found 'mlp'"]),
]


@pytest.mark.parametrize("kind, fields, parts", FAULTS)
def test_a_fault_is_an_error(kind, fields, parts):
    with pytest.raises(InputError) as caught:
        validated(kind, fields, "this file")
    text = str(caught.value)
    assert text.startswith("this file cannot be used:\n") and "\ncorrect " in text
    for part in parts:
        assert part in text, text


def test_limits_are_allowed():
    Distillation(**OF, inner_steps=2, matched_epochs=2, start_epochs=49)  # reaches epoch 50 of 50
    Distillation(**OF, inner_steps=1, matched_epochs=1, start_epochs=1, checks=1, iterations=1)
    Distillation(**OF, first_start=19, early_epochs=20, growth=1)
    Selection(data=DATA, method="representative", expert=EXPERT, ipc=20, centres=10)


def test_what_is_published_per_ipc_is_filled_in():
    ten = START.model_copy(update={"ipc": 10})
    dsa, dm = (Condensation(start=ten, method=m) for m in ("dsa", "dm"))
    assert (dsa.outer, dsa.inner, dm.outer, dm.inner) == (10, 50, 1, 1)


def test_settings_are_frozen():
    with pytest.raises(ValueError, match="frozen"):
        EXPERT.lr = 1.0


EVERY = [
    FOLDER,
    Network(),
    EXPERT,
    Imported(data=DATA, buffer="here", contents="0"),
    Selection(data=DATA, method="representative", expert=EXPERT, ipc=2),
    SET,
    Condensation(start=START, method="dc", outer=3, inner=4),
    Evaluation(of=SET, network=Network()),
    Following(of=SET),
    Film(of=SET),
    Measurement(network=Network(), data=DATA, ipc=1, gradient="adjoint", inner_steps=2),
]


def another(value):
    """Some other value for a field."""
    if isinstance(value, base.Settings):
        name = list(type(value).model_fields)[-1]
        return value.model_copy(update={name: another(getattr(value, name))})
    if isinstance(value, bool):
        return not value
    return value + 1 if isinstance(value, int | float) else f"not {value}"


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # another value may be no value
@pytest.mark.parametrize("settings", EVERY, ids=lambda s: type(s).__name__)
def test_every_field_is_in_the_key_and_their_order_is_not(settings):
    values = {name: getattr(settings, name) for name in type(settings).model_fields}
    changed = [settings.model_copy(update={n: another(value)}) for n, value in values.items()]
    assert len({key(s) for s in (settings, *changed)}) == len(values) + 1

    def reordered(some):
        items = reversed(some.items())
        return {name: reordered(v) if isinstance(v, dict) else v for name, v in items}

    again = type(settings)(**reordered(settings.model_dump()))
    assert key(again) == key(settings) and again == settings


def test_keys_are_what_they_were():
    """Hours of kept results are found by them."""
    start = Selection(data=DATA, method="representative", expert=EXPERT, ipc=2)
    made = Distillation(experts=EXPERT, start=start)
    judged = Evaluation(of=made, network=Network())
    keys = ["b2a238594f7c4962", "ce77668bc7a261f8", "56bf954acb38564f", "8afe07ccdfbd1465"]
    assert [key(settings) for settings in (EXPERT, start, made, judged)] == keys
    assert key(judged.model_copy(update={"labels": None})) == keys[3]


@pytest.mark.parametrize("name, epochs, changed", [("dc", 300, False), ("dsa", 1000, True)])
def test_a_protocol_fills_what_it_says_and_lets_nothing_else_pass(name, epochs, changed):
    start = Selection(data=DATA, method="real")
    judged = Evaluation(of=start, network=Network(), protocol=name, networks=3)
    assert (judged.epochs, judged.lrs, judged.batch) == (epochs, (0.01,), 256)
    assert (judged.weight_decay, judged.images, judged.networks) == (5e-4, "last", 3)
    assert bool(judged.strategies) == changed
    assert Evaluation(**judged.model_dump()) == judged, "an artefact says them all, and is read"
    words = (
        rf"epochs = 5, but protocol '{name}' has {epochs}: leave it out, or set `protocol: ours`"
    )
    with pytest.raises(ValueError, match=words):
        Evaluation(of=start, network=Network(), protocol=name, epochs=5)
    assert Evaluation(of=start, network=Network(), epochs=5).protocol == "ours"


def test_the_format_is_in_the_key(monkeypatch):
    before = key(START)
    monkeypatch.setattr(base, "FORMAT", FORMAT + 1)
    assert key(START) != before and len(before) == 16


def test_contents_that_are_not_identified_have_no_key():
    with pytest.raises(InputError, match="contents of here are not identified yet"):
        key(Selection(data=FOLDER.model_copy(update={"contents": None}), method="real"))


def test_each_use_has_a_generator_of_its_own():
    def first(*names):
        return torch.rand(1, generator=generator(*names)).item()

    step = (0, "augment", 1)
    others = [(0, "augment", 2), (1, "augment", 1), (0, "order", 1), (0, "augment", 11)]
    uses = [step, *others, ("0", "augment", 1), (0, "augment")]
    assert len({first(*names) for names in uses}) == len(uses)
    before = first(*step)
    torch.manual_seed(3)
    assert first(*step) == before
