"""Seeds from what they are for."""

import hashlib


def seed_of(*parts: int | str) -> int:
    """One seed from several numbers or names, such that no two uses share it: 63 bits of blake2b."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=8).digest(), "big") >> 1
