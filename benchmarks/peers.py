"""Peers that pin other versions of our packages and therefore lie in a folder of their own."""

import importlib
import os
import sys
from types import ModuleType


def peer_modules(folder: str | None, *names: str) -> list[ModuleType] | None:
    """Import peers, from here on in this process and in those that it starts; None, with a word of why, without them.

    Args:
        folder: into which they were installed; None: they are importable as they are.
        names: of their modules.
    """
    if folder:
        sys.path.insert(0, folder)  # in front: they need older versions than ours
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [folder, os.environ.get("PYTHONPATH", "")]))
    try:
        return [importlib.import_module(name) for name in names]
    except ImportError as error:
        print(f"left out: {error}; the peers are installed as `python benchmarks/doctor_speed.py --help` says")
        return None
