"""How complex is the function inside a PyTorch network?

``lmn.measure(model, grid)`` gives its linear mapping number over the points of a grid; see README.md.
"""

from lmn._core import __version__
from lmn.activation_patterns import ActivationPatterns, activation_patterns
from lmn.alignment import jacobian_alignment
from lmn.backends import available_backends
from lmn.callback import Callback
from lmn.connectivity import connectivity
from lmn.errors import LmnError
from lmn.grid import box, line, plane
from lmn.jacobian_statistics import JacobianStatistics
from lmn.jacobians import jacobians
from lmn.local_complexity import LocalComplexity, local_complexity
from lmn.measure import measure
from lmn.measurement import Measurement
from lmn.partition import Regions
from lmn.regions import regions
from lmn.spectrum import linear_mapping_number

__all__ = [
    "ActivationPatterns",
    "Callback",
    "JacobianStatistics",
    "LmnError",
    "LocalComplexity",
    "Measurement",
    "Regions",
    "__version__",
    "activation_patterns",
    "available_backends",
    "box",
    "connectivity",
    "jacobian_alignment",
    "jacobians",
    "line",
    "linear_mapping_number",
    "local_complexity",
    "measure",
    "plane",
    "regions",
]
