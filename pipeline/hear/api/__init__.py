"""The HEAR API (https://hearbenchmark.com/hear-api.html) of a checkpoint.

Use this package with any tool for HEAR modules, such as
`hear-validator pipeline.hear.api -m data/pretrained`.
"""

from pipeline.hear.api.model import (
    HearModel,
    Statistics,
    get_scene_embeddings,
    get_timestamp_embeddings,
    load_model,
)

__all__ = [
    "HearModel",
    "Statistics",
    "get_scene_embeddings",
    "get_timestamp_embeddings",
    "load_model",
]
