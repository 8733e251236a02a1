# SPDX-License-Identifier: Apache-2.0
# The two commands of a fresh clone are `make demo` and `make test`; both set up what they need in .venv.
PYTHON ?= python3
VENV ?= .venv
CLASSIC_VENV ?= .venv-classic
PYTEST_ARGS ?=
FUZZ_ARGS ?=
BIN := $(VENV)/bin
CXX_SOURCES = $(shell find ops tests -name '*.cpp' -o -name '*.h' -o -name '*.cu' -o -name '*.cuh' -o -name '*.inl' 2>/dev/null)
export PYTHON VENV

.PHONY: help demo test test-classic sanitized test-sanitized fuzz setup docs lint format check-cuda doctor clean clean-venv

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1|/p' $(MAKEFILE_LIST) | column -t -s '|'

demo: ## set up, train SegFormer-B0 with SAPA on a generated data set, test it, draw a picture
	@tools/setup_env.sh demo
	$(BIN)/python tools/demo.py $(DEMO_ARGS)

test: ## set up (first time: compiles mmcv's ops, 10-15 minutes) and run the tests; PYTEST_ARGS=...
	@tools/setup_env.sh test
	OMP_WAIT_POLICY=PASSIVE $(BIN)/python -m pytest -n auto --dist worksteal $(PYTEST_ARGS)

# pytest and not python -m pytest: the latter would put the checkout, and the operators that `make test` compiled there,
# before the installed package.
test-classic: ## the same on the classic stack (torch 2.1, mmcv 2.1; in .venv-classic), then without the native operators
	@VENV=$(CLASSIC_VENV) tools/setup_env.sh classic
	@$(CLASSIC_VENV)/bin/python -I -c "from sapa_mm.ops.library import unavailable_reason as r; raise SystemExit(r)"
	OMP_WAIT_POLICY=PASSIVE $(CLASSIC_VENV)/bin/pytest -n auto --dist worksteal $(PYTEST_ARGS)
	SAPA_MM_WITH_OPS=0 OMP_WAIT_POLICY=PASSIVE $(CLASSIC_VENV)/bin/pytest -n auto --dist worksteal $(PYTEST_ARGS)

# The library is built beside a copy of the package, so that the installed one stays as it is. Leaks are not looked for:
# the interpreter's own would drown them.
SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
	ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=build/sanitized/lib OMP_WAIT_POLICY=PASSIVE

sanitized:
	@tools/setup_env.sh test
	SANITIZE=1 FORCE_CUDA=0 $(BIN)/python setup.py --quiet build --build-base build/sanitized --build-lib build/sanitized/lib

test-sanitized: sanitized ## build the CPU operators with AddressSanitizer and UBSan and run their tests
	$(SANITIZED) $(BIN)/pytest tests/test_ops --ignore tests/test_ops/test_cuda_on_host.py $(PYTEST_ARGS)

fuzz: sanitized ## call the sanitized operators with random and wrong arguments, on every instruction set; FUZZ_ARGS=...
	$(SANITIZED) $(BIN)/python tools/dev/fuzz_operators.py $(FUZZ_ARGS)

setup: ## set up everything that `make test` needs, without running it
	@tools/setup_env.sh test

# PYTHONPATH: the notebooks run in a process of their own, in the folder of the page.
docs: $(BIN)/mkdocs ## build the site in build/site; a warning is an error. The first time sets up as `make test`
	PYTHONPATH=$(CURDIR) $(BIN)/mkdocs build --strict

$(BIN)/mkdocs: requirements/docs.txt
	@tools/setup_env.sh test
	$(BIN)/python -m pip install --quiet -r requirements/docs.txt
	@touch $@

lint: $(BIN)/ruff ## check the formatting and the usual slips
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(if $(CXX_SOURCES),$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES))

format: $(BIN)/ruff ## format Python, C++ and CUDA
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(if $(CXX_SOURCES),$(BIN)/clang-format -i $(CXX_SOURCES))

$(BIN)/ruff: requirements/lint.txt
	@test -x $(BIN)/python || tools/setup_env.sh demo
	$(BIN)/python -m pip install --quiet -r requirements/lint.txt
	@touch $@

check-cuda: ## compile every CUDA source for sm_80 and sm_90, where nvcc is present
	@PYTHON=$(BIN)/python .ci/check_cuda.sh

doctor: ## say what is installed, what is missing and what mends it
	@$(BIN)/python -m sapa_mm.doctor

clean: ## remove what builds and test runs leave
	rm -rf build dist *.egg-info sapa_mm/*.so sapa_mm/.mim .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -not -path './$(CLASSIC_VENV)/*' -prune -exec rm -rf {} +
	rm -f $(VENV)/sapa_mm-stamps/package

clean-venv: ## remove the virtual environments (compiled mmcv wheels stay in ~/.cache/sapa_mm)
	rm -rf $(VENV) $(CLASSIC_VENV)
