"""Whether what a request costs depends on the shapes of an ONNX model's inputs alone, and on nothing in them.

The model server runs quick models on its event loop, and must know that no request can take it for seconds. A model
is steady when each of its operators is on a list of those without inner graphs and without work that depends on
values, and when nothing computed from the inputs' values sets a size: the shape of a Reshape, the repeats of a Tile.
An operator that is not on the list, one of another domain, or a function of the file's own makes a model not steady;
being wrong that way costs a tenth of a millisecond a request. Nothing here runs the model.
"""

from __future__ import annotations

from pathlib import Path

from wherry_cli.packaging.protobuf import parts, text

_MODEL_GRAPH, _MODEL_FUNCTIONS = 7, 25
_GRAPH_NODES, _GRAPH_INPUTS = 1, 11
_NODE_INPUTS, _NODE_OUTPUTS, _NODE_TYPE, _NODE_DOMAIN = 1, 2, 4, 7
_VALUE_NAME = 1
_SHAPE_ONLY = {"Shape", "Size"}
_PLAIN_NAMES = """
Abs Acos Acosh Add And ArgMax ArgMin Asin Asinh Atan Atanh AveragePool BatchNormalization BitShift BitwiseAnd
BitwiseNot BitwiseOr BitwiseXor Cast CastLike Ceil Celu Clip Concat Constant Conv ConvInteger ConvTranspose Cos
Cosh DepthToSpace DequantizeLinear Div DynamicQuantizeLinear Einsum Elu Equal Erf Exp Flatten Floor GRU Gather
GatherElements GatherND Gelu Gemm GlobalAveragePool GlobalMaxPool Greater GreaterOrEqual HardSigmoid HardSwish
Hardmax Identity InstanceNormalization IsInf IsNaN LRN LSTM LayerNormalization LeakyRelu Less LessOrEqual Log
LogSoftmax LpNormalization LpPool MatMul MatMulInteger Max MaxPool Mean Min Mish Mod Mul Neg Not Or PRelu Pow
QLinearConv QLinearMatMul QuantizeLinear RNN Reciprocal Relu Round ScatterElements ScatterND Selu Shrink Sigmoid
Sign Sin Sinh Softmax Softplus Softsign SpaceToDepth Sqrt Sub Sum Tan Tanh ThresholdedRelu Transpose Trilu Where Xor
"""
_SIZED_NAMES = """
CumSum Expand Pad ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin ReduceProd
ReduceSum ReduceSumSquare Reshape Resize Slice Split Squeeze Tile TopK Unsqueeze
"""
_PLAIN = frozenset(_PLAIN_NAMES.split())
_SIZED = dict.fromkeys(_SIZED_NAMES.split(), 1) | {"ConstantOfShape": 0, "Range": 0, "OneHot": 1}
"""Those with an input that may set a size: the first such input; all from there on must not come from values."""


def is_steady(path: Path) -> bool:
    """Whether an ONNX file, already read once without complaint, is steady.

    Raises:
        ValueError, IndexError, OSError: it is not the file it was.
    """
    model = memoryview(path.read_bytes())
    graphs = list(parts(model, _MODEL_GRAPH))
    return len(graphs) == 1 and not any(parts(model, _MODEL_FUNCTIONS)) and _graph_is_steady(graphs[0])


def _graph_is_steady(graph: memoryview) -> bool:
    """Follow what is computed from the inputs' values, node by node: a valid graph has them in order of computation."""
    used: set[str] = set()
    values = {text(name) for item in parts(graph, _GRAPH_INPUTS) for name in parts(item, _VALUE_NAME)}
    for node in parts(graph, _GRAPH_NODES):
        kind = "".join(map(text, parts(node, _NODE_TYPE)))
        given = [text(name) for name in parts(node, _NODE_INPUTS)]
        domain = "".join(map(text, parts(node, _NODE_DOMAIN)))
        known = kind in _PLAIN or kind in _SIZED or kind in _SHAPE_ONLY
        if domain not in ("", "ai.onnx") or not known or values.intersection(given[_SIZED.get(kind, len(given)) :]):
            return False
        made = set(map(text, parts(node, _NODE_OUTPUTS))) - {""}
        used.update(given)
        if used & made:
            return False
        if kind not in _SHAPE_ONLY and values.intersection(given):
            values |= made
    return True
