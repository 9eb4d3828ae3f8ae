"""The engine side of MLX: runs inside its runtime and drives mlx-lm's models with a loop of its own.

spelling  the bytes of each token, from the tokenizer's decoder
binding   models and tokenizers of mlx-lm
rows      the state of several sequences side by side
memory    which memory a model gets
context   batches, the forward passes they become, and their logits
sampler   the request's sampler chain
dry       DRY, the penalty on repeating whole sequences
embedding pooled last states
backend   two contexts, draft, verify in one batch, roll back
"""
