"""Where a traced tail bends: its activations and maxima, whatever else it does, and what goes into them."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from lmn.errors import LmnError
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
    *("special_expit", "special_erf", "expit"),
}
# What has pieces that are not known here (comparisons too, of which activations are made by hand), and modules of torch's that
# have activations inside, which torch.fx does not look into.
_UNKNOWN = {
    *("RReLU", "rrelu", "rrelu_with_noise", "Threshold", "threshold", "Hardshrink", "hardshrink", "heaviside", "sign"),
    *("gt", "lt", "ge", "le", "greater", "less", "greater_equal", "less_equal", "topk", "sort", "median", "kthvalue"),
    *("fmax", "fmin", "round", "floor", "ceil", "trunc"),
    *("RNN", "LSTM", "GRU", "RNNCell", "LSTMCell", "GRUCell", "rnn_tanh", "rnn_relu", "lstm", "gru", "rnn_tanh_cell"),
    *("rnn_relu_cell", "lstm_cell", "gru_cell", "Transformer", "TransformerEncoder", "TransformerDecoder"),
    *("TransformerEncoderLayer", "TransformerDecoderLayer", "_transformer_encoder_layer_fwd"),
}


class Bends:
    """A traced tail in one dtype, with a copy of the weights of now.

    Softmax, normalisation, attention and products have no units that bend, and are passed through.

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
        An activation that has no kink, or is not known.
    """

    def __init__(self, graph_module: fx.GraphModule, sample: Tensor) -> None:
        self._module = copy.deepcopy(graph_module).to(sample.device, sample.dtype).requires_grad_(False)
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
                layer = self._layer(node, sources) if node in live and self._is_real(sources) else None
                if layer is not None:
                    self.found[node] = layer, sources

    def _depends(self, node: fx.Node, sources: list[fx.Node], depends: set[fx.Node]) -> bool:
        """Whether a node gives what depends on the sample: neither a shape, nor a weight in the sample's dtype."""
        if node.op == "output" or not sources:
            return False
        return has_tensor(self._recorder.env[node]) and not self._recorder.is_weight(node, depends)

    def _is_real(self, sources: list[fx.Node]) -> bool:
        values = [self._recorder.env[source] for source in sources]
        return all(not isinstance(value, Tensor) or value.is_floating_point() for value in values)

    def _layer(self, node: fx.Node, sources: list[fx.Node]) -> Layer | None:
        name, where = self._recorder.name_of(node), where_of(node)
        found = self._recorder.bend(node, sources)
        if found is None and name not in _BY_SIGN:
            _check_passed(name, where, self._recorder.seems_to_bend(node))
            return None
        self._check_batch_first(where, sources)
        if isinstance(found, Activation):
            return layer_of(found, math.prod(self._recorder.shapes[sources[0]][1:]))
        if found is None:
            return Layer(where, math.prod(self._recorder.shapes[sources[0]][1:]), np.zeros(1), smooth=True)
        return Layer(where, len(found.members), found)

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


def _check_passed(name: str, where: str, seems_to_bend: bool) -> None:
    """Raise for what is no layer, and must not be passed through either."""
    _check_kink(name, where)
    if name in _UNKNOWN or seems_to_bend:
        why = f"where '{where}' ({name}) bends is not known"
        how = ", with these arguments, or with hooks or a forward of its own" if seems_to_bend else ""
        raise LmnError(
            f"{why}{how}; write it with activations that are, such as nn.ReLU, nn.GELU or nn.MaxPool2d, or give an activation "
            "of your own an attribute `breakpoints`.",
            short=why,
        )
