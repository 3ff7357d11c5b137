"""One thread, as the engine's processes have: the same bytes on every machine with the same wheels, and no fight over cores; and one whole paper for all."""

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def printed(tmp_path_factory):
    """A whole paper under `smoke`, from nothing; to be read only."""
    from ddlib.__main__ import main

    folder = tmp_path_factory.mktemp("paper")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("STORE", str(folder / "store"))
        patch.setenv("RESULTS", str(folder / "results"))
        assert main(["paper", "smoke"]) == 0
    return folder
