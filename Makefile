# Each target sets up what it needs (scripts/setup) and says what it does. Arguments: scripts/demo --for 10s
.PHONY: demo live test check bench
demo: ; @scripts/demo
live: ; @scripts/live
test: ; @scripts/test
check: ; @scripts/check
bench: ; @scripts/bench
