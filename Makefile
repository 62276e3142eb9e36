# `make demo` runs the main job on the local cloud; `make test` passes the tests. Both set themselves up.
PYTHON ?= python3
SEED ?= 7
PROFILE ?= fleet
SPEED ?=
# What Python compiled is kept: some machines forbid it, and a story starts a hundred processes.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help demo demo-batch demo-bench test check setup python latency bench bench-build bench-replay bench-launch bench-storm bench-worker soak image image-test stacks-test laws lock clean

help:  ## what there is
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1\t\2/p' Makefile

demo: setup  ## upload, interruption, result on this machine: SEED=7 SPEED=4 PROFILE=fleet
	@.venv/bin/python -m localcloud.demo --seed $(SEED) --profile $(PROFILE) $(if $(SPEED),--speed $(SPEED))

demo-batch: setup  ## 50 photographs and two interruptions on AWS Batch: SEED=7 SPEED=20
	@.venv/bin/python -m localcloud.demo --seed $(SEED) --profile batch $(if $(SPEED),--speed $(SPEED))

demo-bench: setup  ## build.py bench on three types of known speed: are order and weights right? SEED=7
	@.venv/bin/python -m localcloud.benchdemo --seed $(SEED)

# The longest first. They wait for much of their time, so there may be more of them than cores.
STORIES = tests/test_story.py tests/test_stacks.py $(shell grep -l mark.story tests/test_*.py)
LONGEST = $(patsubst %,tests/test_%.py,examples worker ecs agent down soak machine judges once localcloud pools laws)
UNITS = $(LONGEST) $(filter-out $(LONGEST),$(wildcard tests/test_*.py))

test: check  ## everything CI runs, under ten minutes on two cores
	@.venv/bin/python -m pytest -m "story and not stacks" --numprocesses 3 --dist loadfile --no-loadscope-reorder $(STORIES)
	@.venv/bin/python -m pytest -m "not story and not image" --numprocesses 5 --dist loadfile --no-loadscope-reorder $(UNITS)

check: setup  ## format, lint and types
	@.venv/bin/ruff format --check .
	@.venv/bin/ruff check .
	@.venv/bin/mypy build.py templates ops lambdas agent ecs-tasks/gpu-worker/gpu_worker localcloud judges replay

latency: setup  ## notice to DRAINING and upload to launch, at real time
	@.venv/bin/python -m localcloud.latency

bench-build: setup bench/cdk/node_modules/.done  ## python build.py beside cdk synth (needs Node.js): build/bench/build.json
	@.venv/bin/python bench/build.py

bench-replay: setup  ## 45 days of nine zones under the shipped policy, in seconds: build/bench/replay.json
	@.venv/bin/python bench/replay.py

bench-launch: setup  ## cost and shortage by how instances start, the table of docs/launch.md: build/bench/launch.json
	@.venv/bin/python bench/launch.py

bench-storm: setup  ## 1,000 notices in a second, of 5,000 instances: build/bench/storm.json
	@.venv/bin/python bench/storm.py

bench-worker: setup  ## the worker beside its processor alone and a plain loop, and its calls: build/bench/worker.json
	@.venv/bin/python bench/worker.py

soak: setup  ## 2,000 jobs by workers that are killed all the time, on a cloud that fails and repeats itself
	@SOAK_JOBS=2000 .venv/bin/python -m pytest -q -s tests/test_soak.py

bench: setup  ## the long replays, of every policy (SPINDRIFT_TRACES=folder for recorded markets): build/bench/replay.html
	@.venv/bin/python bench/replay.py --all

bench/cdk/node_modules/.done: bench/cdk/package-lock.json
	@cd bench/cdk && npm ci --no-audit --no-fund --loglevel=error
	@touch $@

# --no-deps: the locks are complete, and pip would look anew for a package that another wants with an extra.
setup: python  ## the environments, from pinned requirements
	@$(MAKE) -s -j3 .venv/.done .venv-aws/.done .venv-judges/.done .agent-site/.done

python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
		{ echo "Spindrift needs Python 3.11 or newer as '$(PYTHON)'; point to one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' 2>/dev/null || \
		{ echo "$(PYTHON) has no venv module; on Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 2; }

.venv/.done: requirements/main.txt
	@echo "setting up .venv (about a minute, once)"
	@rm -rf .venv && $(PYTHON) -m venv .venv
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/main.txt
	@touch $@

.venv-aws/.done: requirements/aws.txt
	@echo "setting up .venv-aws (the stock aws command line)"
	@rm -rf .venv-aws && $(PYTHON) -m venv .venv-aws
	@.venv-aws/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/aws.txt
	@touch $@

.venv-judges/.done: requirements/judges.txt
	@echo "setting up .venv-judges (checkov, parliament)"
	@rm -rf .venv-judges && $(PYTHON) -m venv .venv-judges
	@.venv-judges/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/judges.txt
	@touch $@

# The agent's packages for Amazon Linux 2023's Python 3.9, pure Python only: they travel inside agent.pyz.
.agent-site/.done: requirements/agent.txt .venv/.done
	@rm -rf .agent-site
	@.venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes --no-deps --target .agent-site \
		--only-binary=:all: --platform any --python-version 3.9 --implementation py --abi none -r requirements/agent.txt
	@touch $@

image: setup  ## the worker's image by podman or docker, for build.py local --containers: BASE_IMAGE=python:3.13-slim-bookworm
	@BASE_IMAGE=$(BASE_IMAGE) VERSION=$(or $(VERSION),0) \
		REVISION=$(or $(REVISION),$(shell git rev-parse --short HEAD 2>/dev/null)) .venv/bin/python -m localcloud.engine

laws: setup  ## the laws of capacity, by other examples than make test's and twenty times as many
	@.venv/bin/python -m pytest --hypothesis-profile others --timeout 900 tests/test_laws.py tests/test_groups.py

stacks-test: setup  ## stories of the stacks image and batch, on the local cloud
	@.venv/bin/python -m pytest -m stacks --numprocesses 2 --dist loadfile

image-test: setup  ## the worker's image built, run and made to stop, read-only and powerless
	@.venv/bin/python -m pytest -m image --durations 5

# awscrt: one judge asks for it and does without. It would cost every process with boto3 a twentieth of a second, and
# neither Lambda nor the worker's image has it.
lock:  ## compile requirements/*.in to pinned, hashed *.txt (needs uv)
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-header --no-annotate --no-emit-package awscrt requirements/main.in -o requirements/main.txt
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-header --no-annotate requirements/aws.in -o requirements/aws.txt
	uv pip compile -q --generate-hashes --universal --python-version 3.11 --no-header --no-annotate requirements/judges.in -o requirements/judges.txt
	uv pip compile -q --generate-hashes --python-version 3.9 --no-header --no-annotate requirements/agent.in -o requirements/agent.txt

clean:  ## remove what was built and set up
	rm -rf build .venv .venv-aws .venv-judges .agent-site
