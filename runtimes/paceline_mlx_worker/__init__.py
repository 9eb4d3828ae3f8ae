"""The engine side of MLX: runs inside its runtime and drives mlx-lm's models and caches with a loop of its own.

spelling  the bytes of each token, from the tokenizer's decoder
binding   models, tokenizers and key-value caches of mlx-lm
sampler   the request's sampler chain
backend   two contexts, draft, verify in one forward pass, roll back
"""
