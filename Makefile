# Everything a contributor runs. Each target brings its own set-up: a virtual environment in .venv
# with the locked dependencies, and the Rust core built into it. A second call finds that done.
#
#   make demo    a short video on this machine, no GPU and no weights needed
#   make test    the Rust and Python tests
#   make lint    format, lint, types, floors, stub, licences and advisories
#   make parity  how far we are from what we must agree with; writes the table of BENCHMARKS.md
#   make eval    how well the ball world's videos follow the simulator, on 32 held-out scenes
#   make eval-pusher  how well the pusher world follows MuJoCo: pixels, policies, planning; a page and
#                a contact sheet in outputs/pusher_evaluation
#   make bench   speed beside the rivals on this GPU: kernels, products, a forward, VAE, T5, whole
#                runs; writes benches/results/ and the tables and charts of BENCHMARKS.md
#   make wheel   the wheel and the sdist, looked into
#   make matrix  the wheel in empty environments: old and new Pythons and dependencies
#   make soak    500 small clips in one process: memory, descriptors, threads, children; batches
#                killed at 300 points and resumed; an hour of worlds in a simulator's process; a list
#                over a Ray cluster, a worker killed
#   make fuzz    10 000 damaged media files, 1000 runs of ffmpeg that leave nothing behind, and
#                damaged weight files for a minute (make fuzz-media, make fuzz-weights)
#   make lock    requirements/dev.lock from requirements/dev.in
#   make clean   what the targets above made, .venv included

SHELL := /bin/bash
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

VENV := $(CURDIR)/.venv
PYTHON := $(VENV)/bin/python
# A virtual environment of the caller's own, conda's included, is none of our business.
unexport VIRTUAL_ENV CONDA_PREFIX PYTHONHOME PYTHONPATH
export PATH := $(VENV)/bin:$(PATH)
export PYO3_PYTHON := $(PYTHON)

RUST_SOURCES := Cargo.toml Cargo.lock pyproject.toml \
	$(shell find rust -name '*.rs' -o -name Cargo.toml 2>/dev/null)
ARGS ?=
# Each with one thread: two that want two cores each wait for one another most of the time.
TEST_PROCESSES ?= $(shell cores=$$(nproc); echo $$((cores < 4 ? cores : 4)))
FUZZ ?= 60
# What is published does not tell whose machine built it.
NAMELESS := --remap-path-prefix=$(or $(CARGO_HOME),$(HOME)/.cargo)=cargo \
	--remap-path-prefix=$(CURDIR)=cosmos-fast

.PHONY: help setup demo test parity lint lint-style lint-types lint-floors lint-rust lint-audit \
	eval eval-pusher bench wheel matrix soak fuzz fuzz-media fuzz-weights lock clean

help:
	@sed -n 's/^#   //p' Makefile

setup: .venv/.core

.venv/.dependencies: requirements/dev.lock tools/find_python.sh
	@python="$$(tools/find_python.sh)" && \
		{ [ -x $(PYTHON) ] || "$$python" -m venv $(VENV); }
	$(PYTHON) -m pip install --disable-pip-version-check --only-binary :all: \
		--require-hashes --requirement requirements/dev.lock
	@touch $@

.venv/.core: .venv/.dependencies $(RUST_SOURCES)
	@command -v cargo >/dev/null || { echo "make: cargo is missing: the media and memory core \
	is written in Rust; install a toolchain (https://rustup.rs) and call make again" >&2; exit 1; }
	VIRTUAL_ENV=$(VENV) PIP_QUIET=1 $(PYTHON) -m maturin develop --release --locked
	@touch $@

demo: setup
	$(PYTHON) -m cosmos_fast demo $(ARGS)

test: setup
	cargo test --locked --package cosmos-fast-core
	OMP_NUM_THREADS=1 $(PYTHON) -m pytest --numprocesses $(TEST_PROCESSES) --dist loadfile $(ARGS)

parity: setup
	$(PYTHON) -m pytest --write-parity -m parity $(ARGS)

lint: lint-style lint-types lint-floors lint-rust lint-audit

lint-style: setup
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .

lint-types: setup
	$(PYTHON) -m mypy python
	$(PYTHON) -m mypy --config-file tests/mypy.ini tests tools benches
	MYPYPATH=python $(PYTHON) -m mypy.stubtest cosmos_fast._core

lint-floors: setup
	$(VENV)/bin/lint-imports

lint-rust: setup
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- -D warnings

lint-audit: setup
	$(PYTHON) tools/audit.py

eval: setup
	$(PYTHON) -m tools.ballworld.evaluate $(ARGS)

eval-pusher: setup  # ARGS="--model FOLDER --only accuracy"; --model mujoco for a perfect world
	MUJOCO_GL=$${MUJOCO_GL:-osmesa} $(PYTHON) -m tools.pusherworld.evaluate $(ARGS)

bench: setup  # ARGS="--only forward --shape 2b_480p_81" for one of them; benches/h200.md has the long list
	@$(PYTHON) -c "import sys, torch; \
		torch.cuda.is_available() or sys.exit('make: bench needs a CUDA device, and torch sees none')"
	@$(PYTHON) -m cosmos_fast bench --save benches/results $(ARGS); code=$$?; \
		$(PYTHON) benches/render.py && exit $$code

wheel: setup
	rm -rf dist
	RUSTFLAGS="$(NAMELESS)" CARGO_TARGET_DIR=target/wheel \
		$(PYTHON) -m maturin build --release --locked --sdist --out dist
	$(PYTHON) tools/check_wheel.py --published dist/*.whl

matrix: wheel  # ARGS="--interpreter /path/to/python3.12" where it is not on PATH
	$(PYTHON) tools/install_matrix.py dist/*.whl $(ARGS)

# Ray is an extra, and large: only this target asks for it.
.venv/.ray: .venv/.core
	$(PYTHON) -m pip install --disable-pip-version-check --only-binary :all: 'ray[data]>=2.50'
	@touch $@

soak: setup .venv/.ray
	$(PYTHON) tools/soak.py $(ARGS)
	$(PYTHON) -m tools.soak_batch
	$(PYTHON) -m tools.soak_world
	$(PYTHON) -m pytest -m soak

fuzz: fuzz-media fuzz-weights

fuzz-weights:  # FUZZ="600 7": seconds, and the seed of an earlier run
	cargo run --locked --release --package cosmos-fast-core --example fuzz_weights -- $(FUZZ)

fuzz-media: setup  # ARGS="-k mkv" for one kind of file; COSMOS_FAST_SOAK_SEED=1 for other damage
	COSMOS_FAST_SOAK_FILES=$${COSMOS_FAST_SOAK_FILES:-10000} \
	COSMOS_FAST_SOAK_RUNS=$${COSMOS_FAST_SOAK_RUNS:-1000} \
		$(PYTHON) -m pytest --timeout 0 tests/test_media_mutations.py \
		tests/test_media_fake_ffmpeg.py::test_runs_leave_no_process_descriptor_or_thread $(ARGS)

lock: .venv/.dependencies
	$(VENV)/bin/uv pip compile requirements/dev.in --universal --python-version 3.11 --upgrade \
		--generate-hashes --no-header --annotation-style line --output-file requirements/dev.lock

clean:
	rm -rf .venv target dist .mypy_cache .pytest_cache .ruff_cache .hypothesis \
		.import_linter_cache
	find python kernels tests tools benches -name __pycache__ -type d -prune -exec rm -rf {} +
	rm -f python/cosmos_fast/_core*.so
