"""Requests that come by file: OpenAI's batches, on the server and from the command line."""
