"""The same networks and losses, faster: both views at once, and Triton kernels on a GPU.

The plain modules of `pipeline.encoders` and `pipeline.pretrain.projector` are the definition.
"""
