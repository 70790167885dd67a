"""Faults of the audit, and of the metrics of examples/vessels."""

from __future__ import annotations

from mutation import Mutation

AUDITS, RATES = "tests/audit/test_audit.py::test_", "tests/audit/test_rates.py::test_"
AUDIT = {
    "a hole is one only if nothing is read": Mutation(
        "pyops/audit/field.py", "return bool((windows == 0).any())", "return bool((windows == 0).all())",
        f"{AUDITS}known_stacks[rates0-13-49-1-2]",
    ),
    "coverage of one axis": Mutation(
        "pyops/audit/audit.py", "positions, reached, reached / positions,",
        "positions, reached, (reached / positions) ** 0.5,",
        f"{AUDITS}known_stacks[rates0-13-49-1-2]",
    ),
    "an even kernel reads one position more before the middle": Mutation(
        "pyops/audit/audit.py", "(rate * (kernel - 1) // 2,) * 2", "(rate * kernel // 2,) * 2",
        f"{AUDITS}even_kernels_read_one_position_more_behind_the_middle",
    ),
    "the first of several suggestions is taken": Mutation(
        "pyops/audit/rates.py", "return min(options, key=lambda pairs: [rate for rate, _ in pairs])",
        "return options[0]",
        f"{RATES}ties_go_to_the_smallest_rates",
    ),
    "a rate equal to the field leaves a hole": Mutation(
        "pyops/audit/rates.py", "if kernel > 1 and rate > field:", "if kernel > 1 and rate >= field > 1:",
        f"{RATES}holes_are_those_of_the_definition",
    ),
    "branches side by side get a suggestion": Mutation(
        "pyops/audit/audit.py", "field.size == (stack.field, stack.field) and ", "",
        "tests/audit/test_graph.py::test_parallel_branches_have_no_suggestion",
    ),
    "padding along one axis": Mutation(
        "pyops/audit/layers.py", "return 1 - within[0] * within[1]", "return 1 - within[0]", f"{AUDITS}padding_share",
    ),
    "a transposed convolution multiplies at its outputs": Mutation(
        "pyops/audit/operators.py", 'shape(a["input"] if _is_transposed(node) else node)', "shape(node)",
        f"{AUDITS}multiply_adds",
    ),
}  # fmt: skip

METRICS, EXAMPLE = "tests/experiment/metrics/test_metrics", "examples/vessels/"
MEASURES = {
    "MCC adds its products": Mutation(
        f"{EXAMPLE}metrics/matrix.py", '"mcc": (tp * tn - fp * fn)', '"mcc": (tp * tn + fp * fn)',
        f"{METRICS}.py::test_scores_are_those_of_scikit_learn_on_the_pixels[0.5-field]",
    ),
    "Dice counts misses twice": Mutation(
        f"{EXAMPLE}metrics/matrix.py", "2 * tp / (2 * tp + fp + fn)", "2 * tp / (2 * tp + fn + fn)",
        f"{METRICS}.py::test_scores_are_those_of_scikit_learn_on_the_pixels[0.5-field]",
    ),
    "average precision takes the next precision": Mutation(
        f"{EXAMPLE}metrics/curves.py", "np.diff(recall) * precision[:-1]", "np.diff(recall) * precision[1:]",
        f"{METRICS}.py::test_areas_are_those_of_scikit_learn",
    ),
    "the threshold is chosen over all pixels": Mutation(
        f"{EXAMPLE}metrics/curves.py", 'pool(validation, "field")', 'pool(validation, "all")',
        f"{METRICS}.py::test_pixels_outside_the_field_do_not_change_the_threshold",
    ),
    "ties count for nothing in a resample's area": Mutation(
        f"{EXAMPLE}metrics/resampling.py", "(fp[:, -1:] - fp + others[:, ::-1] / 2)", "(fp[:, -1:] - fp)",
        f"{METRICS}_resampling.py::test_areas_of_resamples_are_exact_with_a_bin_for_each_score",
    ),
    "intervals of half the confidence's distance": Mutation(
        f"{EXAMPLE}metrics/resampling.py", "[(1 - self.confidence) / 2, (1 + self.confidence) / 2]",
        "[1 - self.confidence, self.confidence]",
        f"{METRICS}_resampling.py::test_the_interval_of_a_mean_covers_it_nearly_as_often_as_it_says",
    ),
    "a resampled mean divides by all images": Mutation(
        f"{EXAMPLE}metrics/resampling.py", "/ (self.draws @ defined)", "/ self.draws.sum(1)",
        f"{METRICS}_resampling.py::test_the_mean_leaves_undefined_images_out",
    ),
    "a vessel of three pixels is thick": Mutation(
        f"{EXAMPLE}metrics/vessel_width.py", '"thin": truth & (widths <= THIN)', '"thin": truth & (widths < THIN)',
        f"{METRICS}_widths.py::test_a_line_along_an_axis_has_its_width[False-3]",
    ),
    "thin vessels outside the field of view count": Mutation(
        f"{EXAMPLE}metrics/evaluate.py", "[mask[name] & image.inside(region)]", "[mask[name]]",
        f"{METRICS}_evaluate.py::test_thin_and_thick_vessels_of_a_region",
    ),
    "Holm's correction may fall": Mutation(
        f"{EXAMPLE}comparison/statistics.py", "largest = max(largest, (len(order) - position) * values[i])",
        "largest = (len(order) - position) * values[i]",
        "tests/experiment/test_compare_statistics.py::test_holm_is_that_computed_by_hand",
    ),
}  # fmt: skip
