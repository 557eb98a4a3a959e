"""This process's place among those that share an epoch, where the loader's options do not say."""

import os
import warnings

import torch.distributed


def ranks_of_process() -> tuple[int, int]:
    """(rank, world size): torch.distributed's, else torchrun's, else SLURM's, else (0, 1).

    Under SLURM only the tasks of a step count, which `srun` starts; a batch script that starts
    Python itself is one process. Without a process group the tasks may also be meant to be
    independent, so that a warning says what is done.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    environment = os.environ
    if "RANK" in environment or "WORLD_SIZE" in environment:
        return int(environment.get("RANK", 0)), int(environment.get("WORLD_SIZE", 1))
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks > 1 and "SLURM_PROCID" in environment:
        rank = int(environment["SLURM_PROCID"])
        warnings.warn(
            f"there is no torch.distributed process group, so this loader delivers SLURM task "
            f"{rank}'s share of {tasks}: start the group before the first batch, or pass rank and "
            "world_size (0 and 1, if each task should read everything)",
            RuntimeWarning,
            stacklevel=4,
        )
        return rank, tasks
    return 0, 1
