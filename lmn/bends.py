"""Where a traced tail bends: its activations and maxima, whatever else it does, and what goes into them."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from lmn import operations
from lmn.errors import LmnError
from lmn.graph_modules import copied
from lmn.kernels.activations import Activation
from lmn.kernels.local_complexity.problem import Layer
from lmn.kernels.pieces import pieces
from lmn.kernels.program import units_of
from lmn.preserve import autocast_restored
from lmn.recorder import InOneDtype, Recorder, batch_unlike, has_tensor, where_of

# Smooth ones that bend about zero, beyond the table's, by the names of modules, functions and aten's operations.
_BY_SIGN = {"CELU", "celu", "LogSigmoid", "logsigmoid", "log_sigmoid", "log_sigmoid_forward"}
# Smooth ones that bend nowhere in particular.
_WITHOUT_A_KINK = {
    *("tanh", "sigmoid", "Softsign", "softsign", "Tanhshrink", "tanhshrink", "sin", "cos", "erf", "atan", "arctan"),
    *("special_expit", "special_erf", "expit", "GLU", "glu"),
}
# What is passed through, by the names of functions, methods and aten's operations: beyond the affine ones that regions know,
# others, softmax, normalisation, attention and products.
_PASSED = {
    *operations.AFFINE,
    *operations.CASTS,
    *operations.FLOATING,
    *("getattr", "cpu", "cuda", "requires_grad", "lift_fresh_copy", "as_strided", "broadcast_to", "moveaxis", "swapdims"),
    *("fliplr", "flipud", "rot90", "tensor_split", "split_with_sizes", "unsafe_split", "unsafe_chunk", "dsplit", "hsplit"),
    *("vsplit", "dstack", "column_stack", "atleast_1d", "atleast_2d", "atleast_3d", "squeeze_copy", "view_copy", "expand_copy"),
    *("index", "gather", "take_along_dim", "scatter", "scatter_add", "index_add", "index_copy", "index_put", "setitem", "copy"),
    *("fill", "zero", "select_scatter", "slice_scatter", "triu", "tril", "diag", "diag_embed"),
    *("trace", "empty_like", "new_empty", "embedding", "subtract", "negative", "view_as_complex", "view_as_real", "fft_fft"),
    *("fft_ifft", "fft_rfft", "fft_irfft", "fft_fft2", "fft_ifft2", "fft_rfft2", "fft_irfft2", "fft_fftn", "fft_ifftn"),
    *("_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_convolution", "_pad_circular", "native_dropout", "reflection_pad1d"),
    *("reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d", "replication_pad3d", "upsample"),
    *("upsample_linear1d", "upsample_nearest1d", "upsample_nearest3d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *("softmax", "_softmax", "_safe_softmax", "log_softmax", "_log_softmax", "softmin", "layer_norm", "native_layer_norm"),
    *("group_norm", "native_group_norm", "instance_norm", "rms_norm", "_fused_rms_norm", "local_response_norm", "normalize"),
    *("cosine_similarity", "_native_batch_norm_legit", "_batch_norm_impl_index"),
    *("_native_batch_norm_legit_no_training", "scaled_dot_product_attention", "multi_head_attention_forward"),
    *("_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention", "_native_multi_head_attention"),
    *("_scaled_dot_product_efficient_attention", "_scaled_dot_product_attention_math"),
    *("multiply", "divide", "baddbmm", "addbmm"),
    *("addr", "outer", "ger", "inner", "dot", "vdot", "linalg_vecdot", "linalg_matmul", "linalg_multi_dot", "kron"),
}
_PASSED_MODULES = {
    *operations.AFFINE_MODULES,
    *(nn.Embedding, nn.Bilinear, nn.CosineSimilarity, nn.MultiheadAttention),
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d, nn.SyncBatchNorm, nn.UpsamplingNearest2d),
    *(nn.UpsamplingBilinear2d, nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad1d, nn.CircularPad3d),
}
_PRODUCTS = {"mul", "multiply", "imul", "addcmul"}
_QUOTIENTS = {"div", "divide", "truediv", "true_divide", "itruediv"}


class Bends:
    """A traced tail in one dtype, with a copy of the weights of now.

    Softmax, normalisation, attention and products have no units that bend, and are passed through; what is not known is
    an error.

    Parameters
    ----------
    graph_module : fx.GraphModule
        Of one placeholder, the sample.
    sample : Tensor of shape (1, ...)
        Its values don't matter.

    Attributes
    ----------
    layers : tuple of Layer
        Those that the output needs, in the order in which they run.

    Raises
    ------
    LmnError
        An activation that has no kink, or an operation that is not known.
    """

    def __init__(self, graph_module: fx.GraphModule, sample: Tensor) -> None:
        self._module = copied(graph_module, sample)
        self._dtype = sample.dtype
        reader = _Reader(self._module, sample)
        self.layers = tuple(layer for layer, _ in reader.found.values())
        self._sources = {node: (index, sources) for index, (node, (_, sources)) in enumerate(reader.found.items())}

    def __call__(self, samples: Tensor) -> Tensor:
        """The outputs of samples, (n, n_out)."""
        with torch.no_grad(), autocast_restored():
            out: Tensor = InOneDtype(self._module, self._dtype).run(samples)
        return out.reshape(len(samples), -1)

    def visit(self, samples: Tensor, at_layer: Callable[[int, Tensor], None]) -> None:
        """Run samples, (n, ...), which may be overwritten; tell each layer's number and units, (n, n_units of its sources)."""
        if not self.layers:
            return
        with torch.no_grad(), autocast_restored(), contextlib.suppress(_LastIsSeen):
            _Visitor(self._module, self._dtype, self._sources, len(samples), at_layer).run(samples)


class _LastIsSeen(Exception):  # noqa: N818
    """What comes after the last layer need not be run."""


class _Visitor(InOneDtype):
    def __init__(
        self,
        module: fx.GraphModule,
        dtype: torch.dtype,
        sources: dict[fx.Node, tuple[int, list[fx.Node]]],
        n: int,
        at_layer: Callable[[int, Tensor], None],
    ) -> None:
        super().__init__(module, dtype)
        self._sources, self._n, self._at_layer = sources, n, at_layer

    def run_node(self, n: fx.Node) -> Any:
        if n in self._sources:
            layer, sources = self._sources[n]
            self._at_layer(layer, units_of([self.env[source] for source in sources], self._n))
            if layer == len(self._sources) - 1:
                raise _LastIsSeen
        return super().run_node(n)


class _Reader:
    """Finds the layers in a graph, with the nodes that each takes."""

    def __init__(self, module: fx.GraphModule, sample: Tensor) -> None:
        self._n = batch_unlike(module, sample)
        self._few, self._recorder = Recorder(module, sample.dtype), Recorder(module, sample.dtype)
        self._few.run_on(sample, self._n)
        self._recorder.run_on(sample, self._n + 1)
        self.found: dict[fx.Node, tuple[Layer, list[fx.Node]]] = {}
        live, depends = self._recorder.live(), set[fx.Node]()
        for node in module.graph.nodes:
            sources = [source for source in node.all_input_nodes if source in depends]
            if node.op == "placeholder":
                depends.add(node)
            elif self._depends(node, sources, depends):
                depends.add(node)
                layer = self._layer(node, sources) if node in live and self._has_reals(sources) else None
                if layer is not None:
                    self.found[node] = layer, sources

    def _depends(self, node: fx.Node, sources: list[fx.Node], depends: set[fx.Node]) -> bool:
        """Whether a node gives what depends on the sample: neither a shape, nor a weight in the sample's dtype."""
        if node.op == "output" or not sources:
            return False
        return has_tensor(self._recorder.env[node]) and not self._recorder.is_weight(node, depends)

    def _has_reals(self, sources: list[fx.Node]) -> bool:
        return not any(_is_whole(self._recorder.env[source]) for source in sources)

    def _layer(self, node: fx.Node, sources: list[fx.Node]) -> Layer | None:
        name, where = self._recorder.name_of(node), where_of(node)
        is_complex = any(isinstance(x, Tensor) and x.is_complex() for x in (self._recorder.env[source] for source in sources))
        found = None if is_complex else self._recorder.bend(node, sources)
        if found is None and name not in _BY_SIGN:
            _check_kink(name, where)
            self._check_passed(node, sources)
            return None
        self._check_batch_first(where, sources)
        if isinstance(found, Activation):
            return layer_of(found, math.prod(self._recorder.shapes[sources[0]][1:]))
        if found is None:
            return Layer(where, math.prod(self._recorder.shapes[sources[0]][1:]), np.zeros(1), smooth=True)
        return Layer(where, len(found.members), found)

    def _check_passed(self, node: fx.Node, sources: list[fx.Node]) -> None:
        """Raise for what is no layer, and must not be passed through either."""
        name, where = self._recorder.name_of(node), where_of(node)
        if self._recorder.seems_to_bend(node):
            how = ", with these arguments, or with hooks or a forward of its own"
        elif name in _PRODUCTS and _is_square(node, sources):
            how = ", of a result with itself"
        elif not self._is_passed(node, name, sources):
            how = ""
        else:
            return
        why = f"where '{where}' ({name}) bends is not known"
        raise LmnError(
            f"{why}{how}; write it with activations that are, such as nn.ReLU, nn.GELU or nn.MaxPool2d, or with torch's own "
            "normalisation, such as nn.RMSNorm, or give an activation of your own an attribute `breakpoints`.",
            short=why,
        )

    def _is_passed(self, node: fx.Node, name: str, sources: list[fx.Node]) -> bool:
        module, value = self._recorder.submodule(node), self._recorder.env[node]
        if module is not None:
            return operations.unparametrized(module) in _PASSED_MODULES
        if name in _QUOTIENTS:
            numerator = node.args[0] if node.args else node.kwargs.get("input")
            return numerator in sources and node.kwargs.get("rounding_mode") is None
        rounds = name in operations.CASTS and _is_whole(value)
        return name in _PASSED and not rounds

    def _check_batch_first(self, where: str, sources: list[fx.Node]) -> None:
        for recorder, n in ((self._few, self._n), (self._recorder, self._n + 1)):
            if any(recorder.shapes[source][:1] != (n,) for source in sources):
                raise LmnError(
                    f"what '{where}' takes does not have the batch first, so its units are not those of one sample; write the "
                    "model with the batch as the first dimension throughout."
                )


def layer_of(activation: Activation, n_units: int) -> Layer | None:
    """An activation as a layer; None for the identity.

    Raises
    ------
    LmnError
        It is smooth, and bends nowhere in particular.
    """
    if activation.name == "identity":
        return None
    if activation.piecewise_linear:
        return Layer(activation.where, n_units, pieces(activation, n_units).breakpoints)
    _check_kink(activation.name, activation.where)
    return Layer(activation.where, n_units, np.zeros(1), smooth=True)


def _check_kink(name: str, where: str) -> None:
    if name in _WITHOUT_A_KINK:
        why = f"'{where}' ({name}) has no kink at zero"
        raise LmnError(
            f"{why} or anywhere, so a sign change of what it takes is no bend, and the model has no local complexity; where it "
            "is part of a SiLU or GELU, use torch's own; where the model ends in it, give the model up to there, e.g. "
            "model[:-1]; otherwise measure the linear mapping number, lmn.measure(model, grid, metrics=('lmn',)), made for "
            "any activation.",
            short=why,
        )


def _is_whole(value: Any) -> bool:
    """Whether a result is a tensor of whole numbers or truth values."""
    return isinstance(value, Tensor) and not (value.is_floating_point() or value.is_complex())


def _is_square(node: fx.Node, sources: list[fx.Node]) -> bool:
    """Whether the last two of a product's arguments, its factors, are one that depends on the sample."""
    factors = [arg for arg in (*node.args, *node.kwargs.values()) if isinstance(arg, fx.Node)][-2:]
    return len(factors) == 2 and factors[0] is factors[1] and factors[0] in sources
