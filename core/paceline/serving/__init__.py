"""Serving: from a model of the library to a worker that answers.

launcher    where a worker runs: a specification becomes a channel (local processes today)
client      the worker protocol over a channel
pool        which models are loaded, with which runtime and draft; loads on first use, drains, evicts
generation  what a generation is asked for and what comes back
"""
