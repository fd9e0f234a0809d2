"""Fuzz the readers of `fuzz_targets.py` with coverage guidance, and save inputs that crash them.

``python tests/fuzz.py [TARGET ...]`` divides FUZZ_SECONDS among the targets. An undocumented exception, a signal,
more than 10 s for one input or 1 GiB of memory (2 with TensorFlow) is a crash: libFuzzer writes the input to
``tests/corpus/TARGET/``, which `test_corpus.py` runs in every test session. Generated inputs are kept in ``build/fuzz``
for the next call.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CORPUS, KEPT = ROOT / "tests/corpus", ROOT / "build/fuzz"
SECONDS = 10  # limit per input


def main(names: list[str]) -> int:
    """Fuzz each target in its own process; return 1 if anything was found."""
    from fuzz_inputs import MAX_INPUT
    from fuzz_targets import TARGETS

    names = names or list(TARGETS)
    total = float(os.environ.get("FUZZ_SECONDS") or 60)
    failed = []
    for name in names:
        own = KEPT / name
        for folder in (own, CORPUS / name):
            folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(TARGETS[name].seeds()):
            if len(seed) <= MAX_INPUT:
                (own / f"seed-{number}").write_bytes(seed)
        sys.stdout.write(f"== {name}\n")
        sys.stdout.flush()
        completed = subprocess.run(
            [
                sys.executable, __file__, "--target", name, str(own), str(CORPUS / name),
                f"-artifact_prefix={CORPUS / name}/", f"-max_total_time={max(1, round(total / len(names)))}",
                f"-timeout={SECONDS}", f"-rss_limit_mb={TARGETS[name].megabytes}", f"-max_len={MAX_INPUT}",
                "-print_final_stats=1", "-verbosity=0",
            ],
            env=os.environ | {"SIGHTLINE_MODEL_LIMIT": "0.1"},  # else a model allowed 10 s may take 11 s here
            check=False,
        )  # fmt: skip
        if completed.returncode:
            failed.append(name)
    sys.stdout.write(
        f"Found crashing inputs for: {', '.join(failed)}. See {CORPUS}.\n" if failed else "Nothing found.\n"
    )
    return int(bool(failed))


def fuzz(name: str, arguments: list[str]) -> None:
    """Fuzz one target; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["sightline", "PIL", "zipfile", "tarfile"]):
        from fuzz_inputs import alter_json
        from fuzz_targets import TARGETS

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = random.Random(seed)  # noqa: S311  # fuzz inputs, no secrets
        altered = alter_json(data, rng) if rng.random() < 0.5 else None
        return bytes(atheris.Mutate(data, max_size)) if altered is None or len(altered) > max_size else altered

    atheris.Setup([__file__, *arguments], TARGETS[name].check, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--target"]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(sys.argv[1:]))
