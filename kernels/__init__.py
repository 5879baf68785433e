"""The expensive part: one folder an operation, in it the reference and each backend.

Kernels know arrays, never modules. They are installed as ``lmn.kernels``.
"""
