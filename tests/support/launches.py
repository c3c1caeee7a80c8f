"""What a call asks a device to do, counted without one: kernels in Triton's interpreter, and torch's operations."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

# No launch: views, and memory from the allocator.
FREE = {
    *("alias", "as_strided", "detach", "expand", "permute", "select", "slice", "t", "transpose", "unbind", "view"),
    *("_unsafe_view", "empty", "empty_like", "new_empty"),
}


class Launches(TorchDispatchMode):
    """Names of the Triton kernels and torch operations that run inside, in order, without those of `FREE`."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.inside_a_kernel = False

    def __enter__(self):
        from triton.runtime.interpreter import InterpretedFunction

        self.kernel, self.run = InterpretedFunction, InterpretedFunction.run
        InterpretedFunction.run = lambda kernel, *args, **kwargs: self._launch(kernel, *args, **kwargs)
        return super().__enter__()

    def __exit__(self, *exception):
        self.kernel.run = self.run
        return super().__exit__(*exception)

    def _launch(self, kernel, *args, **kwargs):
        self.names.append(kernel.fn.__name__)
        self.inside_a_kernel = True  # the interpreter is made of torch's operations
        try:
            return self.run(kernel, *args, **kwargs)
        finally:
            self.inside_a_kernel = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.__name__.partition(".")[0]
        if name not in FREE and not self.inside_a_kernel:
            self.names.append(name)
        return func(*args, **kwargs or {})
