"""Variants and groups: what a profile adds to the methods and to the ablation; tables of them from rows made by hand; the controls that are equalities."""

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from test_pipeline import DATA, NET

from ddlib import settings as config
from ddlib.method import networks
from ddlib.method.distill import inner_loss
from ddlib.method.functional import FunctionalNetwork
from ddlib.method.matching import balance, matched_steps, objective
from ddlib.method.student import GRADIENTS
from ddlib.paper import claims, tables
from ddlib.paper.results import Results
from ddlib.runs import studies
from ddlib.settings import (
    Distillation,
    Evaluation,
    Expert,
    Following,
    InputError,
    Selection,
    generator,
)

CELL = "digits-ipc1"
VARIANTS = {
    "AST+": {"of": "AST", "recipe": "momentum", "start": "real", "balance": False},
    "AST+, long": {"of": "AST+", "inner_steps": 5},
    "k-means, penultimate features": {"of": "k-means", "features": "penultimate"},
}
OWN = {
    "AST+ minus one": {"base": "AST+", "methods": ["AST+, long"]},
    "k-means": {
        "base": "k-means",
        "methods": ["k-means, penultimate features"],
        "cell": "digits-ipc3",
    },
}


def profile(tmp_path, **changes):
    """The smoke profile with these variants and groups."""
    fields = yaml.safe_load((config.PROFILES / "smoke.yaml").read_text()) | {"variants": VARIANTS}
    fields["ablation"] |= {"groups": ["AST minus one", "MTT plus one"], "more": OWN}
    for place, value in changes.items():
        fields[place] = fields[place] | value
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump(fields))
    return config.profile(str(file))


def differing(one, other):
    one, other = (made.model_dump() for made in (one, other))
    return {name for name in one if one[name] != other[name]}


def test_a_variant_changes_what_it_says_and_nothing_else(tmp_path):
    held = profile(tmp_path)
    ast, plus, longer = (
        studies.of(held, CELL, method, 0) for method in ("AST", "AST+", "AST+, long")
    )
    assert differing(ast, plus) == {
        "experts",
        "start",
        "balance",
    } and plus.experts == studies.recipe(held, held.cells[CELL], "momentum")
    assert (
        plus.start.method == "real"
        and not plus.balance
        and differing(plus, longer) == {"inner_steps"}
    )
    assert ast == studies.of(config.profile("smoke"), CELL, "AST", 0)
    plain, deep = (
        studies.of(held, "digits-ipc3", method, 1)
        for method in ("k-means", "k-means, penultimate features")
    )
    assert (
        isinstance(deep, Selection)
        and differing(plain, deep) == {"features"}
        and deep.features == "penultimate"
    )


def test_a_cell_and_a_group_may_have_seeds_of_their_own(tmp_path):
    fields = yaml.safe_load((config.PROFILES / "smoke.yaml").read_text())["cells"]
    more = {"k-means": OWN["k-means"] | {"seeds": 4}, "AST+ minus one": OWN["AST+ minus one"]}
    held = profile(
        tmp_path,
        cells={"digits-ipc3": fields["digits-ipc3"] | {"seeds": 5}},
        ablation={"more": more},
    )
    found = {
        name: {run.distil_seed for run in studies.main(held) if run.cell == name}
        for name in held.cells
    }
    assert (
        found["digits-ipc3"] == set(range(5))
        and found[CELL] == set(range(held.seeds))
        and held.seeds != 5
    )
    groups = {
        name: {run.distil_seed for run in studies.ablation(held) if run.place["group"] == name}
        for name in more
    }
    assert groups == {"k-means": set(range(4)), "AST+ minus one": set(range(held.seeds))}


@pytest.mark.parametrize(
    ("variants", "message"),
    [
        ({"mine": {"of": "nothing"}}, "variant 'mine' is `of` nothing: expected a name of its own"),
        ({"mine": {"recipe": "sgd"}}, "variant 'mine' is `of` None"),
        ({"AST": {"of": "MTT"}}, "'AST' has the name of a method that is known already"),
        ({"AST+": {"of": "AST", "balanced": True}}, "balanced: unknown key"),
    ],
)
def test_a_variant_of_nothing_is_refused(tmp_path, variants, message):
    with pytest.raises(InputError, match=message):
        studies.everything(profile(tmp_path, variants=variants))


def test_borrowed_settings_keep_the_students_reach_and_given_ones_stay(tmp_path):
    """N a / (1 - mu): AST's a0 and lr_lr under no momentum; what is asked for by hand is taken as it is."""
    held = profile(tmp_path)
    ast, plain = (studies.of(held, CELL, method, 0) for method in ("AST", "AST − inner momentum"))
    assert (
        plain.a0 == pytest.approx(10 * ast.a0)
        and plain.lr_lr == pytest.approx(100 * ast.lr_lr)
        and plain.momentum == 0
    )
    asked = studies.distillation(held, CELL, "AST − inner momentum", 0, a0=0.02, lr_lr=1e-5)
    assert (asked.a0, asked.lr_lr) == (0.02, 1e-5)


def test_groups_stand_beside_their_base_once(tmp_path):
    held = profile(tmp_path)
    runs = [run for run in studies.ablation(held) if run.distil_seed == 0]
    assert len({(run.cell, run.method) for run in runs}) == len(runs)
    by_group = {}
    for run in runs:
        by_group.setdefault(run.place["group"], []).append(run.method)
        assert (run.method == run.place["base"]) == (
            run.method in ("AST", "MTT", "AST+", "k-means")
        )
    assert by_group == {
        "AST minus one": ["AST", *studies.MINUS],
        "MTT plus one": ["MTT", "MTT + inner momentum", "MTT, strong experts", *studies.PLUS],
        "AST+ minus one": ["AST+", "AST+, long"],
        "k-means": ["k-means", "k-means, penultimate features"],
    }
    assert {run.cell for run in runs if run.place["group"] == "k-means"} == {"digits-ipc3"}
    followed = [
        (run.cell, run.method)
        for run, made in studies.followings(held)
        if isinstance(made, Following) and run.distil_seed == 0
    ]
    assert followed == [(run.cell, run.method) for run in runs if run.cell == CELL]


def test_each_change_of_mtt_changes_one_thing(tmp_path):
    held = profile(tmp_path)
    plain = studies.of(held, CELL, "MTT", 0)
    found = {method: differing(plain, studies.of(held, CELL, method, 0)) for method in studies.PLUS}
    assert found == {
        "MTT, AST experts": {"experts"},
        "MTT + representative start": {"start"},
        "MTT + balanced loss": {"balance"},
        "MTT + intermediate matching": {"intermediate"},
        "MTT + weight perturbation": {"perturbation"},
    }


def test_unknown_groups_and_cells_are_refused(tmp_path):
    with pytest.raises(
        InputError, match="no group 'AST minus two': expected one of AST minus one, controls"
    ):
        studies.everything(profile(tmp_path, ablation={"groups": ["AST minus two"]}))
    with pytest.raises(InputError, match="names a cell 'elsewhere'"):
        studies.everything(
            profile(tmp_path, ablation={"more": {"mine": OWN["k-means"] | {"cell": "elsewhere"}}})
        )


def line(method, group, base, seed, accuracy):
    shared = {"study": "ablation", "cell": "c", "data": "d", "protocol": "lr_chosen", "net_seed": 0}
    return shared | {
        "method": method,
        "group": group,
        "base": base,
        "distil_seed": seed,
        "accuracy": accuracy,
    }


def test_a_change_is_paired_with_its_own_base_by_seed(tmp_path):
    rows = [
        line(*one, seed, value + 0.1 * seed)
        for seed in range(5)
        for *one, value in (("AST", "g", "AST", 0.3), ("AST − ramp", "g", "AST", 0.25))
    ]
    rows += [
        line(*one, seed, value - 0.05 * seed)
        for seed in range(5)
        for *one, value in (("MTT", "h", "MTT", 0.6), ("MTT + balanced loss", "h", "MTT", 0.63))
    ]
    held = Results(tmp_path)
    held.keep_rows("ablation", pd.DataFrame(rows))
    table = tables.ablation(held).set_index("method")
    assert table.difference["AST − ramp"] == pytest.approx(-5) and table.difference[
        "MTT + balanced loss"
    ] == pytest.approx(3)
    assert (
        table.high["AST − ramp"] == pytest.approx(-5) and table.pairs["AST − ramp"] == 5
    )  # by seed no spread is left
    assert table.difference[["AST", "MTT"]].isna().all()


def test_an_interaction_is_what_is_left_of_the_sum(tmp_path):
    both, one, other, neither = tables.INTERACTIONS["ramp and penalty"]
    chance = np.random.default_rng(0)
    level, a, b = chance.uniform(0.1, 0.3, (3, 5))
    rows = []
    for seed in range(5):
        for method, value in (
            (neither, level[seed]),
            (one, level[seed] + a[seed]),
            (other, level[seed] + b[seed]),
            (both, level[seed] + a[seed] + b[seed] + 0.04),
        ):
            rows.append(line(method, "g", "AST", seed, value))
    held = Results(tmp_path)
    held.keep_rows("ablation", pd.DataFrame(rows))
    found = tables.interactions(held).to_dict("records")
    assert [row["interaction"] for row in found] == ["ramp and penalty"]
    assert (
        found[0]["points"] == pytest.approx(4)
        and found[0]["low"] == pytest.approx(4)
        and found[0]["verdict"] == "they help each other"
    )


def test_what_would_settle_an_open_part():
    open_part = claims.Part("1a", "", effect=0.5, low=-0.5, high=1.5, n=5)
    assert open_part.settled_by == "about 20 seeds"  # half the interval needs four times as many
    assert claims.Part("1a", "", -0.5, -1.0, 0.5, 4).settled_by == "about 16 seeds"
    assert (
        claims.Part("1a", "", 0.5, 0.1, 1.0, 5).settled_by
        == claims.Part("1a", "", -0.5, -1.0, -0.1, 5).settled_by
        == ""
    )
    assert (
        "above 200" in claims.Part("1a", "", 0.001, -1.0, 1.0, 5).settled_by
        and "second seed" in claims.part("1a", "", [0.3]).settled_by
    )


@pytest.mark.parametrize("profile", ["smoke", "laptop", "laptop-full"])
def test_every_kept_set_has_a_file_of_its_own(profile, tmp_path):
    held = config.profile(profile)
    runs = [(run.cell, run.method, run.distil_seed) for run in studies.main(held)]
    assert len({Results(tmp_path).set_file(*run) for run in runs}) == len(runs)


def test_claim_four_asks_the_cells_that_have_every_seed(tmp_path):
    """A cell with fewer seeds than another takes no part: what is averaged over cells is of the same cells under every seed."""
    scored = {"random": [0.2, 0.4, 0.3, 0.5], "k-means": [0.5, 0.6, 0.55, 0.6]}
    few = {"random": [0.9, 0.1], "k-means": [0.1, 0.9]}
    lines = [
        (cell, m, seed, a)
        for cell, of in (("full", scored), ("few", few))
        for m, found in of.items()
        for seed, a in enumerate(found)
    ]
    lines += [
        ("full", m, seed, 0.5) for m in ("AST", "AST − representative start") for seed in range(4)
    ]
    rows = pd.DataFrame(lines, columns=["cell", "method", "distil_seed", "accuracy"]).assign(
        protocol="lr_chosen"
    )
    held = Results(tmp_path)
    for study in ("main", "ablation"):
        held.keep_rows(study, rows)
    found = {part.claim: part for part in claims.four(held)}
    assert found["4a"].n == 4 and found["4a"].effect == pytest.approx(
        np.mean(scored["k-means"]) - np.mean(scored["random"])
    )
    assert found["4c"].n == 4 and found["4c"].effect == pytest.approx(
        np.std(scored["random"], ddof=1) - np.std(scored["k-means"], ddof=1)
    )


def test_the_ledger_says_all_of_the_table(tmp_path, monkeypatch):
    parts = [
        claims.part("1a", "test accuracy, one − other", [0.01, -0.02, 0.04]),
        claims.part("1b", "mean step length", [0.3, 0.4]),
    ]
    monkeypatch.setattr(claims, "CLAIMS", {1: lambda results: parts})
    text = claims.ledger(Results(tmp_path))
    assert (
        "## 1. Stronger experts classify better" in text
        and "**inconclusive at this scale**, decided by 1a." in text
    )
    assert (
        "| 1a | test accuracy, one − other | +1.0 points | −2.0 points to +4.0 points | 3 | inconclusive at this scale | about "
        in text
    )
    assert "| 1b | mean step length | +0.350 | +0.300 to +0.400 | 2 | supported |  |" in text


FLAT = FunctionalNetwork(networks.build(NET, (1, 16, 16), 10))


@pytest.mark.parametrize("start", range(4))
@pytest.mark.parametrize("form", GRADIENTS)
def test_the_balanced_loss_is_a_start_dependent_inner_lr(start, form):
    """w(s) CE at lr a and CE at lr w(s) a are one student, and their gradients for the images, and for log a, are one: by no experiment can they be told apart."""
    settings = Distillation(
        experts=Expert(data=DATA, network=NET, epochs=6),
        start=Selection(data=DATA, method="real"),
        inner_steps=4,
        start_epochs=4,
        intermediate="equal",
        balance=True,
    )
    chance = generator(start, "test")
    theta, images = (
        FLAT.initial(chance).double(),
        torch.randn(10, 1, 16, 16, generator=chance, dtype=torch.float64),
    )
    target = theta + 0.1 * torch.randn(3, len(theta), generator=chance, dtype=torch.float64)
    matched, lr = matched_steps(4, 2, "equal"), torch.tensor(0.05, dtype=torch.float64)
    found = {}
    for balanced, a in ((True, lr), (False, lr * balance(start, 4))):
        loss = inner_loss(
            FLAT,
            torch.arange(10),
            settings.model_copy(update={"balance": balanced}),
            ("crop",),
            start,
            0,
        )
        gradient = GRADIENTS[form](
            loss,
            theta,
            images,
            a,
            4,
            0.9,
            lambda path: objective(path, target, matched, "equal"),
            list(matched),
        )
        found[balanced] = (gradient.value, gradient.images, gradient.lr * a, gradient.end)
    for with_loss, with_lr in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(with_loss, with_lr, rtol=1e-9, atol=1e-12)
    assert balance(start, 4) != 1


def test_hard_labels_can_be_asked_of_a_set_with_soft_ones():
    some = Selection(data=DATA, method="real")
    usual = Evaluation(of=some, network=NET)
    assert (
        config.key(usual)
        == config.key(Evaluation(of=some, network=NET, labels=None))
        != config.key(Evaluation(of=some, network=NET, labels="hard"))
    )
