"""Faults of epilogues, their gradients, and Winograd's convolution."""

from __future__ import annotations

from mutation import Mutation

NATIVE, TRAINING = "tests/csrc/test_native.py::test_", "tests/csrc/test_native_training.py::test_"
FORWARD, VALUES = (f"tests/triton/test_triton_{name}.py::test_" for name in ("epilogue", "gradients_values"))
EPILOGUES = {
    "the gradient ignores dropout's mask": Mutation(
        "csrc/cpu/gradient.cpp", "dy = multiply(dy, draw.keep(drawn));", "dy = multiply(dy, draw.keep_scale);",
        f"{TRAINING}both_passes_backward[relu-torch.float32-0.3]",
    ),
    "the gradient ignores the residual's place": Mutation(
        "csrc/cpu/gradient.cpp", "if constexpr (RESIDUAL == Residual::before) residual = widen(loop.residual[i]);", "",
        f"{TRAINING}both_passes_backward[number-torch.float32-0.0]",
    ),
    "a sign in the gradient of batch statistics": Mutation(
        "csrc/cpu/backward.cpp", "std::fma(-deviation[i],", "std::fma(deviation[i],",
        f"{TRAINING}both_passes_backward[number-torch.float32-0.0]",
    ),
    "gamma's gradient is not divided by the deviation": Mutation(
        "csrc/cpu/reduce.cpp", "total[own + i] * inputs.factor[i]", "total[own + i]",
        f"{TRAINING}both_passes_backward[number-torch.float32-0.0]",
    ),
    "a shared slope's gradient is that of the first channel": Mutation(
        "csrc/cpu/gradients.cpp", "std::accumulate(sums, sums + channels, 0.0)", "sums[0]",
        f"{TRAINING}several_chunks[torch.float32-(2, 600, 9, 11)]",
    ),
    "chunks of different means are merged as if they had one": Mutation(
        "csrc/cpu/statistics.cpp", "difference * difference * (all.count * fraction)", "0 * difference",
        f"{TRAINING}statistics[torch.float32-(2, 600, 9, 11)]",
    ),
    "a thread's channels_last part begins at channel 0": Mutation(
        "csrc/cpu/epilogue.cpp", "CHANNELS_LAST ? column : row % layout.channels",
        "CHANNELS_LAST ? 0 : row % layout.channels",
        f"{NATIVE}the_number_of_threads_does_not_change_a_bit",
    ),
    "Triton's ReLU loses NaN": Mutation(
        "triton_kernels/epilogue.py", "return tl.where(u < 0, 0.0, u)", "return tl.where(u > 0, u, 0.0)",
        f"{FORWARD}nan_infinity_and_negative_zero[relu-0.0-torch.float32]",
    ),
    "Triton's gradient at 0 is 1": Mutation(
        "triton_kernels/epilogue.py", "return tl.where(u > 0, 1.0, slope)", "return tl.where(u >= 0, 1.0, slope)",
        f"{VALUES}nan_infinity_and_negative_zero[number-0.0-torch.float32]",
    ),
    "Triton's draws depend on the layout": Mutation(
        "triton_kernels/pointwise/elements.py",
        "((row // pixels * cols)[:, None] + col[None, :]) * pixels + (row % pixels)[:, None]",
        "row[:, None] * cols + col[None, :]", f"{FORWARD}the_draws_are_the_oracle_s_bit_for_bit[False-(0, 0)]",
    ),
    "Triton's dropout is applied before the residual": Mutation(
        "triton_kernels/epilogue.py", "        y = y + residual\n    if keep is not None:\n        y = y * keep\n",
        "        y = (y if keep is None else y * keep) + residual\n    elif keep is not None:\n        y = y * keep\n",
        f"{FORWARD}dropout[NCHW-relu-after]",
    ),
}  # fmt: skip

WINOGRAD, SELECTION = "tests/csrc/test_winograd.py::test_", "tests/ops/test_selection.py::test_"
CONVOLUTION, AXIS = "csrc/cpu/winograd/", "csrc/cpu/winograd/axis.h"
TRANSFORMS = {
    "a sign in the transform of 4 outputs": Mutation(
        AXIS, "y[3] = m[5] + ppp * odd_p + qqq * odd_q;", "y[3] = m[5] + ppp * odd_p - qqq * odd_q;",
        f"{WINOGRAD}odd_sizes[(7, 7)-(3, 7)-4x4]", (f"{CONVOLUTION}finish.cpp",),
    ),
    "a tap of the weight's transform": Mutation(
        AXIS, "u[2] = (g[0] - g[1] + g[2]) * constant<V>(0.5);", "u[2] = (g[0] - g[1] - g[2]) * constant<V>(0.5);",
        f"{WINOGRAD}transformed_weights[2x2]", (f"{CONVOLUTION}weight.cpp",),
    ),
    "a sign in the gradient of a weight's transform": Mutation(
        AXIS, "g[1] = float(P / AT_P) * (u[1] - u[2]) +", "g[1] = float(P / AT_P) * (u[1] + u[2]) +",
        f"{WINOGRAD}weight_gradients[(19, 37)-(3, 13, 29)-(1, 1)-(1, 1)-torch.float32-(4, 4)]",
        (f"{CONVOLUTION}weight_gradient.cpp",),
    ),
    "a phase of the dilation has no tiles": Mutation(
        f"{CONVOLUTION}plan.cpp", "phase < std::min(dilation, size)", "phase < std::min(dilation - 1, size)",
        f"{WINOGRAD}any_padding_and_dilation[(2, 2)-(2, 2)-2x2]",
    ),
    "the padding of a map's left edge is that of its top": Mutation(
        f"{CONVOLUTION}load.cpp", "tile.left - shape.padding[1]", "tile.left - shape.padding[0]",
        f"{WINOGRAD}any_padding_and_dilation[(1, 2)-(2, 1)-2x2]",
    ),
    "an infinity does not lead to the direct convolution": Mutation(
        f"{CONVOLUTION}finish.cpp", "if (!finite) task.special.store(true, std::memory_order_relaxed);", "",
        f"{WINOGRAD}infinities[inf-relu-4x4]",
    ),
    "the direct convolution of a gradient has the kernel as it is": Mutation(
        f"{CONVOLUTION}conv.cpp", "for (int64_t i = 8; i >= 0; --i)", "for (int64_t i = 0; i < 9; ++i)",
        f"{WINOGRAD}input_gradients_with_infinities[2x2]",
    ),
    "all chunks of a tile have the scale of the first": Mutation(
        f"{CONVOLUTION}load.cpp", "scales[(i * shape.chunks() + chunk) * scale_step] =",
        "scales[i * shape.chunks() * scale_step] =", f"{WINOGRAD}odd_sizes[(7, 7)-(65, 31)-4x4-int16]",
    ),
    "all panels of a weight have the scales of the first": Mutation(
        f"{CONVOLUTION}multiply_int16.cpp", "return gemm.u + panel * gemm.u_step + gemm.channels / 2 * PANEL;",
        "return gemm.u + gemm.channels / 2 * PANEL;", f"{WINOGRAD}odd_sizes[(7, 7)-(31, 65)-4x4-int16]",
    ),
    "later blocks of a weight's gradient replace the sums": Mutation(
        f"{CONVOLUTION}weight_gradient.cpp", "            job.first > 0});", "            false});",
        f"{WINOGRAD}weight_gradients[(40, 8)-(5, 40, 41)-(1, 1)-(1, 1)-torch.float32-(4, 4)]",
    ),
    "a strided convolution runs as Winograd's": Mutation(
        "pyops/backends/winograd.py", "if spec.stride != (1, 1):", "if spec.stride == (0, 0):",
        f"{SELECTION}other_convolutions_are_direct[stride]",
    ),
    "a grouped convolution runs as Winograd's": Mutation(
        "pyops/backends/winograd.py", "if spec.groups != 1:", "if spec.groups < 1:",
        f"{SELECTION}other_convolutions_are_direct[groups]",
    ),
    "tiles of large errors in fp32": Mutation(
        "pyops/backends/winograd.py", "for tile, counts in allowed.items() if channels in counts]",
        "for tile in allowed]",
        f"{SELECTION}tiles[dtype0-True-1-size0-64-tile0]",
    ),
    "a large dilation has the tiles of a small one": Mutation(
        "pyops/backends/winograd.py", "if max(spec.dilation) <= dilation)", "if dilation == 2)",
        f"{SELECTION}few_channels_are_direct[12-channels5-rounding errors]",
    ),
    "the taps in the padding count": Mutation(
        "pyops/backends/winograd.py", "max(0, min(output, length + start) - max(0, start)) for start in starts",
        "output for start in starts", f"{SELECTION}tiles_and_taps_are_counted[extra0-rate2]",
    ),
}  # fmt: skip
