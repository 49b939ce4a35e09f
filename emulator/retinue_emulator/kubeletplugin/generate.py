"""Makes the Python code of the .proto files (`python -m retinue_emulator.kubeletplugin.generate [--check]`).

The generated modules are checked in, so that installing needs no compiler; a test keeps them equal to their sources.
The compiler comes with grpcio-tools, a development dependency.
"""

from __future__ import annotations

import importlib
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

_PROTO = Path(__file__).parent / "proto"
# Messages are registered under their path below this folder, which therefore must be unique among all programs.
_ROOT = _PROTO.parents[2]


def generated_files() -> dict[str, str]:
    """Text of every generated module and its stub by file name, made anew.

    Raises:
        RuntimeError: the compiler refused a file; it has printed why.
    """
    with tempfile.TemporaryDirectory(prefix="retinue-proto-") as folder:
        # grpcio-tools carries no annotations.
        compiler: Callable[[list[str]], int] = importlib.import_module("grpc_tools.protoc").main
        sources = [str(path) for path in sorted(_PROTO.glob("*.proto"))]
        code = compiler(["protoc", f"-I{_ROOT}", f"--python_out={folder}", f"--pyi_out={folder}", *sources])
        if code != 0:
            raise RuntimeError(f"the protobuf compiler ended with {code}")
        made = Path(folder) / _PROTO.relative_to(_ROOT)
        return {path.name: path.read_text(encoding="utf-8") for path in sorted(made.iterdir())}


def checked_in_files() -> dict[str, str]:
    """Text of every generated file as it lies in the package, by file name."""
    return {path.name: path.read_text(encoding="utf-8") for path in sorted(_PROTO.glob("*_pb2.py*"))}


def main(arguments: list[str]) -> int:
    """Writes the files, or with `--check` compares them; returns the exit code."""
    made, present = generated_files(), checked_in_files()
    if arguments == ["--check"]:
        differing = sorted(name for name in made.keys() | present.keys() if made.get(name) != present.get(name))
        for name in differing:
            print(f"{name} differs from its source; run python -m {__spec__.name if __spec__ else __name__}")
        return 1 if differing else 0
    if arguments:
        print("usage: python -m retinue_emulator.kubeletplugin.generate [--check]", file=sys.stderr)
        return 2
    for name in present.keys() - made.keys():
        (_PROTO / name).unlink()
    for name, text in made.items():
        (_PROTO / name).write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
