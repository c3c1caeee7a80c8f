#!/bin/sh
# venv.sh train|eval|docs: make .venv/NAME from requirements/NAME.lock, or reuse it while the lock is the one it was made from.
# Where the system's Python already runs the engine on CUDA (the NGC container), the environment is a view of that one instead.
set -eu
name=$1
cd "$(dirname "$0")/.."
lock=requirements/$name.lock
venv=.venv/$name
case $name in
    train) engine="import nemo.collections.llm, megatron.core" ;;
    eval) engine="import vllm, lm_eval" ;;
    docs) engine="import mkdocs, material" ;;
    *) echo "venv.sh: '$name' is not an environment; use train, eval or docs" >&2; exit 2 ;;
esac

if cmp -s "$lock" "$venv/made-from.lock"; then exit 0; fi

echo "setting up $venv from $lock; this takes some minutes, once"
rm -rf "$venv"
if python3 -c "import torch; assert torch.cuda.is_available(); $engine" >/dev/null 2>&1; then
    python3 -m venv --system-site-packages "$venv"
else
    "${PYTHON:-python3.11}" -m venv "$venv"
    # The lock is complete, and its resolver's exclusions (CUDA builds of torchvision and torchaudio) must hold: hence --no-deps.
    "$venv/bin/pip" install -qq --disable-pip-version-check --no-deps -r "$lock"
fi
if [ "$name" != docs ]; then  # whose pages need none of our code
    "$venv/bin/pip" install -qq --disable-pip-version-check --no-deps --no-build-isolation -e .
fi
cp "$lock" "$venv/made-from.lock"
