"""Furniture of Sweet Home 3D's libraries (`.sh3f`): what each model is, its real size, and where it can stand.

Debian's package `sweethome3d-furniture` has five such libraries. One is a zip with
`PluginFurnitureCatalog.properties` (Latin-1: `KEY#NUMBER=VALUE`, sizes in centimetres) and one folder per model.
"""

from __future__ import annotations

import re
import zipfile
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

PROPERTIES = "PluginFurnitureCatalog.properties"
ENTRY = re.compile(r"(\w+?)(?:#(\d+))?\s*=\s*(.*)")
# A picture in a material file; none of the libraries' has options before its name.
PICTURE = re.compile(r"\s*(map_\w+|bump|disp|refl)\s+(.*)", re.IGNORECASE)
NO_ROTATION = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

OUTDOOR = {"Exterior", "Vehicles"}
EITHER = {"Characters", "Miscellaneous"}
# Street furniture that the catalogue files under its material or its use instead of "Exterior".
OUTDOOR_NAMES = {"Street lamp", "Street light", "Park light", "Classic lamppost", "Shipping container", "Garage door"}

MAX_SIZE = 12.5  # metres: the city bus is in; articulated trucks and the swimming pool are out
MIN_HEIGHT = 0.02  # metres: lower are marks on the ground, banknotes: nothing that a depth map shows
MIN_WALL_SIZE = 0.12  # metres: plugs and switches would be half of all that hangs on walls
TABLETOP = (0.55, 0.45)  # metres, largest footprint and height of what is put on tables
TABLETOP_LAMP = 0.75  # metres, the height for lamps
MAX_WALL_DEPTH = 0.7  # metres
CEILING = (2.49, 3.01)  # metres: the catalogue hangs lamps for rooms of this height

LICENCES = (  # how the libraries' `license=` begins, and the usual short name
    ("Public domain", "CC0"),
    ("Creative Commons Attribution 3.0 United States", "CC-BY-3.0-US"),
    ("Creative Commons Attribution 3.0", "CC-BY-3.0"),
)


@dataclass(frozen=True)
class Model:
    """One 3D model of a library.

    Attributes:
        id: Name that is unique over the libraries, such as `Scopia#bed1`.
        name: English name.
        category: The catalogue's category, such as `Living room`.
        size: Width, depth, height in metres. The front looks along -depth.
        place: `floor`, `tabletop`, `wall`, `ceiling`.
        outdoor: Whether it belongs outdoors; None: in either place.
        elevation: Height of its underside over the floor, in metres.
        top: Height of the surface that things can be put on, in metres; None: nothing can.
        rotation: Row-major 3×3 rotation to apply to the file's coordinates (Y up) before it is scaled to `size`.
        library: The `.sh3f` file.
        path: The `.obj` file inside it.
        creator: Author, as the catalogue has it.
        licence: Short name of the licence.
    """

    id: str
    name: str
    category: str
    size: tuple[float, float, float]
    place: str
    outdoor: bool | None
    elevation: float = 0.0
    top: float | None = None
    rotation: tuple[float, ...] = NO_ROTATION
    library: Path = Path()
    path: str = ""
    creator: str = ""
    licence: str = ""


@dataclass(frozen=True)
class Catalogue:
    """Usable models, sorted by id, and how many others were left out and why."""

    models: tuple[Model, ...]
    left_out: dict[str, int]


def read_catalogue(
    folder: Path, exclude: Collection[str] = frozenset(), only: Collection[str] | None = None
) -> Catalogue:
    """Reads all libraries of a folder.

    Args:
        folder: Folder that has the `.sh3f` files, at any depth.
        exclude: Ids of models to leave out.
        only: If given, all other models are left out.

    Returns:
        The models, and counts of those left out by reason.

    Raises:
        FileNotFoundError: If there is no `.sh3f` file.
        ValueError: If a library cannot be read, `exclude` or `only` names a model that no library has, or no model
            is left.
    """
    libraries = sorted(path for path in folder.rglob("*.sh3f") if not path.name.startswith("."))
    if not libraries:
        raise FileNotFoundError(
            f"no .sh3f file in {folder}: `apt-get install sweethome3d-furniture` puts them in "
            "/usr/share/sweethome3d/furniture; or unpack the package with `dpkg-deb -x PACKAGE.deb FOLDER`"
        )
    models: dict[str, Model] = {}
    left_out: Counter[str] = Counter()
    known: set[str] = set()
    for library in libraries:
        for entry, has_file in _entries(library):
            name = entry.get("id", "")
            if name in known:
                left_out["second model of the same id"] += 1
                continue
            known.add(name)
            model, reason = _model(entry, has_file, library)
            if model is None:
                left_out[reason] += 1
            elif name in exclude:
                left_out["excluded by name"] += 1
            elif only is not None and name not in only:
                left_out["not among those asked for"] += 1
            else:
                models[name] = model
    for argument, names in (("exclude_models", exclude), ("only_models", only or ())):
        if unknown := sorted(set(names) - known):
            raise ValueError(f"{argument}: no library in {folder} has {unknown[:5]} ({len(unknown)} in all)")
    if not models:
        raise ValueError(f"no usable model in {folder}: left out {dict(left_out)}")
    return Catalogue(tuple(models[name] for name in sorted(models)), dict(sorted(left_out.items())))


def read_model_names(path: Path) -> set[str]:
    """Reads ids of models from the first column of a tab-separated file (a heading `id` is skipped).

    Raises:
        ValueError: If the file has none.
    """
    names = {line.split("\t")[0].strip() for line in path.read_text(encoding="utf-8").splitlines()} - {"", "id"}
    if not names:
        raise ValueError(f"{path} has no model names: one a line, or first column of a tab-separated file")
    return names


def extract_model(model: Model, folder: Path) -> Path:
    """Unpacks a model's own folder (mesh, materials, textures) and returns the `.obj` file.

    References to pictures that the library does not have, such as paths on the author's disk, are dropped from the
    materials: Blender would paint them magenta.
    """
    inside = str(PurePosixPath(model.path).parent) + "/"
    target = folder / model.library.stem
    with zipfile.ZipFile(model.library) as archive:
        members = [name for name in archive.namelist() if name.startswith(inside) and not name.endswith("/")]
        archive.extractall(target, members)
    # Materials from Windows may differ in case.
    present = {name.removeprefix(inside).lower(): name.removeprefix(inside) for name in members}
    for path in (target / name for name in members if name.lower().endswith(".mtl")):
        lines = []
        for line in path.read_text(encoding="latin-1").splitlines():
            if match := PICTURE.match(line):
                keyword, picture = match[1], present.get(match[2].strip().lower())
                lines.extend([f"{keyword} {picture}"] if picture else [])
            else:
                lines.append(line)
        path.write_text("\n".join(lines) + "\n", encoding="latin-1")
    return target / model.path


def _entries(library: Path) -> list[tuple[dict[str, str], bool]]:
    """A library's pieces as dictionaries, with its licence, and whether the model's file is there."""
    try:
        with zipfile.ZipFile(library) as archive:
            text = archive.read(PROPERTIES).decode("latin-1")
            files = set(archive.namelist())
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{library} is not a furniture library: {error}") from error
    shared: dict[str, str] = {}
    pieces: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        if (match := ENTRY.fullmatch(line.strip())) and not line.startswith("#"):
            key, number, value = match.groups()
            # Java's escapes of characters that Latin-1 lacks.
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda code: chr(int(code[1], 16)), value.strip())
            (pieces.setdefault(int(number), {}) if number else shared)[key] = value
    licence = shared.get("license", "")
    licence = next((short for start, short in LICENCES if licence.startswith(start)), licence)
    return [
        (piece | {"licence": licence}, piece.get("model", "").lstrip("/") in files)
        for _, piece in sorted(pieces.items())
    ]


def _model(entry: dict[str, str], has_file: bool, library: Path) -> tuple[Model | None, str]:
    """The model of a catalogue entry, or None and why it cannot be used."""
    if not has_file or not entry["model"].endswith(".obj") or not entry.get("id"):
        return None, "no id or no .obj file"
    if not entry["licence"]:
        return None, "no licence"
    try:
        width, depth, height = (float(entry[key]) / 100 for key in ("width", "depth", "height"))
        elevation = float(entry.get("elevation", 0)) / 100
        top = float(entry.get("dropOnTopElevation", 100 * height)) / 100
        rotation = tuple(map(float, entry.get("modelRotation", "1 0 0 0 1 0 0 0 1").split()))
    except (KeyError, ValueError):
        return None, "no readable size"
    size = (width, depth, height)
    if min(size) <= 0 or len(rotation) != 9:
        return None, "no readable size"
    category = entry.get("category", "")
    if category == "Staircases":
        return None, "needs a hole in the floor"
    if max(size) > MAX_SIZE:
        return None, f"longer than {MAX_SIZE} m"
    if height < MIN_HEIGHT:
        return None, f"flatter than {MIN_HEIGHT} m"
    place = _place(category, size, elevation)
    if place == "wall" and depth > MAX_WALL_DEPTH:
        return None, f"hangs {MAX_WALL_DEPTH} m off its wall"
    if place == "wall" and max(size) < MIN_WALL_SIZE:
        return None, f"on walls, smaller than {MIN_WALL_SIZE} m"
    if entry["name"].startswith("Sitting"):
        return None, "sits without a seat"
    outdoor = category in OUTDOOR or entry["name"] in OUTDOOR_NAMES
    model = Model(
        id=entry["id"],
        name=entry["name"],
        category=category,
        size=size,
        place=place,
        outdoor=None if category in EITHER and entry["name"] not in OUTDOOR_NAMES else outdoor,
        elevation=elevation,
        top=top if top > 0 else None,
        rotation=rotation,
        library=library,
        path=entry["model"].lstrip("/"),
        creator=entry.get("creator", ""),
        licence=entry["licence"],
    )
    return model, ""


def _place(category: str, size: tuple[float, float, float], elevation: float) -> str:
    """Where a piece is put: the catalogue only has elevations."""
    if elevation > 0 and CEILING[0] <= elevation + size[2] <= CEILING[1] and category in ("Lights", "Miscellaneous"):
        return "ceiling"
    if elevation > 0 or category == "Doors and windows":
        return "wall"
    max_height = TABLETOP_LAMP if category == "Lights" else TABLETOP[1]
    if max(size[:2]) <= TABLETOP[0] and size[2] <= max_height and category != "Vehicles":
        return "tabletop"
    return "floor"
