"""unmask behind the interfaces of other libraries. Each file imports its library, which the extra of the same name installs."""

from __future__ import annotations


def missing(package: str, extra: str) -> ModuleNotFoundError:
    """The error of a file whose library is not installed."""
    return ModuleNotFoundError(
        f"the package {package!r} is not installed\nhint: pip install 'unmask[{extra}]'", name=package
    )
