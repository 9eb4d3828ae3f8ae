"""Python packages, by way of uv: what an engine's recipe resolves to, and the environment made of it."""
