#!/usr/bin/env bash
# Write constraints.txt: the versions that `make demo` and `make test` install, for every Python from 3.10 on.
# Run this after `make latest` passes. torch pins the versions of its CUDA packages itself.
set -euo pipefail
cd "$(dirname "$0")/.."
{
  echo "# Versions known to work together; written by .ci/constraints.sh."
  .venv/bin/uv pip compile --universal --python-version 3.10 --extra test pyproject.toml --strip-extras \
    --no-annotate --no-header --quiet "$@" | grep -Ev '^(nvidia|cuda|triton)'
} >constraints.new
mv constraints.new constraints.txt
