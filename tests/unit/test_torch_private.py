"""The private parts of torch that conversion/torch_dist.py stands on, looked at without importing it."""

import inspect
import io
from importlib import import_module

import pytest
import torch

PRIVATE = {  # name -> (module, its first parameters)
    "_StorageInfo": ("torch.distributed.checkpoint.filesystem", ["relative_path", "offset", "length"]),
    "_create_file_view": ("torch.distributed.checkpoint.utils", ["file", "offset", "length"]),
}


@pytest.mark.parametrize("name", PRIVATE)
def test_torch_has_the_private_parts_of_torch_dist(name):
    module, parameters = PRIVATE[name]
    found = getattr(import_module(module), name, None)
    moved = f"torch {torch.__version__} moved {module}.{name}: adapt conversion/torch_dist.py, which uses it"
    assert found is not None, moved
    assert list(inspect.signature(found).parameters)[: len(parameters)] == parameters, moved
    if name == "_create_file_view":
        assert found(io.BytesIO(b"0123456789"), 2, 3).read() == b"234", moved
    else:
        assert found("__0_0.distcp", 1, 2).__module__ == module, f"{moved}; every index names it"
