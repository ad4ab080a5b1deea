"""Video classifiers: clips, views, temporal heads."""
