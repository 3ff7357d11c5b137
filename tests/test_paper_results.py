"""What is kept can be read again as it was written, and sealed with digests that a shell checks."""

import gzip
import shutil
import subprocess

import numpy as np
import pandas as pd
import pytest

from ddlib.paper.results import SEALS, Results, rows_file
from ddlib.runs import studies
from ddlib.runs.profile import profile
from ddlib.settings import InputError


@pytest.fixture
def kept(tmp_path):
    """Results with a table, rows, and what a killed process and a failed notebook leave."""
    results = Results(tmp_path / "some")
    results.keep_table("main", pd.DataFrame({"mean": [1 / 3]}))
    results.keep_rows("main", pd.DataFrame({"accuracy": [0.1]}))
    (results.folder / "notebooks").mkdir()
    for name in ("rows/.half-abc.csv", "notebooks/02_experts.failed.ipynb", "notebooks/a b.ipynb"):
        (results.folder / name).write_text("x")
    return results


def test_a_seal_is_what_sha256sum_checks(kept):
    assert kept.sealed() == {}
    for _ in range(2):  # the second seal does not count the first
        kept.seal()
        assert kept.sealed() == kept.digests()
    assert list(kept.sealed()) == [
        "notebooks/a b.ipynb",
        "rows/main.csv",
        "tables/main.csv",
        "tables/main.md",
    ]
    check = [shutil.which("sha256sum"), "--check", "--strict", "--quiet", SEALS]
    assert subprocess.run(check, cwd=kept.folder).returncode == 0
    sealed = kept.sealed()
    kept.keep_rows("main", pd.DataFrame({"accuracy": [0.2]}))
    assert subprocess.run(check, cwd=kept.folder, capture_output=True).returncode == 1
    now = kept.digests()
    assert [path for path in sealed if sealed[path] != now[path]] == ["rows/main.csv"]


def test_rows_of_curves_are_packed_and_the_same_bytes_each_time(tmp_path):
    rows = pd.DataFrame({"loss": [1 / 3, 2.0], "method": ["AST", "MTT"]})
    folders = [Results(tmp_path / name) for name in ("a", "b")]
    for results in folders:
        assert results.keep_rows("curves", rows).equals(rows) and results.has_rows("curves")
    a, b = ((results.folder / "rows/curves.csv.gz").read_bytes() for results in folders)
    assert a == b and gzip.decompress(a) == rows.to_csv(index=False).encode()


@pytest.mark.parametrize("study", ["main", "curves"])
@pytest.mark.parametrize("content", [b"", b"\xff\xfe\n1,2", b"a\n1,2\n1,2,3,4", b"\x1f\x8b\x08"])
def test_rows_that_are_no_table_are_named(study, content, kept):
    file = kept.folder / rows_file(study)
    file.write_bytes(content)
    with pytest.raises(InputError, match=f"{file.name} is no table of rows.*take a sound copy"):
        kept.rows(study)


def test_a_broken_seal_names_its_line(kept):
    kept.seal()
    file = kept.folder / SEALS
    file.write_text(file.read_text() + "f00  rows/main.csv\n")
    with pytest.raises(InputError, match=r"line 5 of .*SHA256SUMS reads 'f00.*run `make paper`"):
        kept.sealed()


def test_digests_of_sets_replace_one_another_and_stay_in_order(tmp_path):
    results = Results(tmp_path)
    assert list(results.set_digests()) == ["cell", "method", "distil_seed", "sha256", "lr"]
    for seed, digest, lr in ((2, "a", 0.1), (1, "b", 1 / 3), (2, "c", 0.2)):
        results.keep_set_digest("mnist-ipc1", "AST+", seed, digest, lr)
    results.keep_set_digest("mnist-ipc1", "AST", 3, "d")
    digests = results.set_digests()
    assert digests.sha256.tolist() == ["d", "b", "c"]
    assert digests.distil_seed.tolist() == [3, 1, 2]
    assert np.isnan(digests.lr[0]) and digests.lr.tolist()[1:] == [1 / 3, 0.2]
    asked = [("mnist-ipc1", "AST+", 1), ("mnist-ipc1", "AST+", 7)]
    results.keep_digests(asked)
    assert results.set_digests().sha256.tolist() == ["b"]


def test_a_table_is_kept_with_six_digits_and_shown_with_four(tmp_path):
    table = pd.DataFrame({"mean": [1 / 3, None, -np.inf], "n": [5, 6, 7], "words": ["a", "", "b"]})
    Results(tmp_path).keep_table("some", table)
    lines = (tmp_path / "tables/some.csv").read_text().splitlines()
    assert lines == ["mean,n,words", "0.333333,5,a", ",6,", "-inf,7,b"]
    assert "0.3333 |" in (tmp_path / "tables/some.md").read_text()


@pytest.mark.parametrize("name", ["smoke", "laptop", "laptop-full"])
def test_every_kept_set_has_a_file_of_its_own(name, tmp_path):
    runs = [(run.cell, run.method, run.distil_seed) for run in studies.main(profile(name))]
    assert len({Results(tmp_path).set_file(*run) for run in runs}) == len(runs)
