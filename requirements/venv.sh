#!/bin/sh
# venv.sh train|bridge|eval|docs [--optional]: make .venv/NAME from requirements/NAME.lock, or reuse it while the lock is the one it was
# made from. Where the system's Python already runs the engine on CUDA (the NGC containers), the environment is a view of that one instead.
# --optional: where the Python that it needs is missing, do nothing; CI (CI or GITHUB_ACTIONS is set) fails all the same.
set -eu
name=$1
option=${2:-}
cd "$(dirname "$0")/.."
lock=requirements/$name.lock
venv=.venv/$name
case $name in
    train) version=3.11 what="NeMo 2" engine="import nemo.collections.llm, megatron.core" ;;
    bridge) version=3.12 what="Megatron-Bridge" engine="import megatron.bridge" ;;
    eval) version=3.11 what="vLLM" engine="import vllm, lm_eval" ;;
    docs) version=3.11 what="the documentation" engine="import mkdocs, material" ;;
    *) echo "venv.sh: '$name' is not an environment; use train, bridge, eval or docs" >&2; exit 2 ;;
esac
variable=PYTHON$(echo "$version" | tr -d .)
eval "named=\${$variable:-}"

is_right() {
    "$1" -c "import ensurepip, sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" >/dev/null 2>&1
}

# The one on the PATH may be pyenv's shim, which runs only where its version is selected: hence pyenv's own versions.
find_python() {
    if [ -n "$named" ]; then is_right "$named" && echo "$named"; return; fi
    for python in "python$version" "${PYENV_ROOT:-${HOME:-}/.pyenv}/versions/$version".*/bin/python; do
        if is_right "$python"; then echo "$python"; return; fi
    done
    return 1
}

# Bridge imports nvidia-resiliency-ext, whose wheels are for glibc 2.39 and newer. What Bridge uses of it is Python and runs on any; only
# its profiler's library, which is loaded on request, needs that glibc. Files: https://pypi.org/project/nvidia-resiliency-ext/0.6.0/#files
NEWER_GLIBC='^nvidia-resiliency-ext==0\.[6-9]'  # train.lock has an older one, with wheels for older glibcs
NEWER_GLIBC_VERSION=2.39

is_older_glibc() {
    here=$(getconf GNU_LIBC_VERSION | cut -d" " -f2)
    [ "$(printf '%s\n' "$NEWER_GLIBC_VERSION" "$here" | sort -V | head -n 1)" != "$NEWER_GLIBC_VERSION" ]
}

# The lock is complete, and its resolver's exclusions (see NAME.in) must hold: hence --no-deps.
install() {
    "$venv/bin/pip" install -qq --disable-pip-version-check --no-deps "$@"
}

install_lock() {
    if ! grep -q "$NEWER_GLIBC" "$lock" || ! is_older_glibc; then install -r "$lock"; return; fi
    grep -v "$NEWER_GLIBC" "$lock" > "$venv/here.lock"
    install -r "$venv/here.lock"
    platform=manylinux_$(echo "$NEWER_GLIBC_VERSION" | tr . _)_$(uname -m)
    site=$("$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
    rm "$venv/here.lock"
    install --platform "$platform" --only-binary :all: --target "$site" "$(grep "$NEWER_GLIBC" "$lock")"
}

# The containers' python3 is a virtual environment itself, and `venv` would show the Python below it: addsitedir reads its .pth files, too.
view() {
    python3 -m venv --system-site-packages "$venv"
    "$venv/bin/python" - "$(python3 -c 'import sysconfig; print(sysconfig.get_path("purelib"))')" <<'PY'
import sys, sysconfig, pathlib
line = f"import site; site.addsitedir({sys.argv[1]!r})\n"
pathlib.Path(sysconfig.get_path("purelib"), "system.pth").write_text(line)
PY
}

if cmp -s "$lock" "$venv/made-from.lock"; then exit 0; fi

if python3 -c "import torch; assert torch.cuda.is_available(); $engine" >/dev/null 2>&1; then
    system=yes
elif ! python=$(find_python); then
    if [ "$option" = --optional ] && [ -z "${CI:-}${GITHUB_ACTIONS:-}" ]; then exit 0; fi
    echo "venv.sh: $venv ($what) needs Python $version with venv, and ${named:-python$version} does not run or is another;" \
        "install it (pyenv install $version) or name it: make $variable=/path/to/python$version ..." >&2
    exit 1
fi

echo "setting up $venv from $lock; this takes some minutes, once"
rm -rf "$venv"
if [ -n "${system:-}" ]; then
    view
else
    "$python" -m venv "$venv"
    install_lock
fi
if [ "$name" != docs ]; then  # whose pages need none of our code
    install --no-build-isolation -e .
fi
cp "$lock" "$venv/made-from.lock"
