"""Builds the extension modules: everything else about the package is in pyproject.toml.

CMakeLists.txt compiles both modules, `fastmobilenet._native` (C++, pybind11) and `fastmobilenet._image` (Cython);
this file calls CMake and puts the results where setuptools wants them. The environment variable CMAKE_ARGS is
added to the configure step, for instance ``CMAKE_ARGS=-DFMN_SANITIZE=address pip install .``.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

import pybind11
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
MODULES = ("_native", "_image")


class BuildWithCMake(build_ext):
    """Builds all modules in one CMake project."""

    def build_extensions(self) -> None:
        build = Path(self.build_temp).resolve()
        built = build / "modules"
        config = "Debug" if self.debug else "Release"
        suffix = self.get_ext_filename("x").removeprefix("x")
        configure = [
            "cmake",
            *(f"-S{ROOT}", f"-B{build}"),
            f"-DCMAKE_BUILD_TYPE={config}",
            f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=$<1:{built}>",  # the expression keeps Visual Studio from adding a folder
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-Dpybind11_DIR={pybind11.get_cmake_dir()}",
            f"-DFMN_EXT_SUFFIX={suffix}",
        ]
        if ninja := shutil.which("ninja"):
            configure += ["-GNinja", f"-DCMAKE_MAKE_PROGRAM={ninja}"]
        configure += shlex.split(os.environ.get("CMAKE_ARGS", ""))
        self.configure_once(build, configure)
        self.spawn(["cmake", "--build", str(build), "--config", config, "--parallel"])
        for extension in self.extensions:
            target = Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            self.copy_file(str(built / (extension.name.rpartition(".")[2] + suffix)), str(target))

    def configure_once(self, build: Path, command: list[str]) -> None:
        """Configure afresh if the command differs from the last one: pip's build folder moves from run to run, and
        CMake keeps the old one's paths in its cache."""
        stamp = build / "configured-with.txt"
        line = shlex.join(command)
        if stamp.is_file() and stamp.read_text() == line:
            return
        stamp.unlink(missing_ok=True)
        self.spawn([*command, "--fresh"])
        stamp.write_text(line)


setup(
    ext_modules=[Extension(f"fastmobilenet.{name}", sources=[]) for name in MODULES],
    cmdclass={"build_ext": BuildWithCMake},
)
