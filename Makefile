# Two commands do everything on a fresh machine with Python >= 3.11:  make train   and   make test
PYTHON ?= python3
# Where pip finds torch. On Linux the default index serves a CUDA build of several GB; PyTorch's own CPU index is enough.
TORCH_INDEX ?=

.PHONY: train test lint bench chaos clean
.DEFAULT_GOAL := train

train: .venv/installed
	.venv/bin/rlhaiku train --preset laptop

# So many files of tests at a time, those of whole runs first: these wait for a third of their time.
JOBS ?= 2
test: lint
	.venv/bin/python -m pytest -q -n $(JOBS) --dist loadfile --no-loadscope-reorder tests/launch tests

lint: .venv/installed
	.venv/bin/ruff check .
	.venv/bin/mypy

.venv/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "rlhaiku needs Python >= 3.11; choose one with: make PYTHON=python3.12 ..."; exit 2; }
	$(PYTHON) -m venv .venv
	.venv/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt \
	  $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) --editable '.[local,dev]'
	@touch $@

chaos: .venv/installed
	.venv/bin/python -m benchmarks.chaos

# PEER_PYTHON: the Python of an environment with trl, for the comparisons with TRL, and SMOLLM2: the directory of that
# model, for one more; CONTRIBUTING.md says how to make both.
RESULTS ?= benchmarks/latest.jsonl
bench: .venv/installed
	for each in reward_pool judge_client rollout_throughput train_step weight_sync coordinator_overhead; do \
	  .venv/bin/python -m benchmarks.$$each --output $(RESULTS) || exit; done
ifdef PEER_PYTHON
	.venv/bin/python -m benchmarks.grpo_step --peer-python $(PEER_PYTHON) --output $(RESULTS)
	$(if $(SMOLLM2),.venv/bin/python -m benchmarks.grpo_step --peer-python $(PEER_PYTHON) --output $(RESULTS) --model $(SMOLLM2))
	.venv/bin/python -m benchmarks.time_to_reward --peer-python $(PEER_PYTHON) --output $(RESULTS) --target 0.9
endif

clean:
	rm -rf .venv build *.egg-info
