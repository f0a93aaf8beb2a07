"""What pyproject.toml cannot say: an installed package holds `experiments/` as `mdlm/experiments/`.

Where `mdlm.experiment.shipped` looks for them. An editable installation reads the repository's.
"""

from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

EXPERIMENTS = sorted(map(str, Path("experiments").rglob("*.py")))


class WithExperiments(build_py):
    def run(self):
        super().run()
        for file in [] if self.editable_mode else EXPERIMENTS:
            copy = Path(self.build_lib, "mdlm", file)
            self.mkpath(str(copy.parent))
            self.copy_file(file, str(copy))

    def get_source_files(self):
        return [*super().get_source_files(), *EXPERIMENTS]


setup(cmdclass={"build_py": WithExperiments})
