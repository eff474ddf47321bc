"""Hashes of string ids: the same on every machine and in every release."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray


def hash_ids(ids: Iterable[str], salt: str = "") -> NDArray[np.uint64]:
    """First 8 bytes, big endian, of each id's BLAKE2b. Salted ones are independent of the plain ones that choose shards."""
    make = hashlib.blake2b
    if salt:
        key = salt.encode()
        return _joined([make(text.encode(), digest_size=8, key=key).digest() for text in ids])
    return _joined([make(text.encode()).digest()[:8] for text in ids])


def shard_of(ids: Iterable[str], shards: int) -> NDArray[np.int64]:
    """The shard of each user."""
    return (hash_ids(ids) % np.uint64(shards)).astype(np.int64)


def uniform(ids: Iterable[str], salt: str) -> NDArray[np.float64]:
    """A number in [0, 1) for each id, that depends on nothing but the id and the salt."""
    return (hash_ids(ids, salt) >> np.uint64(11)).astype(np.float64) * 2.0**-53


def mixed(first: NDArray[np.uint64], second: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """One well-mixed number for each pair of numbers (the finaliser of SplitMix64, Steele et al. 2014)."""
    with np.errstate(over="ignore"):
        x = first ^ (second * np.uint64(0x9E3779B97F4A7C15))
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixture: NDArray[np.uint64] = x ^ (x >> np.uint64(31))
        return mixture


def _joined(digests: list[bytes]) -> NDArray[np.uint64]:
    return np.frombuffer(b"".join(digests), ">u8").astype(np.uint64)
