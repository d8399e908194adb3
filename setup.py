"""Puts models/ and configs/ into the package `pipeline` of a wheel. All else about the build is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

FOLDERS = {"models": (".onnx", ".toml", ".md", ".json"), "configs": (".yaml",)}


class BuildWithModels(build_py):
    def run(self) -> None:
        if not self.editable_mode:
            shutil.rmtree(self.build_lib, ignore_errors=True)  # a file that was renamed since must not come back
        super().run()
        if not self.editable_mode:  # an editable install finds them beside the packages
            for source, target in self._shipped().items():
                self.mkpath(str(Path(target).parent))
                self.copy_file(source, target)

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), *([] if self.editable_mode else self._shipped().values())]

    def _shipped(self) -> dict[str, str]:
        """File of the checkout → its place in the build."""
        return {
            str(path): str(Path(self.build_lib, "pipeline", path))
            for folder, suffixes in FOLDERS.items()
            for path in sorted(Path(folder).rglob("*"))
            if path.suffix in suffixes
        }


setup(cmdclass={"build_py": BuildWithModels})
