"""HEAR tasks on disk: checking of metadata and labels, reading and resampling of audio."""
