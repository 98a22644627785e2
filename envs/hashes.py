"""Write into the lists the sha256 of every archive that a pin may be installed from.

Run it by hand after a version was changed: `.venv/bin/python envs/hashes.py [LIST …]`; without a
list it writes all. It asks only the index of pip's configuration, so that a local build never gets
into a list. It takes the wheels for CPython 3.11 to 3.14 on x86-64 Linux, and the source
distribution of a release without such wheels. `torch-cpu.txt` is left alone, because CPU builds of
torch are on another index.
"""

import re
import sys
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

# pip has no command that tells hashes; its own modules know the proxies, certificates and passwords
# of its configuration. `pipeline.txt` pins the version that this was written for.
from pip._internal.commands.install import InstallCommand
from pip._internal.index.collector import LinkCollector, parse_links
from pip._internal.models.link import Link

ENVS_DIR = Path(__file__).resolve().parent
BY_HAND = "torch-cpu.txt"
PYTHONS = ((3, 11), (3, 12), (3, 13), (3, 14))
PLATFORMS = [
    "linux_x86_64",
    *(f"manylinux{year}_x86_64" for year in ("1", "2010", "2014")),
    *(f"manylinux_2_{minor}_x86_64" for minor in range(5, 45)),
]
PIN = re.compile(r"^([A-Za-z0-9._-]+)==([^\s\\]+)(?: \\\n    --hash=\S+)*$", re.MULTILINE)


def fitting_tags() -> frozenset[Tag]:
    """Return the tags of wheels that fit one of the Pythons."""
    tags: set[Tag] = set()
    for major, minor in PYTHONS:
        name = f"cp{major}{minor}"
        tags.update(cpython_tags((major, minor), [name], PLATFORMS))
        tags.update(compatible_tags((major, minor), name, PLATFORMS))
    return frozenset(tags)


FITTING = fitting_tags()


def archive_hashes(links: Iterable[Link], version: Version) -> list[str]:
    """Return options with the sha256 of a release's fitting wheels, else of its source."""
    wheels, sources = set(), set()
    for link in links:
        try:
            if link.is_wheel:
                _, found, _, tags = parse_wheel_filename(link.filename)
                if found == version and tags & FITTING:
                    wheels.add(link.hash)
            elif parse_sdist_filename(link.filename)[1] == version:
                sources.add(link.hash)
        except (InvalidWheelFilename, InvalidSdistFilename):
            continue
    return sorted(f"--hash=sha256:{digest}" for digest in wheels or sources)


def main(arguments: list[str]) -> None:
    paths = [Path(argument) for argument in arguments] or sorted(
        path for path in ENVS_DIR.glob("**/*.txt") if path.name != BY_HAND
    )
    names = {name for path in paths for name, _ in PIN.findall(path.read_text())}
    command = InstallCommand("install", "")
    options, _ = command.parse_args([])
    options.find_links, options.extra_index_urls = [], []
    with command._build_session(options) as session, ThreadPoolExecutor(8) as pool:
        collector = LinkCollector.create(session, options=options)

        def links_of(name: str) -> list[Link]:
            (source,) = collector.collect_sources(name, lambda _: ()).index_urls
            if source is None or source.link is None:
                return []
            page = collector.fetch_response(source.link)
            return list(parse_links(page)) if page else []

        links = dict(zip(names, pool.map(links_of, names), strict=True))

    def with_hashes(pin: re.Match[str]) -> str:
        name, version = pin.groups()
        hashes = archive_hashes(links[name], Version(version))
        if not hashes:
            sys.exit(f"hashes: {name}=={version}: the index has no such archive")
        return " \\\n    ".join([f"{name}=={version}", *hashes])

    for path in paths:
        text, number = PIN.subn(with_hashes, path.read_text())
        path.write_text(text)
        print(f"{path.name}: {number} pins")


if __name__ == "__main__":
    main(sys.argv[1:])
