"""Data as people give them."""

import numpy as np
import pytest

from deepshap_ir.errors import InputError, NonFiniteError
from deepshap_ir.importing.importer import import_model
from tests.onnx_text import data, parsed

SUM = parsed(
    "{ [a] h = Relu(x) \n [b] k = Mul(h, w) \n [c] m = Tanh(k) \n y = Add(m, h) }",
    "(float[N,4] x, float[N,4] w) => (float[N,4] y)",
)


def test_data_that_do_not_fit() -> None:
    model = parsed("{ y = Relu(x) }")
    with pytest.raises(InputError, match=r"background of input 'x': expected shape \[rows, 4\], given \[3, 5\]"):
        import_model(model, data(3, 5))
    with pytest.raises(InputError, match=r"expected shape \[rows, 4\], given \[4\]"):
        import_model(model, data(4))
    with pytest.raises(InputError, match="no rows"):
        import_model(model, data(0, 4))
    with pytest.raises(InputError, match=r"expected float32, given complex64"):
        import_model(model, data(3, 4).astype(np.complex64))
    with pytest.raises(InputError, match=r"expected float32, given <U1"):
        import_model(model, np.full((3, 4), "a"))
    with pytest.raises(InputError, match="'x' has 3, 'w' has 2"):
        import_model(SUM, [data(3, 4), data(2, 4)])
    bad = data(3, 4)
    bad[2, 1] = np.nan
    with pytest.raises(NonFiniteError, match=r"background of input 'x': nan in row 2, at index \[2, 1\]"):
        import_model(model, bad)
    bad[2, 1] = np.inf
    with pytest.raises(NonFiniteError, match="inf in row 2"):
        import_model(model, bad)
    with pytest.raises(NonFiniteError, match=r"1e\+300 is too large for float32"):
        import_model(model, np.full((1, 4), 1e300))


def test_casts() -> None:
    model = parsed("{ y = Relu(x) }")
    for dtype in (np.float64, np.float16, np.int64, np.uint8, np.bool_, object):
        assert import_model(model, np.ones((3, 4), dtype)).background["x"].dtype == np.float32
    tokens = parsed("<float[3,2] e = {1, 2, 3, 4, 5, 6}> { y = Gather(e, x) }", "(int64[N,4] x) => (float[N,4,2] y)")
    assert import_model(tokens, np.array([[0, 1, 2, 0]], np.int32)).background["x"].dtype == np.int64
    with pytest.raises(InputError, match="background of input 'x': expected int64, given float32"):
        import_model(tokens, np.ones((3, 4), np.float32))


def test_missing_values_where_an_operator_wants_them() -> None:
    imputer = "ai.onnx.ml.Imputer <imputed_value_floats = [1.0, 2.0, 3.0, 4.0], replaced_value_float = 0.0>"
    model = parsed(f"{{ h = {imputer} (x) \n y = Relu(h) }}")
    model.graph.node[0].attribute[1].f = np.nan
    background = data(3, 4)
    background[1, 2] = np.nan
    assert import_model(model, background).rows == 3
    background[1, 2] = np.inf
    with pytest.raises(NonFiniteError):
        import_model(model, background)
    where = parsed("{ m = IsNaN(x) \n z = Constant <value_float = 0.0> () \n y = Where(m, z, x) }")
    background[1, 2] = np.nan
    assert import_model(where, background).rows == 3


def test_an_infinite_mask_may_be_held() -> None:
    model = parsed("{ s = Add(x, mask) \n y = Softmax(s) }", "(float[N,4] x, float[N,4] mask) => (float[N,4] y)")
    mask = np.where(np.arange(4) < 3, 0, -np.inf)[None].repeat(3, 0)
    assert import_model(model, {"x": data(3, 4), "mask": mask}, inputs=["x"]).held == ("mask",)
    with pytest.raises(NonFiniteError, match="'mask': -inf in row 0"):
        import_model(model, {"x": data(3, 4), "mask": mask})


def test_samples_are_read_as_the_background() -> None:
    imported = import_model(SUM, {"x": data(3, 4), "w": data(3, 4)}, inputs=["x"])
    arrays, rows = imported.read({"x": data(7, 4), "w": data(7, 4)})
    assert (rows, list(arrays)) == (7, ["x", "w"])
    assert imported.read([data(7, 4), data(7, 4)])[1] == 7
    with pytest.raises(InputError, match="samples: missing 'w'"):
        imported.read({"x": data(7, 4)})
    with pytest.raises(InputError, match=r"samples of input 'w': expected shape \[rows, 4\], given \[7, 5\]"):
        imported.read({"x": data(7, 4), "w": data(7, 5)})
    with pytest.raises(InputError, match="samples: no input 'z'"):
        imported.read({"x": data(7, 4), "w": data(7, 4), "z": data(7, 4)})
