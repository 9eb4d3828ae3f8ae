"""The runtime manager: what to install, how it is done whole or not at all, what to update and what to clean up."""
