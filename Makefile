# PROFILE is a name in ddlib/runs/profiles or the path of such a file. WORKERS=n computes in n processes;
# ENGINE is serial, processes or ray.
PROFILE ?= laptop
STUDY ?= all
ROUNDS ?= 50
PYTHON ?= python3.11
BIN := .venv/bin
DDLIB := $(BIN)/python -m ddlib
export STORE RESULTS WORKERS MEMORY ENGINE DEVICE GPU_SHARE RAY_ADDRESS CHECKPOINT TRACK

.PHONY: paper figures readme book article verify tune run status gc test soak bench lab lock clean

paper: .venv/ready          ## run every notebook; make whatever is missing on the way
	$(DDLIB) paper "$(PROFILE)"

figures: .venv/ready        ## every table and figure again, from the committed rows alone
	$(DDLIB) figures "$(PROFILE)"

readme: .venv/ready         ## fill the blocks of numbers in README.md and docs/
	$(DDLIB) readme

book: .venv/ready           ## docs, executed notebooks, tables, figures and reference: build/book/index.html
	$(DDLIB) book "$(PROFILE)"

article: .venv/ready        ## the notebooks' prose, figures, tables and claims as one PDF: build/article.pdf
	$(DDLIB) book "$(PROFILE)" --article

verify: .venv/ready         ## whether what is kept holds, and a sample comes out again; QUICK=1 makes none
	$(DDLIB) verify "$(PROFILE)" $(if $(filter-out 0,$(QUICK)),--quick)

tune: .venv/ready           ## the search behind the profile's tuned settings, on the validation split
	$(DDLIB) tune "$(PROFILE)"

run: .venv/ready            ## the artefacts of a study, and no notebook: STUDY=main
	$(DDLIB) run "$(STUDY)" --profile "$(PROFILE)"

status: .venv/ready         ## what the store holds for the profile, and what is missing
	$(DDLIB) status "$(PROFILE)"

gc: .venv/ready             ## show what no profile needs, and remove it once asked
	$(DDLIB) gc "$(PROFILE)"

test: .venv/ready
	$(BIN)/ruff check --no-cache ddlib tests notebooks
	$(BIN)/ruff format --check ddlib tests
	$(BIN)/python -m mypy
	$(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

soak: .venv/ready           ## kill a small paper ROUNDS times; it must end with the bytes of an undisturbed one
	$(BIN)/python tests/soak.py $(ROUNDS)

bench: .venv/ready          ## what the fast forms gain over plain PyTorch on this machine; run nothing beside it
	$(BIN)/python tests/bench.py

lab: .venv/ready            ## JupyterLab on the notebooks
	JUPYTER_CONFIG_PATH="$(CURDIR)/.jupyter" $(BIN)/jupyter lab notebooks $(if $(filter 0,$(shell id -u)),--allow-root)

.venv/ready: requirements.lock pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	touch $@
	@echo "ready: $(BIN)/python"

lock: .venv/ready           ## the exact versions of this environment, after a change of pyproject.toml
	$(BIN)/python -m pip install --quiet --upgrade --editable '.[test,book]'
	$(BIN)/python -m pip freeze --exclude-editable > requirements.lock

clean:                      ## remove build/ and the caches of tools; the store is for `make gc`
	rm -rf build .pytest_cache .ruff_cache .mypy_cache
