"""The targets of the fuzzer over their seeds and over what Hypothesis makes of these, without atheris."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
from fuzz import run
from fuzz.targets import TARGETS, check_message
from hypothesis import given, settings
from hypothesis import strategies as st

SEEDS = {name: sorted(path for path in (run.SEEDS / name).iterdir()) for name in TARGETS}
CASES = [pytest.param(name, seed, id=f"{name}-{seed.name}") for name in TARGETS for seed in SEEDS[name]]


@pytest.mark.parametrize(("name", "seed"), CASES)
def test_seeds(name: str, seed: Path) -> None:
    TARGETS[name](seed.read_bytes())


@st.composite
def damaged(draw: st.DrawFn, seeds: list[Path]) -> bytes:
    """A seed with pieces replaced, repeated or taken out."""
    content = bytearray(draw(st.sampled_from(seeds)).read_bytes())
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(content)))
        stop = draw(st.integers(start, min(len(content), start + 16)))
        piece = draw(st.binary(max_size=8) | st.just(bytes(content[start:stop])))
        content[start:stop] = piece * draw(st.sampled_from([1, 1, 1, 2, 40]))
    return bytes(content)


@pytest.mark.parametrize("name", TARGETS)
def test_anything_else(name: str) -> None:
    @settings(deadline=None, max_examples=60)
    @given(damaged(SEEDS[name]) | st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "replace")))
    def fuzz(data: bytes) -> None:
        TARGETS[name](data)

    fuzz()


def test_each_target_has_seeds_and_nothing_else_has() -> None:
    assert {path.name for path in run.SEEDS.iterdir()} == set(TARGETS)
    assert {path.stem for path in run.DICTIONARIES.iterdir()} <= set(TARGETS)


@pytest.mark.parametrize("text", ["", "a\x07", "x" * 100_000, "key sk-planted-3141592653", "\ud800"])
def test_what_is_no_message_would_be_found(text: str) -> None:
    with pytest.raises(AssertionError):
        check_message(text)


def test_without_atheris_the_runner_says_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(sys, "argv", ["run.py"])
    assert run.main() == 0
    assert capsys.readouterr().out.startswith("skipped: there is no atheris for Python ")
