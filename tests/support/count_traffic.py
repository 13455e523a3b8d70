"""Counts the bytes the operations of a forward read and write, and the kernels they launch, on any
device.

Every operation a dispatcher sees is taken for one kernel that reads its inputs once and writes its
outputs once, whatever caches do and however often the kernel comes back to what it read. Views,
bare allocations and tensors on other devices are free. What a broadcast repeats counts once.
RMSNorm (one kernel of a CUDA card from torch 2.9 on) and attention count as one operation each,
although the meta device takes them apart.
"""

import contextlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

OPERATORS = {
    "matmul": "mm addmm bmm baddbmm _scaled_mm scaled_mm int8_linear",
    "convolution": "convolution _convolution",
    "normalisation": "native_layer_norm native_group_norm _fused_rms_norm adaln rms_adaln",
    "rotation": "apply_rope apply_rope1 rms_rope rms_rope1",
    "activation": "gelu silu sigmoid tanh",
    "copy": "clone copy _to_copy cat stack constant_pad_nd fill zero zeros new_zeros ones full "
    "arange eye index",
    "comparison": "equal",
}
KIND = {operator: kind for kind, operators in OPERATORS.items() for operator in operators.split()}
# Work that no fusion removes; all else is elementwise.
COMPUTE = ("matmul", "convolution", "attention")
# Operations that write all over what they are given without reading it.
OVERWRITES = ("copy", "fill", "zero")
# Functions of a model whose operations count as one kind, whatever they are: ours and the
# reference's.
ROTATIONS = ("apply_rope", "rope_apply")


class CountTraffic(TorchDispatchMode):
    """Sums up, for each kind of operation, the bytes read and written on one device, and the
    launches.

    syncs: how often the host waited for a number of the device.
    """

    def __init__(self, device: torch.device | str):
        super().__init__()
        self.device = torch.device(device)
        self.read, self.written, self.launches = Counter(), Counter(), Counter()
        self.syncs = 0
        self.label: str | None = None
        self.paused = False

    def __enter__(self):
        self.whole = _Whole(self)
        super().__enter__()
        self.whole.__enter__()
        return self

    def __exit__(self, *error):
        self.whole.__exit__(*error)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if not self.paused:
            name = func._schema.name.split("::")[1]
            self.syncs += name == "_local_scalar_dense" and args[0].device.type == self.device.type
            name = name.removesuffix("_")
            if name == "convolution" and result.is_meta:
                result = _in_order_of(args[0], result)
            read, written = _split(func._schema, name, args, kwargs or {}, result)
            self.add(KIND.get(name, "arithmetic"), read, written)
        return result

    def add(self, kind: str, read: Iterable, written: Iterable) -> None:
        """Count one operation; one that moves nothing on the device is no launch."""
        read, written = (sum(map(self._size, tensors)) for tensors in (read, written))
        if not read + written or (not written and kind != "comparison"):
            return
        kind = kind if kind in COMPUTE else self.label or kind
        self.read[kind] += read
        self.written[kind] += written
        self.launches[kind] += 1

    def _size(self, tensor: Tensor) -> int:
        """Bytes of the distinct elements of a tensor on the device."""
        if tensor.device.type != self.device.type:
            return 0
        repeated = [
            size
            for size, stride in zip(tensor.shape, tensor.stride(), strict=True)
            if stride == 0 and size
        ]
        return tensor.nbytes // torch.Size(repeated).numel()

    @property
    def moved(self) -> Counter:
        """Bytes read and written by kind."""
        return self.read + self.written

    @property
    def elementwise(self) -> int:
        """Bytes moved by all that is not multiplying."""
        return sum(size for kind, size in self.moved.items() if kind not in COMPUTE)

    @contextlib.contextmanager
    def labelled(self, kind: str) -> Iterator[None]:
        """Count what is elementwise inside as this kind; the outermost label wins."""
        outer, self.label = self.label, self.label or kind
        try:
            yield
        finally:
            self.label = outer

    @contextlib.contextmanager
    def by_part(self, model: nn.Module) -> Iterator[None]:
        """Count what is done inside norms, modulations and rotations of a model as these kinds."""
        hooks = [
            hook
            for module in model.modules()
            if (kind := _kind_of(module))
            for hook in self._hooks(module, kind)
        ]
        package = type(model).__module__.rpartition(".")[0] + "."
        replaced = [
            (module, name, getattr(module, name))
            for path, module in list(sys.modules.items())
            if path.startswith(package)
            for name in ROTATIONS
            if hasattr(module, name)
        ]
        try:
            for module, name, function in replaced:
                setattr(module, name, self.labelled("rotation")(function))
            yield
        finally:
            for module, name, function in replaced:
                setattr(module, name, function)
            for hook in hooks:
                hook.remove()

    def _hooks(self, module: nn.Module, kind: str) -> tuple:
        """Label what a module does; hooks see its call, not the function it is."""
        scopes: list = []

        def begin(*_call) -> None:
            scopes.append(self.labelled(kind))
            scopes[-1].__enter__()

        def end(*_call) -> None:
            scopes.pop().__exit__(None, None, None)

        return module.register_forward_pre_hook(begin), module.register_forward_hook(end)


class _Whole(TorchFunctionMode):
    """Counts as one operation what a card runs as one and the meta device would take apart or
    refuse.
    """

    def __init__(self, count: CountTraffic):
        super().__init__()
        self.count = count

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name = getattr(func, "__name__", "")
        if name == "scaled_dot_product_attention":
            return self._attend(func, args, kwargs or {})
        if name == "rms_norm":
            return self._normalise(func, args, kwargs or {})
        if name == "equal":
            return self._compare(func, args)
        return func(*args, **(kwargs or {}))

    def _attend(self, func, args, kwargs) -> Tensor:
        query = args[0]
        with self._paused():
            result = torch.empty_like(query) if query.is_meta else func(*args, **kwargs)
        self.count.add("attention", args[:3], [result])
        return result

    def _normalise(self, func, args, kwargs) -> Tensor:
        with self._paused():
            result = torch.empty_like(args[0]) if args[0].is_meta else func(*args, **kwargs)
        self.count.add("normalisation", _tensors((args, kwargs)), [result])
        return result

    def _compare(self, func, args) -> bool:
        """Whether two tensors are equal; never, on the meta device, where the answer cannot be
        known.
        """
        self.count.add("comparison", args, [])
        self.count.syncs += args[0].device.type == self.count.device.type
        with self._paused():
            return False if args[0].is_meta else func(*args)

    @contextlib.contextmanager
    def _paused(self) -> Iterator[None]:
        self.count.paused = True
        try:
            yield
        finally:
            self.count.paused = False


def _split(
    schema, name: str, args: tuple, kwargs: dict, result
) -> tuple[list[Tensor], list[Tensor]]:
    """The tensors an operation reads, and those it writes: new ones, and given ones that its schema
    says it changes.
    """
    named = {
        argument.name: value for argument, value in zip(schema.arguments, args, strict=False)
    } | kwargs
    changed = {
        argument.name
        for argument in schema.arguments
        if argument.alias_info and argument.alias_info.is_write
    }
    unread = {argument.name for argument in schema.arguments if argument.is_out}
    if name in OVERWRITES:
        unread |= changed
    read = [
        tensor for key, value in named.items() if key not in unread for tensor in _tensors(value)
    ]
    given = {tensor.untyped_storage()._cdata for tensor in _tensors((args, kwargs))}
    new = [tensor for tensor in _tensors(result) if tensor.untyped_storage()._cdata not in given]
    if name.startswith(("empty", "new_empty")):
        return [], []
    written = new + [tensor for key in changed for tensor in _tensors(named.get(key))]
    return (read, written) if written else ([], [])


def _in_order_of(given: Tensor, made: Tensor) -> Tensor:
    """A convolution's output with its channels last in memory if its input's are, as on a card; the
    meta device has them first.
    """
    for order in (torch.channels_last, torch.channels_last_3d):
        if given.ndim == (5 if order is torch.channels_last_3d else 4) and given.is_contiguous(
            memory_format=order
        ):
            return made.to(memory_format=order)
    return made


def _tensors(tree) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _kind_of(module: nn.Module) -> str | None:
    """What a module's elementwise work counts as, by the name of its class."""
    name = type(module).__name__
    if "norm" in name.lower():
        return "normalisation"
    return "modulation" if "Modulation" in name else None


def pytorch_attention(_original, *args, **kwargs) -> Tensor:
    """Take PyTorch's attention; a value for core's
    `transformer_options["optimized_attention_override"]`.
    """
    from comfy.ldm.modules.attention import attention_pytorch

    return attention_pytorch(*args, **kwargs)


def forward_traffic(
    model: nn.Module, shapes: list, dtype: torch.dtype, prepared: dict | None = None, **options
) -> CountTraffic:
    """Count a forward of an OviModel on the device of its weights.

    shapes: of the latents given, the video's first. dtype: of the activations. prepared: the
    prompt and what else is made once a run, else a prompt of full length that the forward embeds.
    options: more transformer_options.
    """
    device = next(model.parameters()).device
    latents = [torch.zeros(shape, dtype=dtype, device=device) for shape in shapes]
    time = torch.zeros(shapes[0][0], device=device)
    text = torch.zeros(
        shapes[0][0], model.config.text_length, model.config.text_dim, dtype=dtype, device=device
    )
    options["optimized_attention_override"] = pytorch_attention
    prepared = prepared or {"context": text, "audio_context": text}
    count = CountTraffic(device)
    with torch.no_grad(), count.by_part(model), count:
        model(
            latents if len(latents) > 1 else latents[0],
            time,
            **prepared,
            transformer_options=options,
        )
    return count
