"""The paper's tables and settings, and how a run compares with them."""
