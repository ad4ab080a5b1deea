"""From a folder of pictures to batches: captions, buckets, latents, prior pictures, concepts."""
