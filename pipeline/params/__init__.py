"""Sections of params.yaml by the part of the pipeline that reads them."""
