"""Quantizes TFLite models with ai-edge-quantizer, without TensorFlow; imported in a child only."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any, Literal

TfliteRecipe = Literal["fp16", "dynamic", "weights"]


def quantize_tflite(source: Path, target: Path, recipe: TfliteRecipe) -> None:
    """Write a quantized model; inputs and outputs stay as they are.

    Args:
        source: the model.
        target: where to.
        recipe: weights in half precision; weights in int8 with activations quantized as they come; or weights in
            int8 that are unpacked before they are used.
    """
    from ai_edge_quantizer import quantizer
    from ai_edge_quantizer import recipe as recipes

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of parts that are quantized already, which we find out ourselves
        maker = quantizer.Quantizer(str(source))
        if recipe == "fp16":
            _half_precision(maker)
        else:
            made = recipes.dynamic_wi8_afp32() if recipe == "dynamic" else recipes.weight_only_wi8_afp32()
            maker.load_quantization_recipe(made)
        target.write_bytes(bytes(maker.quantize().quantized_model))


def _half_precision(maker: Any) -> None:
    from ai_edge_quantizer import qtyping, recipe_manager

    weights = qtyping.TensorQuantizationConfig(num_bits=16, dtype=qtyping.TensorDataType.FLOAT)
    maker.update_quantization_recipe(
        regex=".*",
        operation_name=qtyping.TFLOperationName.ALL_SUPPORTED,
        op_config=qtyping.OpQuantizationConfig(
            weight_tensor_config=weights,
            compute_precision=qtyping.ComputePrecision.FLOAT,
            explicit_dequantize=True,
        ),
        algorithm_key=recipe_manager.AlgorithmName.FLOAT_CASTING,
    )
