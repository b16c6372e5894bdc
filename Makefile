# Geometry of Learning: the commands of the README. Needs GNU Make and Python 3.11 or newer; `make` alone lists the targets.
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# A study is a folder under packages/. The arguments of its main job stand here, one line a study.
STUDIES := $(sort $(notdir $(patsubst %/pyproject.toml,%,$(wildcard packages/*/pyproject.toml))))
job.latentwire-adapter = run --config $(SIZE)
job.least-action = sweep --config $(if $(filter long,$(SIZE)),atlas --output-dir runs/least-action/atlas --resume,$(SIZE))
job.retrofit = compare --config $(SIZE) $(if $(filter long,$(SIZE)),--output-dir runs/retrofit/long --resume && $(BIN)/retrofit compare --config smollm2 --output-dir runs/retrofit/smollm2 --resume)
job.ternary-vae = sweep --config $(SIZE)
job.polytope-hsae = all --config $(patsubst smollm2-quick,smollm2,smollm2-$(SIZE))

# quick: minutes a study on two CPU cores; full: up to 40 minutes, the tables of the READMEs; long, where a
# study has it: hours.
SIZE ?= quick

# Environments that `make test` runs at the same time, each with one thread; each shows its output when it ends.
AT_ONCE ?= 2

# torch's import takes 10 s instead of 4 s where nothing may be compiled.
unexport PYTHONDONTWRITEBYTECODE

# The first Python that is new enough, python3 before any other; `make setup PYTHON=...` names one.
ifndef PYTHON
PYTHON := $(or $(shell for python in python3 python3.13 python3.12 python3.11 python3.14; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done),python3)
endif

BIN := .venv/bin
TOX := .tox/launcher/bin/tox
PYPROJECTS := shared/pyproject.toml $(STUDIES:%=packages/%/pyproject.toml)
PIP_INSTALL := -m pip install --disable-pip-version-check --no-compile --constraint constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help setup studies $(STUDIES) reference-lm test lint mutants report bench images clean check-python check-size

help: ## list the targets
	@sed -nE 's/^([a-z-]+):.*## (.*)/\1|\2/p' $(firstword $(MAKEFILE_LIST)) | while IFS='|' read -r name text; do \
		printf '  make %-20s %s\n' "$$name" "$$text"; done
	@for study in $(STUDIES); do printf '  make %-20s %s\n' "$$study" "the main job of $$study"; done
	@echo "SIZE=quick (a few minutes a study), full or, where a study has it, long; PYTHON=... names the interpreter (now: $(PYTHON))"

setup: .venv/stamp .env ## create or update .venv with every package in it, and fetch the data that the defaults need
	@$(BIN)/python -m studycore.language.wordnet || echo "goes on without WordNet; what needs it will say so" >&2
	@$(BIN)/studycore language fetch || echo "goes on without that model; what needs it will say so" >&2

studies: check-size setup ## run the main job of every study, then write runs/index.html with every claim
	@failed=""; \
	$(foreach study,$(STUDIES),echo "== $(study)"; $(BIN)/$(study) $(job.$(study)) || failed="$$failed $(study)";) \
	$(BIN)/studycore index --runs runs || failed="$$failed index"; \
	if [ -n "$$failed" ]; then echo "failed:$$failed" >&2; exit 1; fi

$(STUDIES): check-size setup
	$(BIN)/$@ $(job.$@)

reference-lm: setup ## train the shipped language model again (about an hour on two CPU cores; resumes), compare with the record
	$(BIN)/studycore reference-lm train --resume

test: $(TOX) ## test every package on this Python, the wheels installed together, and lint, AT_ONCE=2 of them at a time
	@read -r factor path < <($(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2], sys.executable)'); \
	$(TOX) run-parallel --parallel $(AT_ONCE) --parallel-no-spinner --discover "$$path" --skip-missing-interpreters false \
		-e "$$(printf "$$factor-%s," studycore $(STUDIES))wheels,lint"

lint: $(TOX) ## ruff, mypy, hadolint and the checks of the repository's own files
	@$(TOX) run -e lint

mutants: $(TOX) ## put single faults into the packages, one at a time, and see which the tests notice (some forty minutes)
	@read -r factor path < <($(PYTHON) -c 'import sys; print("py%d%d" % sys.version_info[:2], sys.executable)'); failed=0; \
	for package in studycore $(STUDIES); do \
		$(TOX) exec --discover "$$path" -e "$$factor-$$package" -- python "$(CURDIR)/tests/mutants.py" --package "$$package" || failed=1; \
	done; exit $$failed

report: setup ## write runs/index.html: each study's question, answer, main figure and claims
	$(BIN)/studycore index --runs runs

bench: setup ## run all benchmarks, one after another
	@shopt -s nullglob; for benchmark in shared/benchmarks/*.py packages/*/benchmarks/*.py; do echo "== $$benchmark"; $(BIN)/python "$$benchmark"; done

images: .env ## build every study's image, then show that it imports its libraries and can write runs, and its size
	docker compose build $(STUDIES)
	@for study in $(STUDIES); do \
		echo "== $$study"; \
		docker compose run --rm -T --entrypoint python "$$study" -c \
			"import torch, accelerate, studycore, $$(basename packages/$$study/src/*); print('torch', torch.__version__, 'accelerate', accelerate.__version__)"; \
		docker compose run --rm -T "$$study" --version; \
		docker compose run --rm -T "$$study" doctor; \
		docker compose run --rm -T --entrypoint sh "$$study" -c 'file=$$(mktemp -p runs) && rm "$$file" && echo "runs can be written"'; \
		docker image inspect --format '{{.Size}}' "geometry-of-learning/$$study" | awk '{printf "%.2f GB\n", $$1 / 1e9}'; \
	done

clean: ## remove the environments, caches and build results; runs/ and fetched models stay
	rm -rf .venv .tox .mypy_cache .ruff_cache .pytest_cache build dist
	find shared packages tests -name __pycache__ -o -name .pytest_cache -o -name '*.egg-info' | xargs rm -rf

check-python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "Python 3.11 or newer is needed, and $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo not found); install one or name it: make setup PYTHON=python3.12" >&2; exit 2; }

check-size:
	@case "$(SIZE)" in quick | full | long) ;; *) echo "SIZE is '$(SIZE)', and must be quick, full or long" >&2; exit 2 ;; esac

.venv/stamp: constraints.txt $(PYPROJECTS) | check-python
	@[ -x $(BIN)/python ] || { echo "Setting up .venv with $$($(PYTHON) --version); torch is large, this takes a while."; $(PYTHON) -m venv .venv; }
	$(BIN)/python $(PIP_INSTALL) --editable './shared[lm]' $(STUDIES:%=--editable ./packages/%)
	@touch $@

# tox keeps an environment although the requirements of a package in it have changed: then all start afresh.
$(TOX): constraints.txt $(PYPROJECTS) | check-python
	@rm -rf .tox
	@$(PYTHON) -m venv .tox/launcher
	$(TOX:tox=python) $(PIP_INSTALL) --quiet tox
	@touch $@

# For docker compose: who calls, and whether there is a GPU to hand on. Other lines of an existing .env stay.
.PHONY: .env
.env:
	@mkdir -p runs
	@files=compose.yaml; \
	if command -v nvidia-container-runtime >/dev/null || docker info --format '{{.Runtimes}}' 2>/dev/null | grep -q nvidia; then \
		files=compose.yaml:compose.gpu.yaml; fi; \
	{ grep -vE '^(COMPOSE_FILE|UID|GID)=' .env 2>/dev/null || true; \
		echo "COMPOSE_FILE=$$files"; echo "UID=$$(id -u)"; echo "GID=$$(id -g)"; } > .env.new; \
	mv .env.new .env
