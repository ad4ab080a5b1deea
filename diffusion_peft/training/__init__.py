"""Training one run: the job, its task, the denoising step, noise, samples, snapshots, results."""
