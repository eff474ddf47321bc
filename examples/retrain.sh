#!/usr/bin/env bash
# Events that came while serving → dataset → model → bundle, which a service that watches BUNDLES takes by itself.
#
#   examples/retrain.sh BUNDLES NAME BASE GROWN [--set section.key=value ...]
#
# BASE: the dataset before any of these events; GROWN: the one to make, base and all events that ever came. So it may be run again
# whatever happened to the run before: each event is in exactly one file, and each file in GROWN once.
# UNRATED: the rating that an event without one stands for, in the data's own scale.
set -euo pipefail
bundles=$1 name=$2 base=$3 grown=$4
shift 4
recsys events roll "${EVENTS:-$bundles/events.sqlite}" --out "$bundles/events" --unrated "${UNRATED:-1}"
recsys prepare "$bundles"/events/events-*.parquet "$grown" --append "$base"
recsys train "$grown" --name "$(basename "$grown")" "$@"
recsys export "$(basename "$grown")" "$bundles" --name "$name" --refit
