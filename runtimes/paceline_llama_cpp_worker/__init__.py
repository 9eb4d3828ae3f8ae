"""The engine side of llama.cpp: runs inside its runtime and drives llama-cpp-python's low-level functions.

options    what a load can be told
binding    models, contexts and batches over ctypes
sampler    the request's sampler chain
backend    two contexts, draft, verify in one batch, roll back
embedding  one vector per text
"""
