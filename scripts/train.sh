#!/usr/bin/env bash
# Installs what is missing, then trains: CartPole-v1 with its preset, or whatever the arguments say.
#   bash scripts/train.sh
#   bash scripts/train.sh --env Breakout-MinAtar --seed 3
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
bash "$root/scripts/setup.sh"
exec "$root/.venv/bin/purejaxppo" train "$@"
