"""The paper's tables and settings, and how ours compare."""
