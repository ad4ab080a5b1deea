"""Training one run: data and features, the job, contrastive and few-shot steps, evaluation, results."""
