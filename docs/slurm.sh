#!/usr/bin/env bash
# Train MaskCo on several nodes of a SLURM cluster; save and requeue before the time limit:
#
#     sbatch --nodes 2 docs/slurm.sh --shards '/data/cc3m/{0000..0331}.tar' --recipe paper --run-dir runs/cc3m
#
# All arguments go to `maskco-fast train`. The run folder must be on a file system shared by all nodes. The same command
# resumes from its newest checkpoint, on any number of nodes whose process count divides the groups of a step.
#SBATCH --job-name=maskco
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --exclusive
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180
#SBATCH --requeue
#SBATCH --open-mode=append

set -uo pipefail

first_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# torchrun forwards only the signals listed here; its default list lacks USR1.
srun --kill-on-bad-exit=1 python -m torch.distributed.run \
    --nnodes "$SLURM_JOB_NUM_NODES" \
    --nproc-per-node "${SLURM_GPUS_ON_NODE:-8}" \
    --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-backend c10d \
    --rdzv-endpoint "$first_node:29500" \
    --signals-to-handle SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1 \
    -m maskco_fast train "$@" &
job=$!

# SLURM sends USR1 to the batch script alone (B:), three minutes early; the script forwards it to every task.
warned=
trap 'warned=yes; scancel --signal=USR1 "$SLURM_JOB_ID.0"' USR1

wait "$job"
code=$?
while [ -n "$warned" ] && kill -0 "$job" 2>/dev/null; do # a trapped signal ends `wait` before the job has saved
    wait "$job"
    code=$?
done
if [ -n "$warned" ]; then
    exec scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
