"""From measured noise to widths: what is fragile gets bits, the rest stays narrow, and the floor holds."""

import itertools
import json
import math

import pytest

from calibration.sensitivity import LayerNoise, PlanError, measure, noisiest, plan, predicted_db, read_rows
from runtime.errors import BundleError

PARAMETERS = {"large": 100_000, "fragile": 10_000, "hardy": 50_000}
PSNR = {
    ("large", 4): 50.0,
    ("large", 6): 62.0,
    ("fragile", 4): 30.0,
    ("fragile", 6): 42.0,
    ("hardy", 4): 70.0,
    ("hardy", 6): 80.0,
}


def cost(layer: str, bits: int) -> float:
    return PARAMETERS[layer] * bits / 8


ROWS = measure(
    list(PARAMETERS), (4, 6, 8), lambda layer, bits: PSNR.get((layer, bits), math.inf), cost
)  # 8 bits are free of noise


def test_measuring_asks_for_each_layer_at_each_width_and_tells_how_far_it_is() -> None:
    told = []
    rows = measure(
        ["a", "b"],
        (8,),
        lambda layer, bits: 40.0 if layer == "a" else 50.0,
        lambda layer, bits: 1.0,
        lambda done, total: told.append((done, total)),
    )
    assert rows == [LayerNoise("a", 8, 40.0, 1.0), LayerNoise("b", 8, 50.0, 1.0)]
    assert told == [(1, 2), (2, 2)]


def test_plan_widens_what_is_fragile_and_leaves_the_rest_narrow() -> None:
    assert plan(ROWS, 29.0) == {"large": 4, "fragile": 4, "hardy": 4}
    assert plan(ROWS, 40.0) == {"large": 4, "fragile": 6, "hardy": 4}
    assert plan(ROWS, 45.0) == {"large": 4, "fragile": 8, "hardy": 4}
    assert plan(ROWS, 55.0) == {"large": 6, "fragile": 8, "hardy": 4}
    assert plan(ROWS, 120.0) == {"large": 8, "fragile": 8, "hardy": 8}


@pytest.mark.parametrize("floor", [30.0, 41.0, 49.0, 61.0, 69.0])
def test_plan_keeps_the_floor_at_nearly_the_least_cost(floor: float) -> None:
    chosen = plan(ROWS, floor)
    assert predicted_db(ROWS, chosen) >= floor

    def price(bits: dict[str, int]) -> float:
        return sum(cost(*item) for item in bits.items())

    every = (dict(zip(PARAMETERS, widths, strict=True)) for widths in itertools.product((4, 6, 8), repeat=3))
    best = min(price(bits) for bits in every if predicted_db(ROWS, bits) >= floor)
    assert price(chosen) <= 1.1 * best


def test_noise_of_the_unquantized_model_counts_once() -> None:
    rows = [
        LayerNoise("a", 4, 57.0, 1),
        LayerNoise("a", 8, math.inf, 2),
        LayerNoise("b", 4, 60.0, 1),
        LayerNoise("b", 8, math.inf, 2),
    ]
    assert predicted_db(rows, {"a": 4, "b": 8}, reference_db=60.0) == pytest.approx(57.0)
    assert predicted_db(rows, {"a": 8, "b": 4}, reference_db=60.0) == pytest.approx(60.0)
    with pytest.raises(PlanError, match=r"at least 61 dB, got 60\.0 dB with the widest"):
        plan(rows, 61.0, reference_db=60.0)


def test_a_width_that_saves_nothing_is_never_chosen() -> None:
    rows = [
        LayerNoise("sum", 8, 30.0, 0),
        LayerNoise("sum", 32, math.inf, 0),
        LayerNoise("conv", 8, 29.0, 8),
        LayerNoise("conv", 32, math.inf, 32),
    ]
    assert plan(rows, 20.0) == {"sum": 32, "conv": 8}
    assert plan(rows, 30.0) == {"sum": 32, "conv": 32}


def test_the_noisiest_layer_is_given_up_first_and_none_is_left_at_last() -> None:
    chosen = {"large": 4, "fragile": 6, "hardy": 4}
    assert noisiest(ROWS, chosen) == "fragile"
    assert noisiest(ROWS, chosen | {"fragile": 8}) == "large"
    assert noisiest(ROWS, dict.fromkeys(PARAMETERS, 8)) is None


@pytest.mark.parametrize("psnr", [math.nan, -math.inf])
def test_a_layer_that_destroys_the_model_is_no_row(psnr: float) -> None:
    with pytest.raises(PlanError, match=r"stem at 4 bits: expected a PSNR in dB, got .*NaN or infinity"):
        LayerNoise("stem", 4, psnr, 1.0)


def test_rows_survive_the_manifest() -> None:
    rows = (LayerNoise("encoder/stem/Conv", 8, 51.25, 115_200.0), LayerNoise("last", 8, 48.5, 0.0))
    data = json.loads(json.dumps({"onnx": [row.to_dict() for row in rows]}))
    assert read_rows(data) == {"onnx": rows}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "accuracy.sensitivity: expected"),
        ({"onnx": {}}, "accuracy.sensitivity.onnx: expected a list"),
        ({"onnx": [{"layer": "a", "bits": 8, "psnr": 40.0}]}, "'cost' is missing"),
        ({"onnx": [{"layer": "a", "bits": 0, "psnr": 40.0, "cost": 1}]}, "bits"),
        ({"onnx": [{"layer": "a", "bits": 8, "psnr": "much", "cost": 1}]}, "psnr"),
    ],
)
def test_rows_of_another_form_are_refused(data: object, message: str) -> None:
    with pytest.raises(BundleError, match=message):
        read_rows(data)
