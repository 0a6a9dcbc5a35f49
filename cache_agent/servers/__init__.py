"""What others talk to. asyncio lives here; `bridge` alone crosses to the threads that do the work."""
