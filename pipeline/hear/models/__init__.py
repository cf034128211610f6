"""The models that the evaluation compares (`hear.models`), each with the HEAR API."""
