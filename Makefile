# Everything the project does, by name. `make` lists the targets; each creates the environment it needs by itself.

PYTHON      = python3
VENV        = .venv
EXTRAS      = export,demo,report
DEV_EXTRAS  = train,export,coreml,openvino,prior,demo,completion,report,server,ray,dev
# More arguments for pip. On Linux, the default torch is the CUDA build (gigabytes); the CPU build is enough here:
#   make setup PIP_ARGS="--extra-index-url URL" with the CPU wheel index that PyTorch's installation page names
# The versions of requirements-dev.txt, which the workflow tests: make setup PIP_ARGS="-c requirements-dev.txt"
PIP_ARGS    =
# Left out by default: tests of more than about ten seconds ("slow") and of minutes to hours ("nightly"). All of them: make test PYTEST_ARGS=
PYTEST_ARGS = -m "not slow and not nightly"

CHECKPOINT  = export/weights/pocket
BUNDLE      = runtime/bundles/pocket.gdposr
DATA        = ../shared/data/hr
REALSR      = ../shared/data/realsr
SQF_WEIGHTS = ../shared/data/peers/squeezenet1_1.safetensors
PEER_NCNN   = ../shared/data/peers/RealESRGAN_General_x4_v3.param
MINUTES     = 120
BASE        =
TEACHER     = runs/gdpo
PHOTO       =
OUT         =
ARGS        =

comma := ,
PERCEPTUAL = $(if $(wildcard $(SQF_WEIGHTS)),--perceptual-weights "$(SQF_WEIGHTS)")
RUN       = $(VENV)/bin/python
# A file's tests stay in one process, since they share its fixtures. One thread each: two processes of two threads stand still. Bytecode is
# kept even where the environment forbids it: pytest rewrites every test file otherwise, ten seconds for each process.
PYTEST    = OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(RUN) -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder
INSTALLED = $(VENV)/.installed
DEV       = $(VENV)/.installed-dev
DEMO      = build/demo
SOURCES   = $(shell find runtime training calibration export gdposr tools -name "*.py")
WEIGHTS   = $(wildcard $(CHECKPOINT)/*)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo test test-lowest check dist lock train-pretrain train-naosd train-gdpo train-student distill chain export export-onnx export-coreml verify-coreml accuracy bench gallery vectors verify-arm web setup-web bench-web bench-server bench-fleet clean FORCE

help: ## list the targets
	@echo "make TARGET [VARIABLE=value ...]"
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  %-15s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo "  PYTHON=python3.12   the Python that creates $(VENV) (3.11 or newer)"
	@echo "  PIP_ARGS=...        more arguments for pip, such as --extra-index-url URL"
	@echo "  ARGS=...            more arguments for the command behind a target"

setup: $(DEV) ## create the environment in .venv

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "make: Python 3.11 or newer is needed, $(PYTHON) is another or missing: make setup PYTHON=/path/to/python3" >&2; exit 2; }
	@test -x $(RUN) || $(PYTHON) -m venv $(VENV) || { \
		echo "make: venv failed: on Debian and Ubuntu 'apt install python3-venv' brings it" >&2; exit 2; }
	@echo "installing into $(VENV) (a minute or two, more with a slow line)"
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[$(EXTRAS)]"
	@touch $@

# Training, Core ML, tests and measurements need more than the demo does.
$(DEV): $(INSTALLED)
	@echo "installing what training and tests need besides"
	$(RUN) -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) -e ".[$(DEV_EXTRAS)]"
	@touch $@

demo: $(DEMO)/.done ## export the student, check it, upscale a photo with several seeds [PHOTO=file]
	@cat $(DEMO)/where.txt

$(DEMO)/.done: $(SOURCES) $(WEIGHTS) $(DEMO)/.photo | $(INSTALLED)
	$(RUN) -m tools.demo --checkpoint $(CHECKPOINT) --out $(DEMO) $(if $(PHOTO),--photo "$(PHOTO)") $(ARGS)
	@touch $@

# Changes only when another PHOTO is asked for, so that a repeated demo has nothing to do.
$(DEMO)/.photo: FORCE
	@mkdir -p $(DEMO)
	@printf '%s\n' "$(PHOTO)" | cmp -s - $@ || printf '%s\n' "$(PHOTO)" > $@

FORCE:

test: $(DEV) ## run the tests, a process per core; prints the ten slowest [PYTEST_ARGS=, for the slow ones too]
	ALL_EXTRAS=1 $(PYTEST) --durations 10 $(PYTEST_ARGS) $(ARGS)

check: $(DEV) ## formatting, lint, types and tests
	$(RUN) -m ruff format --check .
	$(RUN) -m ruff check .
	$(RUN) -m mypy
	ALL_EXTRAS=1 $(PYTEST) $(PYTEST_ARGS)

# NumPy, Pillow, ONNX Runtime and rich at the lower bounds of pyproject.toml, to the letter. What needs torch or another extra is skipped.
LOWEST = build/lowest
BOUNDS = import tomllib; print(*(need.replace(">=", "==") for need in tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]))

test-lowest: ## the runtime's tests with the oldest dependencies allowed, in build/lowest; PYTHON= must have wheels of them: 3.11
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "pytest>=8.3" "pytest-xdist>=3.6" $$($(PYTHON) -c '$(BOUNDS)')
	$(subst $(RUN),$(LOWEST)/bin/python,$(PYTEST)) $(PYTEST_ARGS) $(ARGS)

# Tools of a release, which development does not need.
TOOLS = build/tools

$(TOOLS)/.installed:
	$(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS) "build>=1.2" "uv>=0.9"
	@touch $@

dist: $(TOOLS)/.installed ## sdist and wheel, in dist/
	$(TOOLS)/bin/python -m build --outdir dist .

# One file for Python 3.11 and newer, from PyPI alone. No hashes: pip would then refuse the project itself and a CPU build of torch.
lock: $(TOOLS)/.installed ## requirements-dev.txt anew: the newest version of everything that make setup installs
	$(TOOLS)/bin/uv pip compile pyproject.toml $(foreach extra,$(subst $(comma), ,$(DEV_EXTRAS)),--extra $(extra)) \
		--universal --python-version 3.11 --default-index https://pypi.org/simple --no-annotate --upgrade \
		--custom-compile-command "make lock" --quiet --output-file requirements-dev.txt

train-pretrain: $(DEV) ## pocket base from scratch [DATA=photos, MINUTES=, OUT=run folder, ARGS=]
	$(RUN) -m gdposr train pretrain --data "$(DATA)" --out "$(or $(OUT),runs/pretrain)" --minutes $(MINUTES) $(PERCEPTUAL) $(ARGS)

train-naosd: $(DEV) ## one-step model on a base [BASE=, DATA=, MINUTES=, OUT=, ARGS=]
	$(RUN) -m gdposr train naosd --base "$(or $(BASE),runs/pretrain)" --data "$(DATA)" --out "$(or $(OUT),runs/naosd)" \
		--minutes $(MINUTES) $(PERCEPTUAL) $(ARGS)

train-gdpo: $(DEV) ## preference tuning of a one-step model [BASE=, DATA=, MINUTES=, OUT=, ARGS=]
	$(RUN) -m gdposr train gdpo --base "$(or $(BASE),runs/naosd)" --data "$(DATA)" --out "$(or $(OUT),runs/gdpo)" \
		--minutes $(MINUTES) $(PERCEPTUAL) $(ARGS)

train-student: $(DEV) ## train the pocket student [DATA=photos, MINUTES=, OUT=run folder, ARGS=]
	$(RUN) -m gdposr train student --data "$(DATA)" --perceptual-weights "$(SQF_WEIGHTS)" \
		--out "$(or $(OUT),runs/student)" --minutes $(MINUTES) $(ARGS)

distill: $(DEV) ## distil a tuned one-step model to a student [TEACHER=run, DATA=photos, MINUTES=, OUT=run folder, ARGS=]
	$(RUN) -m gdposr distill --teacher "$(TEACHER)" --data "$(DATA)" --perceptual-weights "$(SQF_WEIGHTS)" \
		--out "$(or $(OUT),runs/student)" --minutes $(MINUTES) $(ARGS)

# The line that ships, training/RUNBOOK.md. A stage that is finished stays, one that was stopped goes on where it was.
CHAIN         = runs/chain
WORKERS       = 1
# The core that it begins with; CORE= trains one from nothing in CHAIN_MINUTES, on pictures of the prior.
CORE          = export/weights/pocket-core
CHAIN_MINUTES = 480
# The prior: a .param file with its .bin, or x4plus of the extra `prior`. Beside a given core the table alone needs it.
PRIOR         = $(or $(wildcard $(PEER_NCNN)),$(if $(CORE),,x4plus))
# As many as the prior makes in about 4 % of the minutes, on two CPU cores; x4plus takes fourteen times as long as a small one.
PICTURES      = $(shell awk 'BEGIN {n = int($(CHAIN_MINUTES) * $(if $(filter x4plus,$(PRIOR)),0.36,5)); print (n < 16 ? 16 : (n > 3400 ? 3400 : n))}')
# Settings by stage, as KEY=VALUE words; EXPERIMENTS.md says where they come from. CHAIN_ARGS goes to every stage.
CORE_SET      = student.far_blocks=2 student.consistent=true batch=2 crop=192 crispness=1.15 sharpness=1.8 sharpness_degraded=1 overshoot=6 \
	chroma=3 lr=6e-4 cards=0.5 feature=0 adversary=0 ema=0.998
# What the core's last minutes have besides: its own pictures, sharpened, as targets.
SHARPEN_SET   = own=0.65 lr=3e-4
NOISE_SET     = batch=4 crop=128 score=26 cards=0.3 adversary=0.3 adversary_from=0.05 flat=0.15
NOISE_STEPS   = 2500
GDPO_SET      = lr=4e-4 anchor=0.1 weighting=fixed group=12
GDPO_STEPS    = 350
MIX           = --share 0
CHAIN_ARGS    =
# state.old: what a kill in the middle of replacing it leaves
resumed       = $(if $(wildcard $(CHAIN)/$(1)/state $(CHAIN)/$(1)/state.old),--resume)
minutes       = --minutes $(shell awk 'BEGIN {print $(CHAIN_MINUTES) * $(1)}')
settings      = $(foreach setting,$(1),--set $(setting))
# stage NAME,KIND,LENGTH,SETTINGS
stage         = $(RUN) -m gdposr train student-$(2) --data "$(DATA)" --out $(CHAIN)/$(1) --workers $(WORKERS) $(3) \
	$(call settings,$(4)) $(PERCEPTUAL) $(call resumed,$(1)) $(CHAIN_ARGS)

ifeq ($(CORE)$(PRIOR),)
$(error CORE= trains a core on pictures of a prior: expected PRIOR=FILE.param or PRIOR=x4plus, got none)
endif

ifneq ($(words $(CHAIN)),1)
$(error CHAIN must be one folder without spaces, got "$(CHAIN)")
endif

chain: $(CHAIN)/table.md ## the model that ships, from its core and photos to a bundle in runs/chain, and what each stage brought [DATA=, CORE=, PRIOR=, WORKERS=]
	@cat $(CHAIN)/table.md
	@echo "bundle: $(CHAIN)/pocket.gdposr; student: $(CHAIN)/student; this table: $(CHAIN)/table.md"

$(CHAIN)/pictures.done: | $(DEV)
	@mkdir -p $(CHAIN)
	@echo "prior: $(PRIOR), $(PICTURES) pictures (PRIOR=FILE.param names another)"
	$(RUN) -m gdposr train pictures --data "$(DATA)" --prior "$(PRIOR)" --out $(CHAIN)/pictures --items $(PICTURES)
	@touch $@

$(CHAIN)/soft/model/config.json: | $(CHAIN)/pictures.done
	$(call stage,soft,core,$(call minutes,0.88),$(CORE_SET)) --pictures $(CHAIN)/pictures

$(CHAIN)/core/model/config.json: | $(CHAIN)/soft/model/config.json
	$(call stage,core,core,$(call minutes,0.08),$(CORE_SET) $(SHARPEN_SET)) --pictures $(CHAIN)/pictures --init $(CHAIN)/soft/model

$(CHAIN)/noise/model/config.json: | $(if $(CORE),$(DEV),$(CHAIN)/core/model/config.json)
	@$(if $(CORE),echo "the chain begins with the core in $(CORE) (CORE= trains one from nothing)")
	$(call stage,noise,noise,--steps $(NOISE_STEPS),$(NOISE_SET)) --init $(if $(CORE),"$(CORE)",$(CHAIN)/core/model)

$(CHAIN)/gdpo/model/config.json: | $(CHAIN)/noise/model/config.json
	$(call stage,gdpo,gdpo,--steps $(GDPO_STEPS),$(GDPO_SET)) --init $(CHAIN)/noise/model

# What ships: the tuned student in float16. MIX="--share 0.3" goes a part of the way back to the student before the tuning,
# MIX="--share 0 --noise 0.8" weakens the noise.
$(CHAIN)/student/config.json: | $(CHAIN)/gdpo/model/config.json
	$(RUN) -m export.student.interpolate $(CHAIN)/gdpo/model $(CHAIN)/noise/model $(MIX) --half --out $(CHAIN)/student

$(CHAIN)/pocket.gdposr/manifest.json: | $(CHAIN)/student/config.json
	$(RUN) -m gdposr export --checkpoint $(CHAIN)/student --out $(CHAIN)/pocket.gdposr --targets onnx,coreml

$(CHAIN)/table.md: $(CHAIN)/pocket.gdposr/manifest.json
	$(RUN) -m tools.chain.table --chain $(CHAIN) --data "$(DATA)" $(if $(PRIOR),--prior "$(PRIOR)") \
		$(if $(CORE),--core "$(CORE)" --ships "$(CHECKPOINT)") $(PERCEPTUAL) --out $@ > /dev/null

EXPORT = $(RUN) -m gdposr export --checkpoint "$(CHECKPOINT)"

export: $(DEV) ## the built-in bundle: ONNX graphs and Core ML packages [CHECKPOINT=, OUT=bundle folder, ARGS=]
	$(EXPORT) --out "$(or $(OUT),$(BUNDLE))" --targets onnx,coreml $(ARGS)

export-onnx: $(DEV) ## a bundle with ONNX graphs alone, in build/ [CHECKPOINT=, OUT=, ARGS=]
	$(EXPORT) --out "$(or $(OUT),build/onnx.gdposr)" --targets onnx $(ARGS)

export-coreml: $(DEV) ## a bundle with Core ML packages alone, in build/ [CHECKPOINT=, OUT=, ARGS=]
	$(EXPORT) --out "$(or $(OUT),build/coreml.gdposr)" --targets coreml $(ARGS)

verify-coreml: $(DEV) ## a bundle's Core ML packages against its ONNX graphs, by the reference evaluator [BUNDLE=, ARGS=]
	$(RUN) -m gdposr coreml verify "$(BUNDLE)" $(ARGS)

# Without a folder of pairs, on degraded crops of the open photographs inside scikit-image.
accuracy: $(DEV) ## quality gates and a report, on RealSR or else on open photos [REALSR=folder with LR/ and HR/, SQF_WEIGHTS=, OUT=report.html]
	$(RUN) -m gdposr accuracy "$(BUNDLE)" --check --coreml all $(if $(wildcard $(REALSR)/LR),--lr "$(REALSR)/LR" --hr "$(REALSR)/HR") \
		$(if $(wildcard $(SQF_WEIGHTS)),--sqf-weights "$(SQF_WEIGHTS)") --report "$(or $(OUT),build/accuracy.html)" $(ARGS)

bench: $(DEV) ## speed and memory, beside a peer where its files are present; build/bench.html [PEER_NCNN=]
	$(RUN) -m gdposr bench "$(BUNDLE)" --device cpu --device openvino --picture 1000 --report build/bench.html --table build/bench.md $(if $(wildcard $(PEER_NCNN)),--peer-ncnn "$(PEER_NCNN)") $(ARGS)

# The page leaves out the peer's pictures where its files are missing, and says so.
gallery: $(DEV) ## docs/gallery.md and its pictures, from open photos, beside a peer where its files are present [PEER_NCNN=, OUT=folder, ARGS=]
	$(RUN) -m tools.gallery --bundle "$(BUNDLE)" --out "$(or $(OUT),docs)" $(if $(wildcard $(PEER_NCNN)),--peer-ncnn "$(PEER_NCNN)") \
		$(if $(wildcard $(SQF_WEIGHTS)),--sqf-weights "$(SQF_WEIGHTS)") $(ARGS)

# The tests of examples/ and of other runtimes read them.
vectors: $(DEV) ## examples/vectors: noise, tiles and a picture for runtimes in other languages [ARGS=]
	$(RUN) -m tools.vectors $(ARGS)

# Downloads Debian's and PyPI's files for aarch64 into build/arm, once; installs nothing.
verify-arm: $(DEV) ## noise, probe and golden picture on an emulated ARM64 Python, against this machine [ARGS=]
	$(RUN) -m tools.arm.verify $(ARGS)

web: $(INSTALLED) ## the page of gdposr serve as static files for any host, in build/web [BUNDLE=, OUT=folder]
	$(RUN) -m gdposr.web.build --bundle "$(BUNDLE)" --out "$(or $(OUT),build/web)" $(ARGS)

setup-web: ## Chromium and node by apt, for the tests of the page and bench-web (needs root)
	apt-get update && apt-get install -y --no-install-recommends chromium chromium-driver nodejs npm

bench-web: $(DEV) ## the page's model in Chromium beside Python, UpscalerJS from npm and a peer [PEER_NCNN=, BUNDLE=, ARGS=]
	$(RUN) -m tools.web_bench --bundle "$(BUNDLE)" $(if $(wildcard $(PEER_NCNN)),--peer-ncnn "$(PEER_NCNN)") $(ARGS)

# Counts, not speed: clients and server share the processors.
bench-server: $(DEV) ## a minute of 32 clients on gdposr serve --api, good and bad ones, against the command's bytes [BUNDLE=, ARGS=]
	$(RUN) -m tools.server_load --bundle "$(BUNDLE)" $(ARGS)

bench-fleet: $(DEV) ## gdposr upscale --ray beside the plain command on the same processors, and memory for mixed sizes [BUNDLE=, ARGS=]
	$(RUN) -m tools.fleet_bench --bundle "$(BUNDLE)" $(ARGS)

clean: ## remove what was built; keeps .venv and runs/
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
