"""World files from disk: YAML or JSON documents, and fences as GeoJSON. Several files are one world, in any order."""

from collections.abc import Sequence
from pathlib import Path

from geofence.geojson import fences_from_geojson
from nearcast.errors import InputError
from offers.loading import load_world
from offers.worldfile import WorldFile


def read_worlds(files: Sequence[Path]) -> WorldFile:
    """What the files hold together. Raises `InputError` that names every file, line and field at fault."""
    worlds: list[WorldFile] = []
    problems: list[str] = []
    for file in files:
        try:
            worlds.append(_read(file))
        except InputError as error:
            problems.append(str(error))
    if problems:
        raise InputError("invalid_world_file", "\n".join(problems))
    return WorldFile(
        stores=[item for each in worlds for item in each.stores],
        fences=[item for each in worlds for item in each.fences],
        products=[item for each in worlds for item in each.products],
        promotions=[item for each in worlds for item in each.promotions],
        stock=[item for each in worlds for item in each.stock],
    )


def _read(file: Path) -> WorldFile:
    try:
        if file.suffix == ".geojson":
            return WorldFile(fences=fences_from_geojson(file.read_bytes()))
        return load_world(file.read_text(encoding="utf-8"), str(file))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError("invalid_world_file", f"can't be read: {error}", str(file)) from None
    except InputError as error:
        if file.suffix == ".geojson":
            raise InputError(error.reason, error.detail, f"{file}: {error.where}") from None
        raise
