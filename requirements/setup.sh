#!/bin/sh
# Builds .venv from the pinned locks beside this file: `sh requirements/setup.sh [current|compiled|auto]`, from the project's root.
#   current   CPython 3.11 to 3.13, a current torch, detectron2's pure-Python part (no _C)
#   compiled  CPython 3.10, torch 2.3.1, detectron2 with its compiled _C
#   auto      current if such an interpreter is found, else compiled
# BASE_PYTHON=/path/to/python3.x names the interpreter to build from.
set -eu

STACK=${1:-auto}
VENV=${BACKBONES_VENV:-.venv}  # it is removed and rebuilt: a specific name that no shell sets by chance

# prints the path of the first CPython that runs and has one of the given versions (a pyenv shim on PATH may exist but fail)
find_python() {
  for version in "$@"; do
    # people expect python3 itself, if it fits
    for p in ${BASE_PYTHON:-python3 "python$version" \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python3 \
      "${UV_PYTHON_INSTALL_DIR:-$HOME/.local/share/uv/python}"/cpython-"$version"*/bin/python3 \
      "$HOME"/miniconda3/envs/*/bin/python"$version" "$HOME"/miniforge3/envs/*/bin/python"$version" \
      "$HOME"/mambaforge/envs/*/bin/python"$version" \
      /usr/local/bin/python"$version" /usr/bin/python"$version" /opt/python/*/bin/python"$version"}; do
      "$p" -c "
import sys, ssl, ctypes, lzma, bz2, zlib, venv, ensurepip
sys.exit('%d.%d' % sys.version_info[:2] != '$version' or sys.implementation.name != 'cpython' or sys.maxsize < 2**32)" >/dev/null 2>&1 || continue
      "$p" -c 'import sys; print(sys.executable)'
      return 0
    done
  done
  return 1
}

own_first() {  # the given versions, starting with that of python3 on PATH
  mine=$(python3 -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null || true)
  for v in "$@"; do [ "$v" = "$mine" ] && printf '%s ' "$v"; done
  for v in "$@"; do [ "$v" = "$mine" ] || printf '%s ' "$v"; done
}

newer() { find_python $(own_first 3.12 3.11 3.13); }
where=${BASE_PYTHON:+at BASE_PYTHON=$BASE_PYTHON}
where=${where:-on PATH, in pyenv, uv or conda}
python=
case $STACK in
  current) needs="3.11 to 3.13"; python=$(newer) || true ;;
  compiled) needs="3.10"; python=$(find_python 3.10) || true ;;
  auto)
    needs="3.10 to 3.13"
    if python=$(newer); then STACK=current; elif python=$(find_python 3.10); then STACK=compiled; fi ;;
  *) echo "setup: unknown stack '$STACK'; allowed: current, compiled, auto" >&2; exit 2 ;;
esac
if [ -z "$python" ]; then
  echo "setup: no CPython $needs with venv found $where." \
    "Get one with 'apt install python3 python3-venv', 'pyenv install 3.12' or 'uv python install 3.12', or name one: make ... BASE_PYTHON=/path/to/python3." \
    "To use an environment that already has detectron2: make ... PYTHON=/path/to/its/python" >&2
  exit 1
fi
[ "$(uname -sm)" = "Linux x86_64" ] || echo "setup: the locks are for Linux x86_64, but this is $(uname -sm): expect trouble" >&2

step() { echo "setup: $*" >&2; }
if [ -n "$(ls -A "$VENV" 2>/dev/null)" ] && [ ! -f "$VENV/.made-by-setup" ] && [ ! -f "$VENV/.installed" ]; then
  echo "setup: $VENV exists and was not made by this script, so it stays untouched. Remove it, or use it: make ... PYTHON=$VENV/bin/python" >&2
  exit 1
fi
step "building $VENV, the $STACK stack, with $python ($("$python" --version 2>&1)); 6 GB, some minutes"
rm -rf "$VENV"
"$python" -m venv "$VENV"
touch "$VENV/.made-by-setup"
pip() { "$VENV/bin/python" -m pip --disable-pip-version-check --no-input "$@"; }
site=$("$VENV/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')

step "1/4 pip and setuptools"
pip install --quiet --no-deps --require-hashes -r requirements/build.txt
step "2/4 torch and everything else that detectron2 needs"
pip install --no-deps --no-build-isolation --require-hashes -r "requirements/$STACK.txt"
step "3/4 detectron2"
pip install --quiet --no-deps --require-hashes --only-binary=:all: --python-version 3.10 --target "$site" -r requirements/detectron2.txt
step "4/4 backbones, editable"
pip install --quiet --no-deps --no-build-isolation -e .
"$VENV/bin/python" -c "
import torch, detectron2, backbones
try:
    from detectron2 import _C
    compiled = 'with _C'
except ImportError:
    compiled = 'without _C'
print(f'setup: done: torch {torch.__version__}, detectron2 {detectron2.__version__} {compiled}, backbones {backbones.__version__}')" >&2
# written last, so that an interrupted set-up starts over
echo "$STACK" > "$VENV/.installed"
