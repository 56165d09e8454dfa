"""The step on a GPU: Triton kernels, bf16 copies of the weights, CUDA graphs. Only `train.engine` imports it."""
