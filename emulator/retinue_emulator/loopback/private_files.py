"""Files with secrets in them: readable by their owner only, and never half written."""

from pathlib import Path


def write_private(path: Path, content: str | bytes) -> Path:
    """Writes or replaces `path` as a whole with mode 0600, making its folder if needed. Returns `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    temporary.touch(mode=0o600)
    temporary.write_bytes(content.encode() if isinstance(content, str) else content)
    return temporary.replace(path)
