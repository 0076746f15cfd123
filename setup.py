from setuptools import setup

setup(cffi_modules=["fibers/driver/build.py:ffibuilder"])
