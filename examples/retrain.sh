#!/usr/bin/env bash
# Events that came while serving → dataset → model → bundle, which a service that watches BUNDLES takes by itself.
#
#   examples/retrain.sh BUNDLES NAME BASE GROWN [--set section.key=value ...]
#
# BASE: the dataset before any of these events; GROWN: the one to make, of the base and all events that ever came. So it may be run again
# and again, whatever happened to the run before: each event is in exactly one file, and each file in GROWN once.
# UNRATED: the rating that an event without one stands for, in the data's own scale. EVENTS: the store, where it is another.
set -euo pipefail
if [ $# -lt 4 ]; then
  echo "usage: $0 BUNDLES NAME BASE GROWN [--set section.key=value ...]" >&2
  exit 2
fi
bundles=$1 name=$2 base=$3 grown=$4
shift 4
files=$bundles/$name/events
recsys events roll "${EVENTS:-$bundles/$name/events.sqlite}" --name "$name" --out "$files" --unrated "${UNRATED:-1}"
recsys prepare "$files"/events-*.parquet "$grown" --append "$base"
# A run learns from one state of the data: another has another name.
run=$(basename "$grown")-$(find "$files" -name "events-*.parquet" | wc -l)
recsys train "$grown" --name "$run" "$@"
recsys export "$run" "$bundles" --name "$name" --refit
