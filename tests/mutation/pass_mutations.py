"""Faults of the fusion pass, and of the choice of a backend."""

from __future__ import annotations

from mutation import Mutation

ALIASING, SPELLING = (
    "tests/fusion/forwards/test_aliasing.py::test_aliasing[",
    "tests/fusion/forwards/test_spellings.py::test_spelling[",
)
CHAINS = "pyops/fusion/sites/chains.py"
LEGALITY = {
    "a layer reads what was written behind its convolution": Mutation(
        CHAINS, "if any(storage(target) in read for target in effects.written(node)):", "if False:",
        f"{ALIASING}fused-eval-input_written_behind_the_convolution]",
    ),
    "statistics change between the parts of a layer": Mutation(
        CHAINS, "if any(storage(used) in changed for used in node.all_input_nodes):", "if False:",
        "tests/fusion/forwards/test_aliasing.py::test_statistics_are_read_inside_a_layer[False]",
    ),
    "a layer crosses the end of a no_grad block": Mutation(
        CHAINS, "if effects.is_barrier(node):", "if False:",
        "tests/fusion/calls/test_modes.py::test_inside_a_forward[fused-train-no_grad_in_a_layer]",
    ),
    "a sum into an argument is not written": Mutation(
        CHAINS, "return not inputs and not used_later", "return not used_later",
        f"{ALIASING}fused-eval-written_into_the_argument]",
    ),
    "a sum into a tensor that is read again is not written": Mutation(
        CHAINS, "return not inputs and not used_later", "return not inputs",
        f"{ALIASING}fused-eval-sum_into_a_residual_that_is_read_again]",
    ),
    "a scaled sum is taken for a plain one": Mutation(
        "pyops/fusion/sites/spellings.py", "plain = a.alpha == 1 and ", "plain = ", f"{SPELLING}alpha=2]",
    ),
    "an activation behind a second sum is taken from its layer": Mutation(
        CHAINS, 'if chain.steps.get("act") is not None and self._activated(add):', "if False:",
        f"{SPELLING}two activations]",
    ),
    "dropout in training is taken for an identity": Mutation(
        CHAINS, "and (not a.training or a.p == 0.0):", "and (not a.training or a.p < 0.5):",
        "tests/fusion/forwards/test_random_layers.py::test_draws[fused]",
    ),
    "groups are lost": Mutation(
        "pyops/fusion/sites/call.py", "(a.stride, a.padding, a.dilation, a.groups)",
        "(a.stride, a.padding, a.dilation, 1)",
        "tests/fusion/forwards/test_zoo.py::test_zoo[geometries-fused-eval-nhwc]",
    ),
    "the running variance is the biased one": Mutation(
        "pyops/fusion/sites/call.py", "return y, mean, var * (count / (count - 1))", "return y, mean, var",
        "tests/fusion/calls/test_modes.py::test_training_and_eval_in_turn[fused]",
    ),
    "an exported LeakyReLU has another default slope": Mutation(
        "pyops/fusion/sites/spellings.py", '"leaky_relu": {"negative_slope": 0.01}',
        '"leaky_relu": {"negative_slope": 0.1}',
        "tests/fusion/test_dynamo_backend.py::test_defaults_that_an_export_leaves_out",
    ),
    "a frozen model does not see a write": Mutation(
        "pyops/fusion/execution/constants.py", "        if versions != prepared.versions:\n            with",
        "        if prepared.versions < 0:\n            with",
        "tests/fusion/state/test_frozen.py::test_a_write_in_place_folds_again[frozen-weight]",
    ),
    "a checkpointed layer updates its statistics once": Mutation(
        "pyops/fusion/execution/updates.py", "if one.checkpointed or not again:", "if not again:",
        "tests/fusion/calls/test_memory.py::test_activation_checkpointing[fused-Checkpointed]",
    ),
    "a parameter of no given gradient gets zeros": Mutation(
        "pyops/fusion/execution/training.py", "[gradient if sources & given else None for", "[gradient for",
        "tests/fusion/calls/test_fused_transforms.py::test_gradients_of_other_layouts_and_zeros[fused-train]",
    ),
    "dropout in training is laid out anew in a frozen model": Mutation(
        "pyops/fusion/sites/layouts.py", "if node.target not in FOLLOWING or draws(node):",
        "if node.target not in FOLLOWING:",
        "tests/fusion/forwards/test_draws.py::test_draws[frozen-eval-dropped]",
    ),
}  # fmt: skip

CERTIFY, TUNING = "tests/tools/test_certify.py::test_", "tests/tools/tune/test_tuning.py::test_"
CHOICES = {
    "a tie goes to the other backend": Mutation(
        "pyops/tools/tune/measure.py", "<= NOISE * backends[fastest]", "<= backends[fastest] / NOISE",
        "tests/tools/tune/test_tuner.py::test_the_fastest_is_chosen_and_the_library_where_it_is_as_fast",
    ),
    "a wrong candidate is timed": Mutation(
        "pyops/tools/tune/candidates.py", "if error > wanted.budget:", "if error > 1e3 * wanted.budget:",
        "tests/tools/tune/test_tuner.py::test_a_wrong_candidate_is_left_out",
    ),
    "tables of other versions count": Mutation(
        "pyops/tuning/table.py", "if (table.device, table.versions) == here]", "if table.device == here[0]]",
        f"{TUNING}a_table_of_another_version_does_not_count",
    ),
    "the config of the largest dilation wins": Mutation(
        "pyops/tuning/table.py", "key=lambda item: item[0], reverse=True)", "key=lambda item: item[0])",
        f"{TUNING}a_config_serves_its_shape_at_any_dilation_and_a_choice_its_own_alone",
    ),
    "a measured backend that cannot run is taken": Mutation(
        "pyops/backends/selection.py", "if not refusals[measured.backend]:", "if measured:",
        "tests/ops/test_selection.py::test_the_rule_applies_if_the_measured_backend_cannot_run_here",
    ),
    "certify measures the output alone": Mutation(
        "pyops/tools/certify/errors.py", "max(candidates)", "candidates[0]", f"{CERTIFY}a_wrong_gradient_is_named",
    ),
    "certify takes NaN for no error": Mutation(
        "pyops/tools/certify/errors.py", ".nan_to_num(torch.inf)", ".nan_to_num(0.0)",
        f"{CERTIFY}nan_is_an_infinite_error",
    ),
}  # fmt: skip
