"""Virtual environments made from the running one, without network: some of its packages, no more.

Files are hard links: no second copy of torch, and nothing in there can delete the first.
"""

import os
import shutil
import subprocess
import sysconfig
import venv
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent


def closure(names):
    """The installed distributions of these names and all that they require here."""
    found, queue = {}, list(names)
    while queue:
        name = queue.pop().lower().replace("_", "-")
        if name in found:
            continue
        try:
            found[name] = distribution(name)
        except PackageNotFoundError:
            continue  # an optional companion, as the CUDA packages are
        needs = [Requirement(text) for text in found[name].requires or []]
        queue += [
            need.name
            for need in needs
            if need.marker is None or need.marker.evaluate({"extra": ""})
        ]
    return found


class Environment:
    """Its folder, its Python, and its environment variables; pip fetches nothing there."""

    def __init__(self, folder, packages):
        venv.create(folder / "env", with_pip=False, symlinks=True)
        self.python = folder / "env" / "bin" / "python"
        self.site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "env")}))
        for package in closure(packages).values():
            self._link(package)
        (folder / "home").mkdir()
        self.env = {
            "PATH": f"{self.python.parent}:{os.environ['PATH']}",
            "HOME": str(folder / "home"),
            "PIP_CONFIG_FILE": os.devnull,
            "PIP_NO_INDEX": "1",
            "PIP_NO_BUILD_ISOLATION": "0",  # pip reads 0 as "no isolation": setuptools from here
            "PIP_NO_CACHE_DIR": "1",
        }

    def _link(self, package):
        for file in package.files or []:
            if ".." in file.parts:
                continue
            source, target = Path(package.locate_file(file)), self.site / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.exists() and not target.exists():
                try:
                    os.link(source, target)
                except OSError:
                    shutil.copy2(source, target)

    def call(self, *arguments, folder):
        """What ``python *arguments`` prints here."""
        command = [self.python, *map(str, arguments)]
        done = subprocess.run(
            command, cwd=folder, env=self.env, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def run(self, code, folder):
        """What a Python program prints here."""
        return self.call("-c", code, folder=folder)

    def files(self):
        """Every installed file's size and time of change."""
        files = [p for p in self.site.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
        return {p.relative_to(self.site): (p.stat().st_size, p.stat().st_mtime_ns) for p in files}


def working_tree(target):
    """A copy of the working tree as it stands, committed or not, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-coz", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target
