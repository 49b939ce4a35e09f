"""The version of the distribution, which is also the tag of its images and the version of its chart."""

from importlib.metadata import version

VERSION = version("retinue")
