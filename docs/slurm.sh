#!/bin/bash
# One job, several machines, one torchrun on each:  sbatch docs/slurm.sh recipes/imagenet256-b.yaml runs/imagenet
# A job that Slurm takes back or ends is asked two minutes before (SIGUSR1), saves within a step, and is put into the
# queue again, where it goes on.
#SBATCH --job-name=djepa-mm
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append

set -u
recipe=$1 out=$2
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
resume=()
if compgen -G "$out/checkpoints/step-*" >/dev/null; then resume=(--resume); fi

# --kill-on-bad-exit: where one machine gives up, Slurm ends the others instead of letting them wait
srun --kill-on-bad-exit=1 torchrun \
    --nnodes "$SLURM_NNODES" --nproc-per-node "${PROCESSES:-8}" --max-restarts 3 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29500" --rdzv-id "$SLURM_JOB_ID" \
    --signals-to-handle SIGTERM,SIGINT,SIGUSR1 \
    -m djepa_mm train "$recipe" --out "$out" "${resume[@]}" "${@:3}"
status=$?

# 0: the recipe is finished. Else: was it stopped, with a checkpoint to go on from?
if [ $status -ne 0 ] && grep -q "^stopped at step" "${SLURM_LOG:-slurm-$SLURM_JOB_ID.out}"; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $status
