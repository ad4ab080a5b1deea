"""Run folders: training, resuming, loading, predicting."""
