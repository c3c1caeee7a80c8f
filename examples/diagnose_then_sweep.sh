#!/bin/sh
# Diagnose a base model on your data, then train and compare two objectives: examples/diagnose_then_sweep.sh [FOLDER]
# The model is random and the settings are tiny, so that it ends within minutes on a CPU; put yours in their place.
set -eu
folder=${1:-runs/example}
python=${PYTHON:-python}

"$python" -c "import sys, pathlib; from nemo_probsft.demo_data import make_demo; make_demo(pathlib.Path(sys.argv[1]), seed=0)" "$folder/data"
cat >"$folder/recipe.yaml" <<YAML
run_dir: $folder/run
model: {path: $folder/data/random_base}
data: {train: $folder/data/strong_train.jsonl, max_length: 32, global_batch_size: 16, micro_batch_size: 16}
objective: original
trainer: {max_steps: 2, precision: fp32}
diagnose: {max_tokens: 2000}
YAML

# 1. How well does the model already predict your targets? The page is $folder/run/diagnose/diagnose.html.
"$python" -m nemo_probsft diagnose "$folder/recipe.yaml"

# 2. What would a sweep take?
"$python" -m nemo_probsft sweep "$folder/recipe.yaml" --objectives original,p --tasks demo_strong --plan

# 3. Train, evaluate, compare. The page is $folder/run/report/report.html.
"$python" -m nemo_probsft sweep "$folder/recipe.yaml" --objectives original,p --tasks demo_strong \
    --data-dir "$folder/data" --limit 4 --samples 2 --drop-checkpoints
