from __future__ import annotations

import base64
import itertools

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from aiobaseten.upload.checksum import ALGORITHMS, Checksums, algorithm_for


@pytest.mark.parametrize("name", ALGORITHMS)
@given(data=st.binary(max_size=5000), cuts=st.lists(st.integers(0, 5000), max_size=5))
def test_parts_combine_to_the_whole(name: str, data: bytes, cuts: list[int]) -> None:
    algorithm = ALGORITHMS[name]
    borders = sorted({0, len(data), *(min(cut, len(data)) for cut in cuts)})
    value = 0
    for start, end in itertools.pairwise(borders):
        part = memoryview(data)[start:end]
        value = algorithm.combine(value, algorithm.compute(part), len(part))
    assert value == algorithm.compute(memoryview(data))


def test_known_values() -> None:
    digits = memoryview(b"123456789")
    assert ALGORITHMS["crc64nvme"].compute(digits) == 0xAE8B14860A799888
    assert ALGORITHMS["crc32c"].compute(digits) == 0xE3069283


def test_encoding_is_big_endian_base64() -> None:
    value = checksums.crc32c(b"123456789")
    assert base64.b64decode(ALGORITHMS["crc32c"].encode(value)).hex() == "e3069283"
    assert Checksums(ALGORITHMS["crc32c"], value).parameters() == {"ChecksumCRC32C": "4waSgw=="}


def test_off_sends_nothing() -> None:
    assert algorithm_for(None) is None
    assert Checksums(None, None).parameters() == {}
    assert Checksums(None, None).encoded is None
