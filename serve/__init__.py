"""The online side: Ray Serve round `recsys.retrieval`, thin."""
