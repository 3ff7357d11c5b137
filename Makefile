# PROFILE names ddlib/profiles/<name>.yaml or is the path of such a file. WORKERS=n computes in n processes; ENGINE=serial, processes or ray.
PROFILE ?= laptop
STUDY ?= all
ROUNDS ?= 50
PYTHON ?= python3.11
BIN := .venv/bin
export STORE RESULTS WORKERS ENGINE GPU_SHARE RAY_ADDRESS CHECKPOINT TRACK

.PHONY: paper figures book verify tune run status gc test soak bench lab lock clean

paper: .venv/ready          ## run every notebook; make whatever is missing on the way
	$(BIN)/python -m ddlib paper $(PROFILE)

figures: .venv/ready        ## every table and figure again, from the committed rows alone
	$(BIN)/python -m ddlib figures $(PROFILE)

book: .venv/ready           ## the executed notebooks, tables, figures and the library's reference as a static site: build/book/index.html
	$(BIN)/python -m ddlib book $(PROFILE)

verify: .venv/ready         ## whether what is kept follows from its rows, and comes out again when a sample is made anew; QUICK=1 makes none
	$(BIN)/python -m ddlib verify $(PROFILE) $(if $(QUICK),--quick)

tune: .venv/ready           ## the search behind the profile's tuned settings, on the validation split
	$(BIN)/python -m ddlib tune $(PROFILE)

run: .venv/ready            ## what a study is read from, and no notebook: STUDY=main; SHARD=1/4 does a quarter of it
	$(BIN)/python -m ddlib run $(STUDY) --profile $(PROFILE) $(if $(SHARD),--shard $(SHARD))

status: .venv/ready         ## what the store holds for the profile, and what is missing
	$(BIN)/python -m ddlib status $(PROFILE)

gc: .venv/ready             ## show what no profile needs, and remove it once asked; the profile named counts too
	$(BIN)/python -m ddlib gc $(PROFILE)

test: .venv/ready
	$(BIN)/ruff check ddlib tests notebooks
	$(BIN)/ruff format --check ddlib tests
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

soak: .venv/ready           ## kill a small paper ROUNDS times, at random instants; it must end with the bytes of one that was left alone
	$(BIN)/python tests/soak.py $(ROUNDS)

bench: .venv/ready          ## what the fast forms gain over plain PyTorch on this machine; let nothing else run
	$(BIN)/python tests/bench.py

lab: .venv/ready            ## JupyterLab on the notebooks
	$(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
	@echo "ready: $(BIN)/python"

lock: .venv/ready           ## the exact versions of this environment, after a change of pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[test,book]'
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:                      ## forget what was computed; results stay
	rm -rf store build .pytest_cache .ruff_cache .mypy_cache
