"""HEAR tasks: metadata, labels and audio."""
