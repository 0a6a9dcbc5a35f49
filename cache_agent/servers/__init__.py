"""The agent's servers. They run in asyncio; only `BlockingExecutor` crosses to the threads that do the work."""
