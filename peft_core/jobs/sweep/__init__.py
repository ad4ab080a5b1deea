"""What the sweeps of all programs share: jobs, the processes or cluster that carry them out, their folder, their progress."""
