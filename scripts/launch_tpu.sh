#!/usr/bin/env bash
# A training run on a TPU slice, from renting it to giving it back. Needs gcloud, logged in, with a project set.
#
#   export NAME=victor ZONE=us-west4-a TYPE=v5litepod-64 BUCKET=my-bucket      # TYPE: as `victor-jax plan-pod` says
#   scripts/launch_tpu.sh create [--spot | --reserved | …]    queue for the slice, wait until it is there
#   scripts/launch_tpu.sh setup                               this commit, Python, packages, the bucket, on every host
#   scripts/launch_tpu.sh run --config=… --workdir=bucket/run start train.py on every host, and again after a crash
#   scripts/launch_tpu.sh log                                 follow host 0
#   scripts/launch_tpu.sh stop                                SIGTERM: all hosts save the same step and leave
#   scripts/launch_tpu.sh delete                              give the slice back
#
# DRY_RUN=1 prints the commands and runs none. After a preemption: delete, create, setup, and the same run.
set -euo pipefail

usage() { sed -n '2,/^set /p' "$0" | grep '^#' | cut -c3-; }
fail() { echo "error: $*" >&2; exit 2; }

case "${1:-}" in create | setup | run | log | stop | delete | attempts) ;; -h | --help) usage; exit ;; *) usage >&2; exit 2 ;; esac
if [ "$1" != attempts ]; then
  [ -n "${NAME:-}" ] || fail "NAME is not set: the name of the slice"
  [ -n "${ZONE:-}" ] || fail "ZONE is not set: where it is rented"
fi
RESTARTS="${RESTARTS:-20}" # of train.py after a crash
PAUSE="${PAUSE:-10}"       # seconds before each
PYTHON="${PYTHON:-3.12}"   # the images bring an older one than jax takes

call() { if [ -n "${DRY_RUN:-}" ]; then printf '%q ' "$@"; echo; else "$@"; fi; }
tpu() { call gcloud compute tpus "$@" --zone="$ZONE"; }
everywhere() { tpu tpu-vm ssh "$NAME" --worker=all --command="$1"; }

create() {
  local image
  case "${TYPE:-}" in
    v4-*) image=tpu-ubuntu2204-base ;;
    v5litepod-*) image=v2-alpha-tpuv5-lite ;;
    v5p-*) image=v2-alpha-tpuv5 ;;
    v6e-*) image=v2-alpha-tpuv6e ;;
    *) fail "TYPE=${TYPE:-} is none of v4-N, v5litepod-N, v5p-N, v6e-N: victor-jax plan-pod names it" ;;
  esac
  tpu queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" --runtime-version="$image" "$@"
  [ -z "${DRY_RUN:-}" ] || return 0
  local state
  while state=$(gcloud compute tpus queued-resources describe "$NAME" --zone="$ZONE" --format='value(state.state)'); do
    echo "$(date +%T) $state"
    case "$state" in ACTIVE) return 0 ;; FAILED | SUSPENDED) fail "the request is $state: delete it and ask again" ;; esac
    sleep 30
  done
}

setup() {
  local archive
  archive=$(mktemp -d)/victor.tar.gz
  call git archive --output="$archive" HEAD
  tpu tpu-vm scp "$archive" "$NAME:victor.tar.gz" --worker=all
  everywhere "set -e
    mkdir -p victor && tar xzf victor.tar.gz -C victor && cd victor
    pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python=$PYTHON .venv
    ~/.local/bin/uv pip install --quiet --python=.venv --editable '.[tpu]'"
  [ -z "${BUCKET:-}" ] || everywhere "set -e
    command -v gcsfuse > /dev/null || {
      echo \"deb https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" |
        sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null
      curl -fsSL https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee /etc/apt/trusted.gpg.d/gcsfuse.asc > /dev/null
      sudo apt-get -qq update && sudo apt-get -qq install gcsfuse; }
    mkdir -p victor/bucket && { mountpoint -q victor/bucket || gcsfuse --implicit-dirs '$BUCKET' victor/bucket; }"
}

run() {
  [ $# -gt 0 ] || fail "run takes the arguments of train.py: --config=… --workdir=…"
  everywhere "cd victor && RESTARTS=$RESTARTS nohup scripts/launch_tpu.sh attempts $(printf '%q ' "$@")>> train.log 2>&1 < /dev/null &"
}

# On each host. When one of them fails, all end with its status (a killed one: with another than 0 and 2), so that all
# begin again at the last checkpoint, or none does.
attempts() {
  if [ -e train.pid ] && kill -0 "$(cat train.pid)" 2> /dev/null; then fail "train.py runs already: stop it first"; fi
  local status attempt
  for ((attempt = 0; attempt <= RESTARTS; attempt++)); do
    .venv/bin/python train.py "$@" & echo $! > train.pid
    status=0; wait $! || status=$?
    echo "$(date +%FT%T) attempt $attempt ended with status $status"
    # Done, or told to stop and saved; a mistake of the user's, which would repeat itself; interrupted, or told to stop
    # while starting.
    case $status in 0 | 2 | 130 | 143) break ;; esac
    sleep "$PAUSE"
  done
  rm -f train.pid
  return "$status"
}

log() { tpu tpu-vm ssh "$NAME" --worker=0 --command='tail -n 50 -F victor/train.log'; }
stop() { everywhere 'kill -TERM $(cat victor/train.pid)'; }
delete() { tpu queued-resources delete "$NAME" --force --quiet; }

"$@"
