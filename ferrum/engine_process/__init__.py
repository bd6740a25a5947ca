"""The engine in a process of its own: what both ends say, the process, its start, and the client."""
