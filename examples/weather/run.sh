#!/usr/bin/env bash
# The tutorial "Lightly + Label Studio, weather classification" from end to end, without Label Studio and without an
# account.
#
#     examples/weather/run.sh [IMAGES [ANNOTATIONS_0 ANNOTATIONS_1]]
#
# IMAGES: a folder with a folder for each class, or with names like cloudy1.jpg; without it scikit-learn's digits.
# ANNOTATIONS_0, ANNOTATIONS_1: what Label Studio exported after the first 30 and after all 60 images were labeled, in any
# of its formats; without them the classes in the images' names answer.
# WORK: where everything is put, afresh each time (default: .run/weather). PYTHON: default .venv/bin/python. N: images of
# each selection, default 30. SEED: of the split, default 0. BACKBONE, BACKBONE_WEIGHTS and the other settings hold here.
set -euo pipefail
cd "$(dirname "$0")/../.."
ROOT=$PWD
PYTHON=${PYTHON:-$ROOT/.venv/bin/python}
WORK=${WORK:-$ROOT/.run/weather}
IMAGES=${1:-${IMAGES:-}}
ANNOTATIONS_0=${2:-${ANNOTATIONS_0:-}}
ANNOTATIONS_1=${3:-${ANNOTATIONS_1:-}}
N=${N:-30}
SEED=${SEED:-0}

backend() { "$PYTHON" -m backend "$@"; }
step() { "$PYTHON" examples/weather/steps.py "$@"; }
say() { printf '\n== %s\n' "$*"; }

if [ -n "$ANNOTATIONS_0" ] && [ -z "$ANNOTATIONS_1" ]; then
    echo "error: one file of annotations came; expected two, after the first and after the second selection" >&2
    exit 2
fi
mkdir -p "$WORK"
rm -rf "$WORK/tags-and-embeddings/tags" "$WORK/samples_for_labelling" "$WORK/lightly"
if [ -z "$IMAGES" ]; then
    IMAGES=$WORK/digits
    step digits "$IMAGES"
fi
CACHE=$WORK/tags-and-embeddings

say "1. Split into training and validation, by class"
backend split "$IMAGES" "$WORK" --seed "$SEED"

say "2. First selection: $N images by their embeddings"
backend select "$IMAGES" --only "$WORK/full_train.json" --n "$N" --tag initial --cache "$CACHE" | tail -3

say "3. Put them into a folder for labeling"
backend fetch "$IMAGES" "$WORK/samples_for_labelling" --tag initial --cache "$CACHE"
if [ -z "$ANNOTATIONS_0" ]; then
    step answers "$CACHE" initial "$WORK/annotation-0.json"
    ANNOTATIONS_0=$WORK/annotation-0.json
fi

say "4. Train, and predict the whole training set"
backend train "$IMAGES" --only "$WORK/full_train.json" --labels "$ANNOTATIONS_0" --validation "$WORK/val.json" \
    --out "$WORK/model-0.safetensors" --predictions "$WORK/lightly" --task weather-classification --cache "$CACHE" \
    --json > "$WORK/train-0.json"
step check "$WORK/lightly"

say "5. Second selection: $N more by the scores of these predictions"
backend select "$IMAGES" --only "$WORK/full_train.json" --n "$N" --tag second --preselected initial \
    --by-scores "$WORK/lightly" --cache "$CACHE" | tail -3
backend fetch "$IMAGES" "$WORK/samples_for_labelling" --tag second --cache "$CACHE"
if [ -z "$ANNOTATIONS_1" ]; then
    step answers "$CACHE" second "$WORK/annotation-1.json"
    ANNOTATIONS_1=$WORK/annotation-1.json
fi

say "6. Train again, with all labels"
backend train "$IMAGES" --only "$WORK/full_train.json" --labels "$ANNOTATIONS_0" --labels "$ANNOTATIONS_1" \
    --validation "$WORK/val.json" --out "$WORK/model-1.safetensors" --predictions "$WORK/lightly" \
    --task weather-classification --cache "$CACHE" --json > "$WORK/train-1.json"
step check "$WORK/lightly"

say "Accuracy in percent"
step table "$WORK/train-0.json" "$WORK/train-1.json"
