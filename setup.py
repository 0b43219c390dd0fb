"""Put training-monitor.pth at the root of the wheel, where Python reads it when it starts. All else: pyproject.toml."""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

PTH = "training-monitor.pth"
LINE = 'import os; os.environ.get("MONITOR") and __import__("_training_monitor").begin()\n'


class BuildWithPth(build_py):
    """Build the modules, and the file beside them; for an editable install it goes into the wheel itself."""

    def run(self) -> None:
        """Build."""
        super().run()
        root = self.get_finalized_command("install").install_lib if self.editable_mode else self.build_lib
        Path(root).mkdir(parents=True, exist_ok=True)
        Path(root, PTH).write_text(LINE, encoding="utf-8")


if __name__ == "__main__":
    setup(cmdclass={"build_py": BuildWithPth})
