#!/usr/bin/env bash
# The two training runs of the pusher world, each within one call of ten minutes:
#
#   tools/pusherworld/on_gpu.sh first  DATA RUN1
#   tools/pusherworld/on_gpu.sh second DATA RUN2 RUN1
#
# DATA holds the packed episodes, RUN1 and RUN2 are folders for weights, log and report. What
# follows is passed on to tools.pusherworld.train and overrides what is written here. Needs torch,
# triton, NumPy, safetensors and Pillow; neither MuJoCo, nor the compiled core, nor a network.
set -euo pipefail

usage() { sed -n '2,9s/^# \{0,1\}//p' "$0" >&2; exit 2; }

[ $# -ge 3 ] || usage
run=$1 data=$(realpath "$2") out=$(realpath -m "$3")
shift 3
plan=(--data "$data" --out "$out" --total "${SECONDS_IN_ALL:-540}")
case $run in
    first)
        # The VAE first on single frames, then on whole clips in pieces of the picture, then whole.
        plan+=(--vae "1x96x128@1.5e-3:80,5x64x48@1e-3:60,13x96x16@5e-4:80") ;;
    second)
        [ $# -ge 1 ] || usage
        # The VAE stays as it is: the transformer alone, in larger batches.
        plan+=(--resume "$(realpath "$1")" --seed 1 --latent-seconds 60 --batch 512
               --rate 1e-3 --muon-rate 0.01 --keep 0.9995)
        shift ;;
    *) usage ;;
esac

cd "$(dirname "$0")/../.."
PYTHONPATH=python:kernels:.${PYTHONPATH:+:$PYTHONPATH} \
    "${PYTHON:-python}" -m tools.pusherworld.train "${plan[@]}" "$@"

# What is carried from machine to machine in pieces: each below 16 MB, all that the next run needs.
for name in vae dit_average dit_master; do
    size=$(stat --format %s "$out/$name.safetensors")
    [ "$size" -lt 16000000 ] || { echo "$out/$name.safetensors: $size bytes" >&2; exit 1; }
done
