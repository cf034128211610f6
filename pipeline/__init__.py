"""Audio Barlow Twins: the library behind the pipeline's stages."""
