"""The encoders f: normalized log-mel to representation (paper section 2.2), and their files."""
