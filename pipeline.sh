#!/usr/bin/env bash
# Make a multimodal LLM forget some people, from nothing to a report.
#
#   ./pipeline.sh mllmu                          the embedded benchmark: fictitious people, a tiny LLaVA, any laptop
#   ./pipeline.sh mllmu --preset mllmu-10        the paper's setting on real data and weights (one 80 GB GPU);
#                                                --model M, --data.source DIR|ID: another model, other data
#   ./pipeline.sh clear [--preset clear-10]      the same stages on CLEAR: captions, names, questions without a picture
#   ./pipeline.sh own DIR --forget ID --model M  your own people (examples.jsonl) and your own model
#   ./pipeline.sh mllmu --lambda 0.2             another weight: train, evaluate and report run again, the rest is kept
#
# A bare option goes to `viker train`; others carry their stage: --finetune.seed 1, --precompute.top-k 128.
# --run NAME|DIR, --from/--only/--skip STAGE (data vanilla precompute train evaluate report retain-only), --dry-run,
# --with-retain-only, --overwrite. A stage whose output is complete and matches is skipped; run the same line again
# after an interruption. Times are for the embedded benchmark on two idle cores.
set -euo pipefail
caller=$PWD
cd "$(dirname "${BASH_SOURCE[0]}")"
case "${1:-}" in
-h | --help) # the lines above
  awk 'NR > 1 { if (!/^#/) exit; sub(/^# ?/, ""); print }' pipeline.sh
  exit
  ;;
esac

# ---- 0. An environment. Once: about 2 minutes, 3 GB ------------------------------------------------------------------
# Yours if `viker` is importable in it; else .venv beside this file. Never installs into a venv or conda that is active.
if ! command -v viker >/dev/null 2>&1; then
  if [ -x .venv/bin/viker ]; then
    PATH="$PWD/.venv/bin:$PATH"
  elif [ -n "${VIRTUAL_ENV:-}${CONDA_PREFIX:-}" ]; then
    echo "viker is not installed in the active environment: run \`pip install -c constraints.txt -e .\` in it, or deactivate it." >&2
    exit 1
  else
    bash .ci/install .venv
    PATH="$PWD/.venv/bin:$PATH"
  fi
fi

# Options are read and checked here, once; what each stage gets arrives as arrays (TRAIN_ARGS ...).
settings=$(viker pipeline --caller "$caller" "$@")
eval "$settings"
if [ -n "$NOTICE" ]; then echo "$NOTICE"; fi

wanted() { case " $STAGES " in *" $1 "*) return 0 ;; *) return 1 ;; esac; }
run() { # every command is one you can paste; --dry-run only prints them
  if [ -n "$DRY_RUN" ]; then printf 'viker'; printf ' %q' "$@"; printf '\n'; else viker "$@"; fi
}
stage() { run --preset "$PRESET" "$@"; }

# ---- 1. Data. 10 s, 9 MB ---------------------------------------------------------------------------------------------
# Fictitious people in the published layout; for a real preset, a download that is pinned by its commit and counted.
if wanted data; then
  stage data make "$SOURCE" "$RUN/data" ${DATA_ARGS[@]+"${DATA_ARGS[@]}"}
fi

# ---- 2. The vanilla model: where unlearning starts. 2 minutes, 10 MB ---------------------------------------------------
# A base that learnt seeing and speaking from other people, then everybody's facts. Real presets name a published one.
if wanted vanilla && [ -n "$TRAINS_VANILLA" ]; then
  stage finetune base --data "$RUN/data/base" --looks "$RUN/data/looks" --model "$BASE" --output "$RUN/base" ${FINETUNE_ARGS[@]+"${FINETUNE_ARGS[@]}"}
  stage finetune vanilla --data "$RUN/data" --model "$RUN/base" --output "$RUN/vanilla" ${FINETUNE_ARGS[@]+"${FINETUNE_ARGS[@]}"}
fi

# ---- 3. The teacher, once. 10 s, 1 MB ----------------------------------------------------------------------------------
# What the frozen model says about the forget people's questions when it is shown somebody irrelevant; and what else the
# methods read: for a retain term, what it says about half of the retain people when it is shown themselves.
if wanted precompute; then
  stage precompute --run "$RUN" --data "$RUN/data" --model "$MODEL" ${POOL:+--pool "$POOL"} ${PRECOMPUTE_ARGS[@]+"${PRECOMPUTE_ARGS[@]}"}
  for rows in ${MORE_ROWS[@]+"${MORE_ROWS[@]}"}; do # options of one cache each, words without spaces
    # shellcheck disable=SC2086
    stage precompute --run "$RUN" --data "$RUN/data" --model "$MODEL" $rows ${MORE_ROWS_ARGS[@]+"${MORE_ROWS_ARGS[@]}"}
  done
fi

# ---- 4. Unlearn. 1 minute, 1 MB an adapter -----------------------------------------------------------------------------
# The teacher is not loaded: rows are streamed from the cache, so another lambda costs this stage alone.
if wanted train; then
  stage train --run "$RUN" --data "$RUN/data" --model "$MODEL" ${TRAIN_ARGS[@]+"${TRAIN_ARGS[@]}"}
fi

# ---- 5. A first verdict. 1 minute --------------------------------------------------------------------------------------
if wanted evaluate; then
  stage evaluate --run "$RUN" --data "$RUN/data" --model "$MODEL" ${CONTROLS:+--controls "$CONTROLS"} ${EVALUATE_ARGS[@]+"${EVALUATE_ARGS[@]}"}
fi
if wanted report; then
  stage report --run "$RUN" ${REPORT_ARGS[@]+"${REPORT_ARGS[@]}"}
fi

# ---- 6. The ideal, and the full report. 1 minute -----------------------------------------------------------------------
# A model that never saw the forget people, by the same recipe: what perfect forgetting scores. Real presets train it
# only with --with-retain-only.
if wanted retain-only; then
  stage finetune retain-only --data "$RUN/data" --model "$BASE_FOR_RETAIN" --output "$RUN/retain-only" ${FINETUNE_ARGS[@]+"${FINETUNE_ARGS[@]}"}
  stage evaluate --run "$RUN" --data "$RUN/data" --model "$MODEL" --target retain-only ${CONTROLS:+--controls "$CONTROLS"} ${EVALUATE_ARGS[@]+"${EVALUATE_ARGS[@]}"}
  stage report --run "$RUN" ${REPORT_ARGS[@]+"${REPORT_ARGS[@]}"}
fi
