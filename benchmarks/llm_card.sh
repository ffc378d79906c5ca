#!/bin/bash
# What docs/performance.md tells of the language model on a card, but for its peer vLLM (llm_vllm.py) and what was tried:
# `bash benchmarks/llm_card.sh`.
#
# Results go to benchmarks/results, their logs beside them, and both to the folder $OUT where that is set. With names of
# steps, only those: `bash benchmarks/llm_card.sh serving startup`.
# TINY=1 runs everything at a small size, on a CPU too, and keeps no result: to see that it all works.
set -u -o pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}
results=benchmarks/results
size=(--write)
rows=1,8,64,256 slots=256
[ -n "${TINY:-}" ] && results=$(mktemp -d) && size=(--tiny) && rows=1,4 slots=4
card=$("$python" -c "import sys; sys.path.insert(0, 'benchmarks'); from llm_bench import card; print(card())") || exit 1
failed=0

step() { # name of the log, script, flags
    echo "== $*"
    "$python" "benchmarks/$2.py" "${@:3}" "${size[@]}" 2>&1 | tee "$results/$1-$card.log" || failed=1
    if [ -n "${OUT:-}" ]; then cp "$results/$1-$card".* "$OUT/"; fi
}

for each in "${@:-decode int8 serving startup}"; do
    for name in $each; do
        case $name in
            decode) step llm_decode llm_decode --peers --profile --rows "$rows" ;;
            int8) step llm_decode-int8 llm_decode --int8 --rows "$rows" ;;
            serving) step llm_serving llm_serving --streams "1,$([ -n "${TINY:-}" ] || echo 64,)$slots" ;;
            startup) step startup startup --flags "--slot-count $slots $([ -n "${TINY:-}" ] || echo --context-token-count 2560)" ;;
            *) echo "no step is called $name: decode, int8, serving or startup" && exit 2 ;;
        esac
    done
done
exit $failed
