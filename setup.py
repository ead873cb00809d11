"""Builds the compiled kernels; everything else stands in pyproject.toml."""

from glob import glob

from setuptools import setup

from csrc_build import BuildKernels, kernels

setup(ext_modules=kernels(), cmdclass={"build_ext": BuildKernels})
