"""The science: plain Python, NumPy, PyTorch and FAISS. No Ray, no HTTP."""

__version__ = "0.1.0"
