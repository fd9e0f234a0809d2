"""The state of the process is changed only within the blocks that need it."""

from __future__ import annotations

import logging
import random
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sightline import backend
from sightline._keras.process_state import restore_torch_settings, seed_new_layers, silence_logging
from sightline.api.training import train_run


def test_layers_are_seeded_and_the_generator_of_the_process_is_not() -> None:
    state = random.getstate()
    with seed_new_layers(7):
        first = random.getrandbits(64)
    assert random.getstate() == state
    with seed_new_layers(8):
        assert random.getrandbits(64) != first
    with pytest.raises(ZeroDivisionError), seed_new_layers(7):
        _ = 1 / (random.getrandbits(64) - first)
    assert random.getstate() == state


def test_only_this_thread_is_silenced_and_errors_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "tensorflow")  # TensorFlow raises it when it is imported
    logger, level = logging.getLogger("tensorflow"), logging.WARNING
    with silence_logging("tensorflow", ""):
        logger.warning("ours")
        logging.getLogger().warning("ours")
        logger.error("an error")
        thread = threading.Thread(target=logger.warning, args=["another thread's"])
        thread.start()
        thread.join()
    logger.warning("after")
    assert [record.message for record in caplog.records] == ["an error", "another thread's", "after"]
    assert logger.level == level
    assert not logger.filters


def test_the_root_logger_gets_no_handler() -> None:
    code = """
import logging
from sightline._keras.process_state import silence_logging
with silence_logging(""):
    logging.warning("from a library")  # without a handler, this would install one
print(logging.getLogger().handlers, logging.getLogger().filters)
"""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (completed.stdout, completed.stderr) == ("[] []\n", "")


@pytest.mark.backends
def test_pytorch_has_its_threads_and_its_nondeterministic_operations_again() -> None:
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(threads + 1)
        with restore_torch_settings():
            torch.set_num_threads(threads + 2)
            torch.use_deterministic_algorithms(mode=True)
        assert torch.get_num_threads() == threads + 1
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)


@pytest.mark.backends
def test_a_training_leaves_pytorch_as_it_was(tmp_path: Path) -> None:
    if backend.name() != "torch":
        pytest.skip("another backend trains")
    import torch

    threads = torch.get_num_threads()
    settings = [
        "model.name=cifar10-simple",
        "model.hidden_units=[64]",
        "train.epochs=1",
        "train.track=[]",
        f"device.threads={threads + 1}",
    ]
    try:
        train_run("beans:24@16", recipe="quick", set=[*settings, "device.deterministic=true"], out=tmp_path / "run")
        assert torch.get_num_threads() == threads
        assert not torch.are_deterministic_algorithms_enabled()
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(mode=False)
