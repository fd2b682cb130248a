# Everything a user types; `make` alone lists it.
#
# Set-up is a virtual environment in .venv that holds exactly requirements.lock. Each target that needs it makes it first, or mends it:
# .venv/.graft-<hash of the lock> is written when all is installed, and .venv/.graft-unfinished stands from the start until then.
#
#   PYTHON=/path/to/python3.11     which Python the environment is made from (default: the first 3.11 of python3.11, python3, python)
#   torch_args="--index-url ..."   for torch and torchvision alone. By default both come from pip's usual index, where Linux builds carry CUDA.
#                                  Without a GPU, the CPU wheel index of pytorch.org saves gigabytes: make setup torch_args="--index-url <that index>"
#   pip_args="..."                 for every package
#   jobs=2                         test processes side by side (default: one per core)

LOCK := requirements.lock
VENV := .venv
STAMP := $(VENV)/.graft-$(shell sha256sum $(LOCK) | cut -c1-16)
UNFINISHED := $(VENV)/.graft-unfinished
OURS := $(VENV)/.graft-made-this
PY := $(VENV)/bin/python

is_311 := -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'
works = $(PY) -m pip --version >/dev/null 2>&1 && $(PY) $(is_311)
ready = test -e $(STAMP) && $(PY) $(is_311) 2>/dev/null

PYTHON ?= $(shell for p in python3.11 python3 python; do $$p $(is_311) 2>/dev/null && { echo $$p; break; }; done)
TORCH ?= $(shell grep -E '^torch(vision)?==' $(LOCK))
jobs ?= $(shell nproc)

# One shell per recipe, ended by the first command that fails.
.ONESHELL:
.SHELLFLAGS := -ec
.PHONY: help run test fast lint bench setup install venv clean

help:
	@echo 'make run args="..."     train: python Run.py ..., bare it is Agent=Agents.DQN task=atari/pong'
	echo 'make test               lint, then every test (args="-k replay" and the like go to pytest)'
	echo 'make fast               the tests that take seconds'
	echo 'make lint               ruff and mypy'
	echo 'make bench args="..."   measure speed and memory'
	echo 'make setup              only the set-up that each of these begins with; its options stand at the head of the Makefile'
	echo 'make clean              remove the environment and caches that make made; runs stay'

run: setup
	@exec $(PY) Run.py $(args)

bench: setup
	@exec $(PY) -m Benchmarking.Speed $(args)

lint: setup
	@$(PY) -m ruff check .
	$(PY) -m mypy

# One thread per test process: torch's own threads would fight over the cores that the processes already fill.
pytest = exec env OMP_NUM_THREADS=1 $(PY) -m pytest -n $(jobs) --dist worksteal

test: lint
	@$(pytest) $(args)

fast: setup
	@$(pytest) -m "not slow" $(args)

# Two runs started side by side on a fresh machine must not install into one another.
setup:
	@$(ready) || $(shell command -v flock >/dev/null && echo flock Makefile) $(MAKE) --no-print-directory install

install:
	@if $(ready); then exit; fi
	if test -e $(OURS) -a -e $(UNFINISHED) || ! { $(works); }; then
	    $(MAKE) --no-print-directory venv
	elif test ! -e $(OURS); then
	    echo "Using the $(VENV) that is there: installing $(LOCK) into it."
	    if test -e $(UNFINISHED); then mend=--force-reinstall; fi
	fi
	command -v nvidia-smi >/dev/null || test -n "$(torch_args)" || echo "No GPU seen: see torch_args at the head of the Makefile for a smaller torch."
	rm -f $(VENV)/.graft-????????????????
	touch $(UNFINISHED)
	pip="$(PY) -m pip install --disable-pip-version-check $$mend $(pip_args)"
	# setuptools and torch come first: three packages are built here, with the locked setuptools, and nothing may draw in another torch.
	$$pip --no-deps $(shell grep '^setuptools==' $(LOCK))
	$$pip --no-deps $(torch_args) $(TORCH)
	$$pip --no-build-isolation --use-pep517 -r $(LOCK)
	mv $(UNFINISHED) $(STAMP)
	$(PY) -c 'import ctypes; ctypes.CDLL("libEGL.so.1")' 2>/dev/null || echo 'Hint: to render MuJoCo tasks without a screen, install EGL: apt install libegl1 libgl1'

venv:
	@python="$(PYTHON)"
	fail() { echo "$$1" >&2; exit 1; }
	test -n "$$python" || fail 'Graft needs Python 3.11 (apt install python3.11 python3.11-venv). Where it has another name: make PYTHON=/path/to/python3.11 ...'
	$$python $(is_311) || fail "PYTHON=$$python is not Python 3.11, which $(LOCK) is made for."
	$$python -c 'import ensurepip, venv' 2>/dev/null || fail "$$python cannot make virtual environments: apt install python3.11-venv"
	rmdir $(VENV) 2>/dev/null || true
	test -e $(OURS) -o ! -e $(VENV) || fail "$(VENV) is no working Python 3.11 environment, and make did not create it: move it away, then try again."
	rm -rf $(VENV)
	mkdir $(VENV)
	touch $(OURS) $(UNFINISHED)
	$$python -m venv $(VENV)

clean:
	@if test -e $(OURS); then rm -rf $(VENV); fi
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find . -path ./$(VENV) -prune -o -path ./.git -prune -o -name __pycache__ -type d -exec rm -rf {} +
