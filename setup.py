"""Where the two import packages live; all other metadata is in pyproject.toml.

`kernels/` itself is not a package: an `__init__.py` there would shadow Hugging Face's `kernels` whenever the
repository root is on sys.path.
"""

from setuptools import find_packages, setup

setup(
    package_dir={"fastvtp": "fastvtp", "fastvtp_kernels": "kernels/fastvtp_kernels"},
    packages=find_packages(include=["fastvtp", "fastvtp.*"]) + find_packages("kernels"),
    package_data={
        "fastvtp": ["py.typed", "visualization/*.html", "preparation/*.html"],
        "fastvtp_kernels": ["py.typed"],
    },
)
