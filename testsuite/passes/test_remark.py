from testsuite.passes.samples import tiny

from tokopt.passes.remark import Miss, nearest_miss


def test_the_nearest_miss_is_the_one_that_met_most_conditions() -> None:
    relu, other = [n for n in tiny().main.graph.nodes if "relu" in str(n.target)]
    misses = [Miss(relu, 1, "too wide"), Miss(other, 2, "has two readers"), Miss(relu, 2, "late")]
    text = nearest_miss("relu_relu_to_relu", misses)
    assert text.startswith("relu_relu_to_relu: none of 3 candidates matched; nearest: node relu_1 ")
    assert text.endswith("where 2 conditions held, then: has two readers")


def test_no_candidate_is_said_to_be_none() -> None:
    assert nearest_miss("relu_relu_to_relu", []) == "relu_relu_to_relu: no candidate"
