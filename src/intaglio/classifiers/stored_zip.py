"""Zip archives as torch writes them: never compressed. Anything else is refused before torch reads it."""

import zipfile
from pathlib import Path

from intaglio.errors import ModelError, UnsafeFileError


def stored_members(path: Path) -> dict[str, zipfile.ZipInfo]:
    """The members by name, proven to take no more room than the file itself.

    Raises:
        UnsafeFileError: TorchScript code; or compressed, overlapping or repeated members, which torch never writes
            (zip bombs have them).
        ModelError: not a zip archive, or truncated.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise ModelError(f"{path}: not a zip archive, or truncated ({error})") from error
    if any("/code/" in member.filename or member.filename.endswith("/constants.pkl") for member in members):
        raise UnsafeFileError(f"{path}: holds TorchScript code; save a state dict, safetensors or torch.export file")
    for member in members:
        if member.compress_type != zipfile.ZIP_STORED:
            raise UnsafeFileError(f"{path}: member '{member.filename}' is compressed, which torch never does")
    if sum(member.file_size for member in members) > path.stat().st_size:
        raise UnsafeFileError(f"{path}: its members claim more bytes than the file has")
    named = {member.filename: member for member in members}
    if len(named) != len(members):
        raise UnsafeFileError(f"{path}: two members have the same name")
    return named
