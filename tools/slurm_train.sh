#!/usr/bin/env bash
# Train on several machines by SLURM: sbatch [options of sbatch] tools/slurm_train.sh CONFIG [arguments of perception train].
#   sbatch --nodes 2 tools/slurm_train.sh bevformer_tiny --work-dir work_dirs/tiny
#   sbatch --partition gpu --time 24:00:00 tools/slurm_train.sh bevformer_tiny --work-dir work_dirs/tiny
# One process per GPU. Five minutes before the time limit SLURM sends SIGUSR1 to the ranks: they save, exit with 143, and
# the job is queued again to go on from there. The work directory must be on a disk that all machines share.
#SBATCH --job-name=perception
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --time=12:00:00
#SBATCH --signal=USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=slurm-%j.out
set -euo pipefail
if [ $# -lt 1 ]; then
    # SLURM runs a copy of this file, with the same lines.
    sed -n '2,6s/^# //p' "$0" >&2
    exit 2
fi
# sbatch starts in the folder it was called from: the repository.
python="${PYTHON:-.venv/bin/python}"
command -v "$python" > /dev/null || python=python
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export MASTER_ADDR="${hosts[0]}" MASTER_PORT="$((20000 + SLURM_JOB_ID % 20000))"
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

# exec: the signal must reach Python itself. Without a checkpoint --resume starts from the beginning.
# shellcheck disable=SC2016  # the variables are each task's
rank='export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS LOCAL_WORLD_SIZE=$SLURM_NTASKS_PER_NODE
exec "$@"'
code=0
srun --kill-on-bad-exit=1 bash -c "$rank" rank \
    "$python" -m perception.cli.main train "$@" --resume || code=$?
if [ "$code" -eq 143 ]; then
    echo "saved before the time limit; job $SLURM_JOB_ID is queued again"
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
