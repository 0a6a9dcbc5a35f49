"""A stand-in for vLLM: see `api_server`."""
