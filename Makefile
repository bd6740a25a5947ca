# Everything lives in .venv and build/; nothing is installed outside this folder.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/ready
WORKERS ?= 2
SOAK_SECONDS ?= 600
AGAINST ?=
GPU ?= cuda-sm90
GPU_PYTHON ?= 3.12
GPU_PACKAGES ?=

.PHONY: setup test test-slow test-gpu lint demo docs bench-peers bench-gpu prepare-gpu kernel-diff soak coverage clients outside clean-root clean

setup: $(READY)

# torch first and alone, so that a half-resolved second step can never bring another build of it
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed")'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[compile,dev,metal]'
	@touch $@

test: lint
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'not slow and not sweep'

# whole packs in emulation, more shapes of each kernel, planted faults, other processors under qemu, sanitizers, machine code of every
# GPU; no GPU needed
test-slow: $(READY)
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m 'slow and not sweep and not gpu'

# on a machine with a GPU, ten minutes of soak included; elsewhere every test says what is missing
test-gpu: $(READY)
	SOAK_SECONDS=$(SOAK_SECONDS) $(BIN)/python -m pytest -q -m gpu tests/gpu

# what the tests try a few hundred times, many thousand times, and what they try for one device, format or type, for all
soak: $(READY)
	FORGED_MANIFESTS=10000 $(BIN)/python -m pytest -q tests/pack/test_forged.py --timeout=3600
	SCHEMAS=10000 $(BIN)/python -m pytest -q tests/structured/test_schemas.py --timeout=3600
	HOSTILE_REQUESTS=100000 $(BIN)/python -m pytest -q tests/server/test_fields.py -k hostile --timeout=3600
	DISCONNECTS=1000 $(BIN)/python -m pytest -q tests/server/test_lifecycle.py -k leaving
	KILL_POINTS=200 $(BIN)/python -m pytest -q tests/codegen/test_driver.py -k kill --timeout=3600
	MUTANTS=34000 $(BIN)/python -m pytest -q tests/graphs/test_weights.py tests/gguf/test_file.py tests/text/test_tokenizer_mutants.py -k mutants --timeout=3600
	RANDOM_MODELS=18 $(BIN)/python -m pytest -q tests/codegen/test_parity.py -k random_models
	DRAWN_OPS=500 $(BIN)/python -m pytest -q tests/codegen/test_generic_kernels.py -k many_drawn --timeout=3600
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m sweep
	EXAMPLES=200 $(BIN)/python -m pytest -q tests/server/test_openapi_fuzz.py --timeout=3600
	CUT_REQUESTS=500 $(BIN)/python -m pytest -q tests/engine/test_kv_cuts.py --timeout=3600
	$(BIN)/python -m pytest -q tests/server/soak_overload.py tests/server/soak_loop.py tests/text/test_chat_template.py tests/structured/test_hostile.py

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

demo: $(READY)
	@$(BIN)/python -m ferrum.cli.demo

# the first time builds llama.cpp and installs the other peers under build/peers; then about twenty-five minutes, on a quiet machine (ten of them
# for llama.cpp to fill a cache of 8 bits);
# BENCH="--only served --rounds 3" runs a part, BENCH=--full the large shapes too
bench-peers: $(READY)
	$(BIN)/python -m tests.bench.peers $(BENCH)

# on a machine with an NVIDIA GPU, under nine minutes; with a torch that uses CUDA its numbers stand beside ours
bench-gpu: $(READY)
	$(BIN)/python -m tests.bench.gpu

# what bench-gpu and test-gpu need on a machine with a GPU and a Python of its own, in build/bench-gpu; see docs/targets.md
prepare-gpu: $(READY)
	$(BIN)/python -m tests.bench.gpu --prepare build/bench-gpu --target $(GPU) --wheels $(GPU_PYTHON) $(if $(GPU_PACKAGES),--packages $(GPU_PACKAGES))

# generated kernels beside the stored rendering, or beside those of a revision: make kernel-diff AGAINST=REV; about a minute
kernel-diff: $(READY)
	@$(BIN)/python -m tests.kernel_diff $(if $(AGAINST),--against $(AGAINST))

# every causal language model that transformers knows, as a tiny random pack beside transformers itself: docs/models.md; the first time
# takes an hour, later ones what changed. COVERAGE="--only 'gpt.*'" or "--result fault" tries some, "--keep" only what was never tried
coverage: $(READY)
	$(BIN)/python -m tests.coverage.run $(COVERAGE)

# an environment for each client under build/clients, then their programs against two servers; the table is docs/clients.md.
# CLIENT="'openai 2.8' litellm" tries some and writes nothing
clients: $(READY)
	@$(BIN)/python -m tests.clients.run $(CLIENT)

# other servers' own tests: make outside LLAMA_CPP=FOLDER VLLM=FOLDER, their source distributions unpacked; the page is
# docs/outside-tests.md. OUTSIDE="--only PATTERN" tries some and writes nothing
outside: $(READY)
	@test -n "$(LLAMA_CPP)$(VLLM)" || (echo 'give LLAMA_CPP=FOLDER or VLLM=FOLDER: a source distribution of llama-cpp-python or vllm, unpacked'; exit 2)
	$(if $(LLAMA_CPP),$(BIN)/python -m tests.outside.run llama.cpp $(LLAMA_CPP) $(OUTSIDE))
	$(if $(VLLM),$(BIN)/python -m tests.outside.run vllm $(VLLM) $(OUTSIDE))

# the Dockerfile's steps without Docker, in a root that debootstrap made (tests/server/clean_root.py says how; needs root), and the
# server there asked once: make clean-root ROOT=FOLDER PACK=FILE
clean-root: $(READY)
	$(BIN)/python -m tests.server.clean_root $(ROOT) $(PACK)

# docs/cli.md is made from the parsers, the predictions in docs/targets.md from plans and machine code (a minute, if they changed)
docs: $(READY)
	$(BIN)/python -m ferrum.cli.reference docs/cli.md
	$(BIN)/python -m ferrum.graphs.gguf.reference docs/checkpoints.md
	$(BIN)/python -m tests.bench.gpu_predict

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache *.egg-info
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
