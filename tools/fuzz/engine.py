"""Fuzzes one reader in a process of its own: libFuzzer, which atheris runs, ends the process."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory

import atheris

with atheris.instrument_imports(include=["kldiv.readers", "kldiv.streaming.teachers"]):
    from kldiv.readers import sources
    from tools.fuzz.packages import EVERY
    from tools.fuzz.targets import Target, packed, unpacked

_LONGEST = 1 << 16  # bytes of an input
_HANG = 30  # seconds of one input
_MEMORY = 2048  # MiB of the process, for what other languages allocate


def main(name: str, seconds: int, corpus: str, findings: str, seed: int) -> None:
    """Fuzz a reader until one of its files is a finding, which is kept, or the time is over."""
    target = EVERY[name]
    sources.STORED = 64  # type: ignore[misc] # small arrays stay on disk, so that parts of them are read too
    memory = "/dev/shm"  # noqa: S108 - each input gets a folder of an unpredictable name
    scratch = TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else None)
    for number, start in enumerate(target.seeds()):
        Path(corpus, f"seed-{number}").write_bytes(start)
        with suppress(Exception):  # loads libraries, which takes memory; what breaks comes again
            target.check(start, Path(scratch.name))

    def check(data: bytes) -> None:
        target.check(data, Path(scratch.name))

    def mutate(data: bytes, longest: int, number: int) -> bytes:
        return mutated(target, data, longest, Random(number))  # noqa: S311 - no secret

    options = {
        "max_total_time": seconds,
        "max_len": _LONGEST,
        "timeout": _HANG,
        "rss_limit_mb": _MEMORY,
        "seed": seed + 1,  # 0 asks for another one each time
        "artifact_prefix": str(Path(findings, f"{name}-")),
        "print_final_stats": 1,
    }
    arguments = [f"-{option}={value}" for option, value in options.items()]
    atheris.Setup([sys.argv[0], *arguments, corpus], check, custom_mutator=mutate)
    atheris.Fuzz()


def mutated(target: Target, data: bytes, longest: int, random: Random) -> bytes:
    """Return an input made anew, one with a file of its folder changed, or with bytes changed."""
    chance = random.random()
    if chance < 0.3:
        return target.make(random)[:longest]
    files = unpacked(data, target.names) if target.names and chance < 0.8 else {}
    if files:
        name = random.choice(list(files))
        files[name] = atheris.Mutate(files[name], min(longest, 1 << 14))
        return packed(files, target.names)[:longest]
    changed: bytes = atheris.Mutate(data, longest)
    return changed


if __name__ == "__main__":
    _name, _seconds, _corpus, _findings, _seed = sys.argv[1:]
    main(_name, int(_seconds), _corpus, _findings, int(_seed))
