"""Files of tensors and plain values: written whole or not at all, read without running code."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

__all__ = ["check_writable", "first_difference", "read_payload", "write_payload"]


def check_writable(file: Path) -> None:
    """To be asked before the work, not after it. The file's folder is made.

    Raises:
        OSError: in one sentence, if the file could not be written.
    """
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.is_dir():
            raise IsADirectoryError(0, "it is a folder")
        part = _part(file)
        part.touch()
        part.unlink()
    except OSError as error:
        raise OSError(f"cannot write {file}: {error.strerror}") from error


def write_payload(payload: dict, file: Path) -> None:
    """Replace the file in one step: whatever happens, there is the old one or the new one.

    Raises:
        OSError: in one sentence, if it cannot be written, as on a full disk; the old one is kept.
    """
    part = _part(file)
    try:
        torch.save(payload, part)
        part.replace(file)
    except BaseException as error:  # Ctrl-C too leaves nothing half written
        with suppress(OSError):
            part.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):  # torch's writer raises the latter
            raise
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        kept = "; what was there is kept" if file.exists() else ""
        raise OSError(f"cannot write {file}: {reason}{kept}") from error


def read_payload(file: Path, what: str, keys: set[str]) -> dict[str, Any]:
    """What `write_payload` wrote, on the CPU.

    Args:
        file: to be read.
        what: the kind of file, as a sentence has it.
        keys: that it must have.

    Raises:
        OSError: if there is no such file. ValueError: if it is of another kind, or damaged.
    """
    with file.open("rb") as opened:
        try:
            found = torch.load(opened, map_location="cpu", weights_only=True)
        except Exception as error:  # bytes that are none of torch's raise whatever they lead to
            raise ValueError(
                f"expected {file} as {what}, got a file that is truncated or of another kind"
            ) from error
    if not isinstance(found, dict) or not keys <= found.keys():
        raise ValueError(f"expected {file} as {what}, got a file of another kind")
    return found


def first_difference(saved: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> str:
    """The first name whose shape differs, in words; "" if none does.

    >>> first_difference({"a": torch.zeros(2)}, {"a": torch.zeros(3)})
    'a (2,), not (3,)'
    """
    one, other = ({name: tuple(part.shape) for name, part in d.items()} for d in (saved, now))
    for name in [*one, *other]:
        if one.get(name) != other.get(name):
            return f"{name} {one.get(name)}, not {other.get(name)}"
    return ""


def _part(file: Path) -> Path:
    return file.with_name(file.name + ".part")
