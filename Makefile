# Every target is one line that also works by hand. The environment is the active one if viker is in it, else .venv
# beside this file, made when it is missing; `make check BIN=/some/venv/bin` names another.
BIN := $(shell for d in "$$VIRTUAL_ENV" "$$CONDA_PREFIX"; do if [ -n "$$d" ] && [ -x "$$d/bin/viker" ]; then echo "$$d/bin"; exit; fi; done; echo .venv/bin)
PACKAGES = data models precompute train evaluate purge plan bench sweep cli.py pipeline.py doctor.py
READY = "$(BIN)/python" -c "import viker, pytest, hypothesis, mypy" >/dev/null 2>&1

.DEFAULT_GOAL := help
.PHONY: help environment install check test test-slow docs golden bench

help: ## print this
	@grep -E '^[a-z-]+:.*## ' Makefile | sed -E 's/:[^#]*## /|/' | while IFS='|' read -r target text; do printf '  make %-10s %s\n' "$$target" "$$text"; done

environment:
	@$(READY) || if [ "$(BIN)" = .venv/bin ]; then bash .ci/install .venv dev; else echo "$(BIN): expected viker with its dev extra; run: pip install -c constraints.txt -e '.[dev]'" >&2; exit 1; fi

install: environment ## make .venv with viker and its dev extra (2 minutes, 3 GB), if it is missing

check: environment ## formatting, lint and types; all three run, whatever the first says
	@failed=; "$(BIN)/ruff" format --check . || failed=1; "$(BIN)/ruff" check . || failed=1; "$(BIN)/mypy" $(PACKAGES) || failed=1; [ -z "$$failed" ]

test: environment ## the suite, without what takes minutes or special hardware
	"$(BIN)/python" -m pytest

test-slow: environment ## the end-to-end tests, minutes each
	"$(BIN)/python" -m pytest -m "slow and not gpu and not vllm and not browser"

docs: environment ## write docs/commands.md from the command line, docs/methods.md and docs/protocols.md from the records, results from their JSON
	"$(BIN)/python" docs/write_commands.py && "$(BIN)/python" docs/write_methods.py && "$(BIN)/python" docs/write_protocols.py && "$(BIN)/python" docs/write_results.py

golden: environment ## write the golden files again; look at the difference before you keep it
	VIKER_GOLDEN=1 "$(BIN)/python" -m pytest tests/test_cache_format.py tests/test_golden_answers.py && "$(BIN)/python" tests/test_encode.py && "$(BIN)/python" tests/test_families.py

bench: environment ## measure speed and size on this machine; kept figures are in benchmarks/
	"$(BIN)/viker" bench cache
	"$(BIN)/viker" bench precompute
	"$(BIN)/viker" bench train
	"$(BIN)/viker" bench evaluate
