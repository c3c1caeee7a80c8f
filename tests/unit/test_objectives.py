"""f and its weight against the printed formulas in float64, and the grammar of keys."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nemo_probsft.objectives import OBJECTIVE_KEYS, parse_objective
from tests.support import reference

LOGP = -torch.cat(
    [torch.logspace(-6, math.log10(30), 400), torch.rand(100, generator=torch.Generator().manual_seed(0))]
)


def relative_error(ours, truth):
    return ((ours.double() - truth).abs() / truth.abs().clamp_min(1e-30)).max().item()


@pytest.mark.parametrize("key", reference.FORMULAS)
def test_value_and_weight_match_the_printed_formula(key):
    objective = parse_objective(key)
    value, weight = reference.value_and_weight(key, LOGP)
    # relative, but for the zero crossing of log(1 - p + eps) and for what fp32 cannot hold
    torch.testing.assert_close(objective.value(LOGP).double(), value, rtol=1e-5, atol=1e-9)
    torch.testing.assert_close(objective.weight(LOGP).double(), weight, rtol=1e-5, atol=1e-37)
    assert objective.value(LOGP).dtype == objective.weight(LOGP).dtype == torch.float32


@pytest.mark.parametrize("key", reference.FORMULAS)
def test_autograd_is_exactly_minus_weight(key):
    objective, upstream = parse_objective(key), torch.linspace(-1, 2, len(LOGP))
    leaf = LOGP.clone().requires_grad_()
    (dlogp,) = torch.autograd.grad(objective.value(leaf), leaf, upstream)
    assert torch.equal(dlogp, -objective.weight(LOGP) * upstream)


def test_reference_formulas_tell_objectives_apart():
    for key in reference.FORMULAS:
        same = {"original", "logp"} if key in ("original", "logp") else {key}
        for other in set(reference.FORMULAS) - same:
            value, weight = reference.value_and_weight(other, LOGP)
            differs = relative_error(parse_objective(key).value(LOGP), value) > 1e-2
            assert differs or relative_error(parse_objective(key).weight(LOGP), weight) > 1e-2, (key, other)


@given(alpha=st.floats(-4, 20).filter(lambda a: abs(a) > 1e-6), logp=st.floats(-20, -(2**-23), width=32))
def test_power_family_for_any_alpha(alpha, logp):
    objective, logp = parse_objective({"name": "power", "alpha": alpha}), torch.tensor(logp)
    truth = -math.expm1(alpha * logp.item()) / alpha
    # alpha * logp is rounded to fp32 before exp, so the relative error grows with its size
    tolerance = 3e-7 * (1 + abs(alpha * logp.item()))
    assert objective.value(logp).item() == pytest.approx(truth, rel=tolerance)
    assert objective.weight(logp).item() == pytest.approx(math.exp(alpha * logp.item()), rel=tolerance, abs=1e-37)


@given(logp=st.floats(-20, 0, width=32), alpha=st.sampled_from([1e-30, 1e-5, -1e-5]))
def test_power_tends_to_nll_when_alpha_tends_to_zero(logp, alpha):
    logp = torch.tensor(logp)
    assert parse_objective({"name": "power", "alpha": alpha}).value(logp).item() == pytest.approx(
        -logp.item(), rel=2e-4
    )
    assert parse_objective({"name": "power", "alpha": 0}) == parse_objective("original")


@pytest.mark.parametrize(
    ("key", "value_at_0", "weight_at_0", "value_at_1", "weight_at_1"),
    [
        ("original", math.inf, 1, 0, 1),
        ("p", 1, 0, 0, 1),
        ("GeneralFamily-10", 0.1, 0, 0, 1),
        ("GeneralFamily--1", math.inf, math.inf, 0, 1),
        ("convexity-2", 0, 0, -0.5, 1),
        ("Unlikehood", math.log(1.001), 0, math.log(1e-3), 1e3),
        ("dft", 0, 0, 0, 1),
        ("focal-2", math.inf, 1, 0, 0),
        ("focal-0.5", math.inf, 1, 0, 0),
        ("focal-0", math.inf, 1, 0, 1),
        ("trsft-0.1", 1 - math.log(0.1), 0, 0, 1),
        ("chord", 0, 0, 0, 0),
    ],
)
def test_ends_of_the_probability_range(key, value_at_0, weight_at_0, value_at_1, weight_at_1):
    ends = torch.tensor([-math.inf, 0.0], requires_grad=True)
    value = parse_objective(key).value(ends)
    (dlogp,) = torch.autograd.grad(value, ends, torch.ones(2))
    assert value.tolist() == pytest.approx([value_at_0, value_at_1], rel=1e-6)
    assert dlogp.tolist() == pytest.approx([-weight_at_0, -weight_at_1], rel=1e-6)


def test_one_minus_p_is_resolved_near_one():
    logp = -torch.logspace(-9, -5, 50)
    truth = -torch.expm1(logp.double())
    assert relative_error(parse_objective("p").value(logp), truth) < 1e-6
    assert relative_error(1 - logp.exp(), truth) > 0.5, "the plain formula would do, so this test shows nothing"


def test_dft_has_the_gradient_of_p_and_another_value():
    dft, p = parse_objective("dft"), parse_objective("p")
    assert torch.equal(dft.weight(LOGP), p.weight(LOGP))
    assert (dft.value(LOGP) - p.value(LOGP)).abs().max() > 0.1


@pytest.mark.parametrize(
    ("key", "recipe", "kept"),
    [
        ("original", {"name": "nll"}, [1, 1, 1, 1, 1]),
        ("OnlyTopP-0.25", {"name": "power", "alpha": 1, "keep": {"min_p": 0.25}}, [0, 1, 1, 1, 1]),
        ("OnlyBottomP-0.25", {"name": "power", "alpha": 1, "keep": {"max_p": 0.25}}, [1, 1, 0, 0, 0]),
        ("OnlyTopLogP-0.5", {"name": "nll", "keep": {"min_p": 0.5}}, [0, 0, 1, 1, 1]),
        ("OnlyBottomLogP-0.5", {"name": "nll", "keep": {"max_p": 0.5}}, [1, 1, 1, 0, 0]),
        ("UnlikehoodTop-0.5", {"name": "unlikelihood", "keep": {"min_p": 0.5}}, [0, 0, 1, 1, 1]),
        ("UnlikehoodBottom-0.25", {"name": "unlikelihood", "keep": {"max_p": 0.25}}, [1, 1, 0, 0, 0]),
        ("focal-2@0.25..0.5", {"name": "focal", "gamma": 2, "keep": {"min_p": 0.25, "max_p": 0.5}}, [0, 1, 1, 0, 0]),
        ("GeneralFamily-10@0.5..1", {"name": "power", "alpha": "10", "keep": {"min_p": 0.5}}, [0, 0, 1, 1, 1]),
        ("trsft-0.1", {"name": "trsft", "alpha": 0.1}, [1, 1, 1, 1, 1]),
        ("chord", {"name": "chord", "keep": {}}, [1, 1, 1, 1, 1]),
        ("convexity-0.5", {"name": "convexity", "alpha": 0.5}, [1, 1, 1, 1, 1]),
    ],
)
def test_keys_recipes_and_inclusive_thresholds(key, recipe, kept):
    objective = parse_objective(key)
    assert objective == parse_objective(recipe)
    assert hash(objective) == hash(parse_objective(recipe))
    assert objective.key == key
    logp = torch.tensor([0.0, 0.25, 0.5, 0.75, 1.0]).log()
    assert objective.keep(logp).tolist() == [bool(k) for k in kept]
    assert not objective.keep(logp.requires_grad_()).requires_grad


def test_threshold_compares_probabilities_in_fp32_as_the_reference_code_does():
    logp = torch.tensor([0.2]).log() + torch.linspace(-2e-6, 2e-6, 101)
    assert torch.equal(parse_objective("OnlyTopP-0.2").keep(logp), logp.exp() >= 0.2)
    assert not torch.equal(logp.exp() >= 0.2, logp >= math.log(0.2)), (
        "both comparisons agree, so this test shows nothing"
    )


def test_nan_is_kept_by_every_threshold():
    nan = torch.tensor([torch.nan])
    assert parse_objective("OnlyTopP-0.2").keep(nan).item()
    assert parse_objective("OnlyBottomP-0.2").keep(nan).item()


@pytest.mark.parametrize(
    ("key", "canonical"),
    [
        ("logp", "original"),
        ("GeneralFamily-1", "p"),
        ("GeneralFamily-0", "original"),
        ("GeneralFamily--0.0", "original"),
        ("GeneralFamily--1", "GeneralFamily--1"),
        ("GeneralFamily-1e1", "GeneralFamily-10"),
        ("OnlyTopP-1e-5", "OnlyTopP-1e-05"),
        ("OnlyTopP-0", "p"),
        ("p@0.2..1", "OnlyTopP-0.2"),
        ("OnlyBottomLogP-1.0", "original"),
        ("Unlikehood@0.2..1", "UnlikehoodTop-0.2"),
    ],
)
def test_equal_objectives_have_one_canonical_key(key, canonical):
    assert parse_objective(key).key == canonical
    assert parse_objective(key) == parse_objective(canonical)


def test_scientific_notation_is_not_cut_at_its_sign():
    assert parse_objective("OnlyTopP-1e-5").min_p == 1e-5
    assert parse_objective("GeneralFamily--2.5e-1").parameter == -0.25
    assert "OnlyTopP-1e-5".partition("-")[2].partition("-")[0] == "1e", "cutting at the next dash would do"


@given(
    base=st.sampled_from(["nll", "power", "convexity", "unlikelihood", "dft", "focal", "trsft", "chord"]),
    parameter=st.floats(1e-6, 1, exclude_max=True),
    sign=st.sampled_from([1, -1]),
    bounds=st.lists(st.floats(0, 1), min_size=2, max_size=2).map(sorted),
)
def test_key_round_trip(base, parameter, sign, bounds):
    recipe = {"name": base, "keep": {"min_p": bounds[0], "max_p": bounds[1]}}
    if base in ("power", "convexity"):
        recipe["alpha"] = sign * parameter
    if base in ("focal", "trsft"):
        recipe["gamma" if base == "focal" else "alpha"] = parameter
    objective = parse_objective(recipe)
    assert parse_objective(objective.key) == objective
    assert parse_objective(objective.key).key == objective.key


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("crossentropy", "unknown objective 'crossentropy'"),
        ("GeneralFamly-10", "did you mean GeneralFamily"),
        ("general_family-10", "did you mean GeneralFamily"),
        ("GeneralFamily", "unknown objective"),
        ("GeneralFamily-", "not a number"),
        ("GeneralFamily-ten", "'ten', not a number"),
        ("GeneralFamily-nan", "not a number"),
        ("GeneralFamily-1_0", "not a number"),
        ("GeneralFamily-1e999", "alpha is inf"),
        ("p-3", "unknown objective"),
        ("OnlyTopP-1.2", r"min_p is 1.2, but a probability lies in \[0, 1\]"),
        ("OnlyBottomP--0.1", "max_p is -0.1"),
        ("OnlyTopP-0.2@0..1", "an interval is written KEY@min_p..max_p"),
        ("p@0.9..0.1", "keeps no token"),
        ("p@0.9", "an interval is written"),
        ("convexity-0", "alpha is 0"),
        ("focal--1", "gamma is -1"),
        ("trsft-0", r"must be in \(0, 1\]"),
        ("", "unknown objective"),
        (None, "neither a key nor a mapping"),
        (["p"], "neither a key nor a mapping"),
        ({}, "objective.name: None"),
        ({"name": ["nll"]}, "is not one of nll, power"),
        ({"name": "power"}, "needs 'alpha'"),
        ({"name": "power", "alpha": True}, "True, not a number"),
        ({"name": "power", "alpha": None}, "None, not a number"),
        ({"name": "nll", "alpha": 1}, "unknown key 'alpha'"),
        ({"name": "nll", "keep": 0.2}, "not a mapping"),
        ({"name": "nll", "keep": {"minp": 0.2}}, "unknown key 'minp'"),
        ({"name": "nll", "keep": {"min_percentile": 10}}, "resolve it to a probability"),
        ({"name": "nll", "denominator": "kept"}, "argument of token_loss"),
    ],
)
def test_bad_specs_are_refused_in_one_line(spec, message):
    with pytest.raises(ValueError, match=message) as error:
        parse_objective(spec)
    assert "\n" not in str(error.value)


def test_unknown_objective_lists_every_key():
    with pytest.raises(ValueError, match="unknown objective") as error:
        parse_objective("GEM")
    assert all(key in str(error.value) for key in OBJECTIVE_KEYS)


@pytest.mark.parametrize(
    ("key", "formula"),
    [
        ("original", "-log p"),
        ("p", "1 - p"),
        ("GeneralFamily-10", "(1 - p^10)/10"),
        ("GeneralFamily--1", "(1 - p^-1)/(-1)"),
        ("OnlyTopLogP-0.2", "-log p for p >= 0.2"),
        ("focal-2@0.1..0.9", "-(1 - p)^2 log p for 0.1 <= p <= 0.9"),
        ("UnlikehoodBottom-0.5", "log(1 - p + 0.001) for p <= 0.5"),
        ("trsft-0.1", "-log max(p, 0.1) + max(0, 1 - p/0.1)"),
    ],
)
def test_formula_for_logs(key, formula):
    assert parse_objective(key).formula == formula


def test_half_precision_logp_is_computed_in_fp32():
    logp = torch.tensor([-0.5, -3.0], dtype=torch.bfloat16)
    assert torch.equal(parse_objective("p").value(logp), parse_objective("p").value(logp.float()))


@pytest.mark.parametrize("alpha", [0, 0.1, 0.5, 0.75])
def test_the_family_is_smallest_where_the_page_of_the_continuum_says(alpha):
    """Of targets distributed as q, at p proportional to q^(1/(1 - alpha)): no gradient there, and one beside it."""
    q = torch.tensor([0.7, 0.2, 0.07, 0.03], dtype=torch.float64)
    objective = parse_objective({"name": "power", "alpha": alpha})

    def gradient(logits):
        logits = logits.clone().requires_grad_()
        (q * objective.value(torch.log_softmax(logits, -1))).sum().backward()
        return logits.grad.abs().max()

    at_minimum = q.log() / (1 - alpha)
    beside = at_minimum + torch.tensor([0.0, 0.1, 0.0, 0.0])
    assert gradient(at_minimum) < 1e-12 < 1e-5 < gradient(beside)
