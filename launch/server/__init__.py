"""The HTTP server: OpenAI's way to ask for videos, and a page, over the central scheduler."""
