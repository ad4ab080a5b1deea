#!/usr/bin/env bash
# All that wants a GPU, in 8 minutes at most on one: gradients and merges of every method against the CPU's, then time, kept bytes
# and peak memory of training steps as ratios to the frozen model's and to Hugging Face PEFT's, compiled and not; one table ends it.
#
#   bash benchmarks/on_gpu.sh                          # a GPU; torch, timm and transformers are enough
#   bash benchmarks/on_gpu.sh --device cpu --quick     # the same parts at the smallest sizes, anywhere
#
# A part whose library is not installed is left out with a line; so is what a part has not done at the end of its time.
# OUT names a folder for the parts' own tables and ratios.jsonl; PYTHON the interpreter.
set -u
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 2
DEVICE=cuda QUICK=
while [ $# -gt 0 ]; do
    case $1 in
        --device) DEVICE=${2:?--device wants cpu or cuda}; shift 2 ;;
        --quick) QUICK=--quick; shift ;;
        *) echo "on_gpu.sh takes --device cpu|cuda and --quick, not $1."; exit 2 ;;
    esac
done
PYTHON=${PYTHON:-$(command -v python || echo python3)}
OUT=${OUT:-$(mktemp -d)}
mkdir -p "$OUT"
RATIOS=$OUT/ratios.jsonl
: > "$RATIOS"
export PYTHONPATH=$PWD:$PWD/datasets${PYTHONPATH:+:$PYTHONPATH}
FAILED=

if [ "$DEVICE" = cuda ] && ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "this machine, or this build of torch, has no GPU: add --device cpu --quick."
    exit 2
fi

has() {  # has LIBRARY…
    for library in "$@"; do
        "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$library') is None)" || {
            echo "$library is not installed"; return 1; }
    done
}

part() {  # part SECONDS NAME LIBRARIES MODULE ARGUMENTS…
    local limit=$(($1 * SLOWER)) name=$2 libraries=$3 module=$4 missing rc start=$SECONDS
    shift 4
    echo
    echo "== $name"
    # shellcheck disable=SC2086
    missing=$(has $libraries) || { echo "$name: left out, $missing"; return; }
    timeout --kill-after=10 "$limit" "$PYTHON" -m "benchmarks.$module" --device "$DEVICE" "$@" 2>&1 | tee "$OUT/${name// /_}.txt"
    rc=${PIPESTATUS[0]}
    if [ "$rc" = 124 ] || [ "$rc" = 137 ]; then
        echo "$name: stopped after $limit s; what it had done stands above"
    elif [ "$rc" != 0 ]; then
        echo "$name: failed"
        FAILED="$FAILED; $name"
    fi
    echo "$name: $((SECONDS - start)) s"
}

if [ -n "$QUICK" ]; then
    VIT=(--arch test_vit --batch 2 --rounds 1) KINDS=("lora r8 qkv" "HF PEFT LoRA r8 qkv") COMPILED=("lora r8 qkv")
    UNET=(--width 16 --latent 8 --batch 1 --rounds 1) SETS=("ours, attention" "HF PEFT, attention")
    TEXT=(--arch ViT-S-32-alt --classes 3 --context 4) BACKEND=aot_eager SLOWER=4  # compiling for a CPU takes minutes
else
    VIT=(--arch vit_base_patch16_224 --batch 64 --rounds 20) COMPILED=("lora r8 qkv" "HF PEFT LoRA r8 qkv")
    KINDS=("lora r8 qkv" "HF PEFT LoRA r8 qkv" "r8 all linears" "full" "ssf" "adaptformer" "vpt deep")
    UNET=(--width 320 --latent 64 --batch 4 --rounds 8) SETS=("ours" "HF PEFT")
    TEXT=(--classes 500 --context 16 --repeats 5) BACKEND=inductor SLOWER=1
fi
MEMORY=("${VIT[@]:0:4}")
TO=(--ratios "$RATIOS")

part 120 "checks" "timm" on_gpu_checks $QUICK
part 55 "train step" "timm" train_step "${VIT[@]}" "${TO[@]}" --only "${KINDS[@]}"
part 45 "memory" "timm" memory "${MEMORY[@]}" --precision both "${TO[@]}" --only "${KINDS[@]}"
part 30 "text pass" "open_clip" text_pass "${TEXT[@]}" "${TO[@]}"
part 100 "diffusion step" "diffusers" diffusion_step "${UNET[@]}" --precision both "${TO[@]}" --only "${SETS[@]}"
part 110 "train step compiled" "timm" train_step "${VIT[@]}" --compile $BACKEND --precision bf16 "${TO[@]}" --only "${COMPILED[@]}"

echo
echo "== ratios to the floor (text pass: to all 77 tokens), and to Hugging Face PEFT"
"$PYTHON" -m benchmarks.ratio_table "$RATIOS"
echo "written: $OUT"
[ -z "$FAILED" ] || { echo "failed:${FAILED#;}"; exit 1; }
