"""Simplify a translated model: fold constants, join what cancels, compute everything once.

The rules are onnxscript's, those that fit what torch's exporter writes for a transformer.  Left
out: ``slice_split_rule`` (a pattern of two outputs, tried for every pair of nodes: three quarters
of the time, and a pair of slices costs nothing), and what ONNX Runtime joins itself when it loads.
Norms and rotary embeddings, which it does not join, are joined here (``join_norms.py``,
``join_rotary.py``).
"""

from __future__ import annotations

import onnx_ir
import onnxscript.optimizer
from onnx_ir.passes import Sequential, common
from onnxscript.rewriter import RewritePass
from onnxscript.rewriter.rules import common as rules

from tokopt.targets.onnx.join_norms import join_norms
from tokopt.targets.onnx.join_rotary import join_rotary

ROUNDS = 2
"""What is joined in the first round can be folded in the second."""

RULES = (
    rules.add_0_rule,
    rules.sub_0_rule,
    rules.mul_by_1_rule,
    rules.div_by_1_rule,
    rules.two_reshapes_matmul_reshape_rule,
    rules.one_reshape_matmul_reshape_rule,
    rules.cast_constant_of_shape_rule,
    rules.cast_constant_of_shape_without_value_rule,
    rules.collapse_slice_rule,
    rules.collapse_slice2_rule,
    rules.materialize_reshape_shape_rule,
    rules.cast_cast_rule,
    rules.no_op_cast_rule,
    rules.no_op_expand_rule,
    rules.reshape_reshape_rule,
    rules.no_op_transpose_rule,
    rules.transpose_transpose_rule,
    rules.unsqueeze_unsqueeze_rule,
    rules.squeeze_reshape_1d_rule,
    rules.no_op_dynamic_scatter_nd_rule,
    rules.no_op_static_scatter_nd_rule,
    rules.remove_optional_bias_from_conv_rule,
)


def simplify(model: onnx_ir.Model) -> None:
    """Simplify ``model`` in place: it computes the same."""
    common.InlinePass()(model)
    for _ in range(ROUNDS):
        onnxscript.optimizer.fold_constants_ir(model, onnx_shape_inference=True)
        Sequential(RewritePass(RULES), common.RemoveUnusedNodesPass())(model)
    join_norms(model)
    join_rotary(model)
    Sequential(
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.LiftSubgraphInitializersToMainGraphPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.OutputFixPass(),  # an output that is an input, or two in one, gets an Identity
        common.NameFixPass(),
    )(model)
