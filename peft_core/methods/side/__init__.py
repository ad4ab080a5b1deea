"""Side networks beside the frozen model."""
