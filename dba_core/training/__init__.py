"""Training: loop, optimizer, schedule, checkpoints, several processes; and how long a step takes."""
