#!/usr/bin/env bash
# The pipeline on a Slurm cluster: one Ray node per Slurm node, started, used and stopped by this job.
#   sbatch --nodes=4 infra/slurm.sh paper --data /shared/coco_shards --output /shared/egic --compute.workers 4
# Everything behind the script's name goes to pipelines/full.py. Submit it from the repository root, after `make setup`
# on storage that all nodes share; --output must be shared, too. Submit the same again to go on after the time limit.
#SBATCH --job-name=egic
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
# (--exclusive: Ray's ports, and `ray stop`, which ends every Ray of this user on a node)
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-.}"

[[ $# -gt 0 ]] || { echo "error: name a preset: sbatch infra/slurm.sh workstation --data FOLDER --output FOLDER" >&2; exit 2; }
[[ -x .venv/bin/ray ]] || { echo "error: $PWD/.venv has no ray: run \`make setup\` here first" >&2; exit 2; }
export PATH="$PWD/.venv/bin:$PATH"

# A token of this job alone, in a file that only its user reads. Without RAY_AUTH_MODE, `ray start` asks for none.
scratch=$(mktemp -d "$PWD/.ray-job-${SLURM_JOB_ID:-0}-XXXXXX")
trap 'rm -rf "$scratch"' EXIT
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$scratch/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$scratch/token"
export RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT="${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}"

nodes=${SLURM_JOB_NUM_NODES:-1}
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
# An address, not a name: a name may lead to 127.0.1.1 on the head itself. HEAD_IP=... chooses the fast network.
ip=${HEAD_IP:-$(srun --nodes=1 --ntasks=1 --nodelist="${hosts[0]}" hostname --all-ip-addresses | awk '{print $1}')}

# The same command on every node: the head runs the pipeline, the others join it and leave when it ends.
# When Ray itself does not start, symmetric-run exits with 0, so the pipeline creates a file when it has finished.
# RAY_ADDRESS is set for the pipeline alone: `ray start` fails with it, and without it the pipeline starts its own Ray.
# shellcheck disable=SC2016  # the inner bash expands them
srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 \
    ray symmetric-run --address "$ip:${RAY_PORT:-6379}" --min-nodes "$nodes" \
    --num-cpus="${SLURM_CPUS_PER_TASK:-8}" --disable-usage-stats -- \
    bash -c 'RAY_ADDRESS="$2" "${@:3}" && touch "$1"' pipeline "$scratch/finished" "$ip:${RAY_PORT:-6379}" \
    python pipelines/full.py "$@"

[[ -e $scratch/finished ]] || { echo "error: the pipeline did not finish; the lines above say why" >&2; exit 1; }
