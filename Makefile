# make quickstart    train the quickstart from nothing but Python 3.11, 3.12 or 3.13: makes .venv, installs, runs
# make test, lint    what .ci/run runs before it
# make test-long     the tests that kill searches and runs and go on with them, which .ci/run runs as well
# make chaos         kill what can die in a hundred rounds, and count what is lost: an hour or two
# make tour          run docs/tour.ipynb again and keep what it shows
# make size          how many lines there are: the core that a contributor reads, and all
# make setup         only make .venv and install; setup-dev and setup-aws add those extras of pyproject.toml
# make constraints   resolve constraints.txt again from pyproject.toml
# make clean         remove .venv and caches; runs/ stays
#
#   ARGS='mixture.alpha=1 training.epochs=2'   more arguments for xlt train (quickstart), pytest (test) or chaos
#   PYTHON=python3.12                          the interpreter to make .venv with; default: the first fitting one
#   VENV=/some/folder                          another place than .venv
#   TORCH_INDEX=URL                            package index to take PyTorch from. On Linux the ordinary index gives the
#                                              build for NVIDIA GPUs, several GB; the address of the small CPU-only index,
#                                              or of another CUDA version, is on PyTorch's installation page
#   PIP_ARGS='--proxy ...'                     more arguments for pip

VENV ?= .venv
PYTHON ?=
ARGS ?=
PIP_ARGS ?=
TORCH_INDEX ?=
TORCH = torch==2.13.0
BIN = $(VENV)/bin

.PHONY: quickstart test test-long lint chaos tour size setup setup-dev setup-aws constraints clean
# a stamp is left only by a recipe that came to its end
.DELETE_ON_ERROR:

quickstart: $(VENV)/.installed
	@$(BIN)/xlt train jobs/configs/quickstart.yaml $(ARGS)

PYTEST = $(BIN)/python -m pytest --numprocesses=2 --dist=loadfile --no-loadscope-reorder --durations=25

test: $(VENV)/.installed-dev
	@$(PYTEST) -m 'not long' $(ARGS) </dev/null

test-long: $(VENV)/.installed-dev
	@$(PYTEST) -m long $(ARGS) </dev/null

lint: $(VENV)/.installed-dev
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

chaos: $(VENV)/.installed-dev
	@$(BIN)/python benchmarks/chaos.py $(ARGS)

define RUN_TOUR
import sys, nbclient, nbformat
tour = nbformat.read("docs/tour.ipynb", as_version=4)
place = {"metadata": {"path": sys.argv[1]}}
nbclient.NotebookClient(tour, timeout=None, startup_timeout=180, record_timing=False, resources=place).execute()
nbformat.write(tour, "docs/tour.ipynb")
endef
export RUN_TOUR
tour: $(VENV)/.installed-dev
	@place=$$(mktemp -d) && trap 'rm -rf "$$place"' EXIT && $(BIN)/python -c "$$RUN_TOUR" "$$place"

CORE = config corpora model evaluation training runs techniques/__init__.py techniques/technique.py
size:
	@find $(addprefix xlt_ray/,$(CORE)) -name '*.py' -not -path '*/loaders/*' -exec cat {} + | \
	  awk 'END { print NR " lines of core: $(CORE); loaders and single techniques left out" }'
	@find xlt_ray serve -name '*.py' -not -path '*/techniques/*' -exec cat {} + | \
	  awk 'END { print NR " lines in all: xlt_ray and serve, techniques left out" }'

setup: $(VENV)/.installed
setup-dev: $(VENV)/.installed-dev
setup-aws: $(VENV)/.installed-aws

# $(call install,WHAT): pip in the foreground, so that Ctrl-C reaches it, and dots beside it that end when this shell does.
# pip would compile one module after the other, for more than a minute; compileall does it on all cores, and leaves out
# the tests of packages. It is done here because where PYTHONDONTWRITEBYTECODE is set, as it is in many containers, every
# process would else compile what it imports, xlt_ray too.
define install
	@printf 'installing %s (log: $(VENV)/pip.log) ' '$(1)'; \
	( while sleep 5; kill -0 $$$$ 2>/dev/null; do printf .; done ) & dots=$$!; \
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-compile -c $(VENV)/constraints.txt $(PIP_ARGS) $(2) \
	  >$(VENV)/pip.log 2>&1 </dev/null; status=$$?; \
	[ $$status -ne 0 ] || $(BIN)/python -m compileall -qq -j 0 -x 'site-packages/.*/tests?/' xlt_ray serve \
	  "$$($(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" </dev/null; \
	kill $$dots 2>/dev/null; echo; \
	if [ $$status -ne 0 ]; then tail -n 25 $(VENV)/pip.log; echo 'installing failed; the same command tries again'; fi; exit $$status
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	@echo 'first time: about 170 packages, some minutes'
# the CUDA packages in constraints.txt fit PyTorch of the ordinary index only; such an index has few other packages
	@sed '$(if $(TORCH_INDEX),/^# CUDA/$(comma)$$d)' constraints.txt >$(VENV)/constraints.txt
	$(if $(TORCH_INDEX),$(call install,PyTorch,--no-deps --index-url $(TORCH_INDEX) $(TORCH)))
	$(call install,xlt_ray and all it needs,-e .)
	@touch $@

comma = ,
$(VENV)/.installed-%: $(VENV)/.installed
	$(call install,the extra $*,-e '.[$*]')
	@touch $@

FITS = import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))
# pip is what venv puts there last
$(BIN)/pip:
	@for python in $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if $$python -c '$(FITS)' >/dev/null 2>&1; then \
	    echo "making $(VENV) with $$($$python --version)"; \
	    $$python -m venv $(VENV); exit; \
	  fi; \
	done; \
	echo 'No fitting Python among: $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python).' >&2; \
	echo 'xlt_ray needs Python 3.11, 3.12 or 3.13 with its venv module (on Debian and Ubuntu: apt install python3-venv).' >&2; \
	echo 'Install one, or name one: make quickstart PYTHON=/path/to/python3.12' >&2; \
	exit 1

# Resolved, not installed, so that no GB are fetched; on the oldest Python, because newer ones are offered newer releases.
define WRITE_CONSTRAINTS
import json, re, sys
found = {i["metadata"]["name"]: i["metadata"]["version"].split("+")[0] for i in json.load(sys.stdin)["install"]}
found.pop("xlt-ray")
cuda = [name for name in found if re.match("nvidia-|cuda-|triton", name)]
assert cuda, "a PyTorch without CUDA packages was resolved (a local wheel?): resolve on Linux with the ordinary index"
pins = lambda names: "".join(f"{n}=={found[n]}\n" for n in sorted(names, key=str.lower))
print("# Every package xlt_ray needs, its extras included, at the version the tests passed with; for Python 3.11 to 3.13.")
print("# Made by `make constraints` on Python 3.11: pip resolves pyproject.toml with all extras in a fresh environment,")
print("# held by nothing but the version of PyTorch in the Makefile, and what it finds is written down here.")
print(pins(set(found) - set(cuda)))
print("# CUDA packages: installed only with the build of PyTorch that the ordinary index gives for Linux")
print(pins(cuda), end="")
endef
export WRITE_CONSTRAINTS
constraints:
	@fresh=$$(mktemp -d) && trap 'rm -rf "$$fresh"' EXIT && $(or $(PYTHON),python3.11) -m venv "$$fresh" && \
	"$$fresh/bin/python" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11) and "constraints are resolved on Python 3.11")' && \
	"$$fresh/bin/python" -m pip install --quiet --dry-run --ignore-installed --report "$$fresh/report.json" $(PIP_ARGS) \
	  '$(TORCH)' '.[dev,aws]' && \
	"$$fresh/bin/python" -c "$$WRITE_CONSTRAINTS" <"$$fresh/report.json" >"$$fresh/constraints.txt" && \
	cp "$$fresh/constraints.txt" constraints.txt

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -not -path './runs/*' -prune -exec rm -rf {} +
