"""The batch side: Ray round `recsys`, thin."""
