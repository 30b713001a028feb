#!/usr/bin/env bash
# Runs the services of compose.yaml and checks what they leave under /mnist: names, places and content of all files.
#
#   tests/grading.sh                 by Docker, in a compose project and a volume of its own, removed at the end
#   ENGINE=podman tests/grading.sh   by Podman
#   ENGINE=local tests/grading.sh    without containers, in the folder MNIST_ROOT, by default a temporary one
set -euo pipefail
tests=$(dirname "$(realpath "${BASH_SOURCE[0]}")")
engine=${ENGINE:-docker}
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $engine in
  local)
    volume=${MNIST_ROOT:-$scratch}
    service() { "$tests/../bin/python" "$tests/grading.py" run "$1" "$volume"; }
    up() { for name in train evaluate infer; do service "$name"; done; }
    files() { echo "$volume"; }
    ;;
  docker | podman)
    compose() { "$engine" compose --file "$tests/../compose.yaml" --project-name "grading-$$" "$@"; }
    trap 'compose down --volumes; rm -rf "$scratch"' EXIT
    service() { compose run --rm --no-deps "$1"; }
    # podman-compose starts `train` again for each service that waits for it, and does not wait for that one: hence `stop`.
    up() { compose up && compose stop; }
    files() {
      compose run --rm --no-deps -T --entrypoint tar train -C /mnist -c . | tar -x -C "$scratch"
      echo "$scratch"
    }
    ;;
  *)
    echo "tests/grading.sh: ENGINE=$engine: expected docker, podman or local" >&2
    exit 2
    ;;
esac

up
epochs=$(python3 "$tests/grading.py" check "$(files)")
# A further run goes on from the checkpoint.
service train
again=$(python3 "$tests/grading.py" check "$(files)")
if ((again != epochs + 1)); then
  echo "tests/grading.sh: expected $((epochs + 1)) epochs after a further run, found $again" >&2
  exit 1
fi
echo "tests/grading.sh: checkpoint, evaluation and predictions are where they belong"
