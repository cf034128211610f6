"""The encoders f (paper section 2.2), from normalized log-mel to representation; checkpoints."""
