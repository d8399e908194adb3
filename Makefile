# Each target sets up what it needs (scripts/setup) and says what it does. Arguments: scripts/demo --for 10s
# PYTHON=python3.13 make test chooses the interpreter.
.PHONY: demo live test test-newest test-lowest check docs figures bench fuzz faults mutants lock
demo: ; @scripts/demo
live: ; @scripts/live
test: ; @scripts/test
test-newest: ; @VERSIONS=newest VENV=.cache/venv-newest scripts/test
test-lowest: ; @VERSIONS=lowest VENV=.cache/venv-lowest scripts/test
check: ; @scripts/check
docs: ; @scripts/docs
figures: ; @scripts/setup dev && .venv/bin/python scripts/figures.py
bench: ; @scripts/bench
fuzz: ; @scripts/fuzz
faults: ; @scripts/faults
mutants: ; @scripts/mutants
lock: ; @scripts/setup core && .venv/bin/python scripts/lock
