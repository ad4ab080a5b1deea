"""Reports: pages, plots, pictures, scores."""
