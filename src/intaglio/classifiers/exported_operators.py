"""Which operators an exported graph may call: an allow-list of ATen names, and integer arithmetic on sizes."""

import operator
from collections.abc import Callable
from typing import Any

import torch

#: Pure functions of tensors. Left out on purpose: files (`from_file`), randomness, uninitialised memory, `set_`.
_ATEN_NAMES = """
    _log_softmax _native_batch_norm_legit_no_training _softmax _to_copy _unsafe_view abs adaptive_avg_pool1d
    adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d add add_
    addcdiv addcmul addmm alias all amax amin any arange argmax argmin avg_pool1d avg_pool2d avg_pool3d baddbmm
    batch_norm bitwise_and bitwise_not bitwise_or bmm broadcast_to cat ceil celu celu_ chunk clamp clamp_
    clamp_max clamp_max_ clamp_min clamp_min_ clone constant_pad_nd contiguous conv1d conv2d conv3d
    conv_transpose1d conv_transpose2d conv_transpose3d convolution cos cumsum detach div div_ dropout dropout_
    einsum elu elu_ embedding eq erf exp expand expand_as expm1 eye feature_dropout fft_fft2 flatten flip floor
    floor_divide fmod full full_like gather ge gelu glu group_norm gru gt hardsigmoid hardsigmoid_ hardswish
    hardswish_ hardtanh hardtanh_ im2col index index_select instance_norm isfinite isnan layer_norm le
    leaky_relu leaky_relu_ lerp lift_fresh_copy linalg_vector_norm linear linspace log log10 log1p log2
    log_sigmoid log_softmax logical_and logical_not logical_or logical_xor logsumexp lstm lt masked_fill
    masked_fill_ matmul max max_pool1d max_pool2d max_pool2d_with_indices max_pool3d maximum mean meshgrid min
    minimum mish mish_ mm movedim mul mul_ mv narrow native_group_norm native_layer_norm ne neg new_full
    new_ones new_zeros norm one_hot ones ones_like outer pad permute pixel_shuffle pixel_unshuffle pow prelu
    prod reciprocal reflection_pad2d relu relu6 relu6_ relu_ remainder repeat repeat_interleave
    replication_pad2d reshape reshape_as resolve_conj resolve_neg rms_norm roll round rsqrt rsub
    scaled_dot_product_attention select selu selu_ sigmoid sigmoid_ sign silu silu_ sin slice softmax softplus
    split split_with_sizes sqrt square squeeze stack std sub sub_ sum swapaxes sym_numel sym_size t
    tanh tanh_ tile to topk transpose tril triu true_divide type_as unbind unflatten unfold unsafe_chunk
    unsafe_split unsqueeze upsample_bicubic2d upsample_bilinear2d upsample_nearest1d upsample_nearest2d
    upsample_nearest3d upsample_trilinear3d var var_mean view view_as where zeros zeros_like
"""
_ATEN = frozenset(_ATEN_NAMES.split())

#: Checks of sizes at export time; they compute nothing.
_CHECKS = frozenset(
    {
        "_assert_tensor_metadata",
        "_assert_scalar",
        "_assert_async",
        "sym_constrain_range",
        "sym_constrain_range_for_size",
    }
)

_ARITHMETIC: dict[str, Callable[..., Any]] = {
    f"_operator.{name}": getattr(operator, name)
    for name in ("add", "sub", "mul", "floordiv", "mod", "neg", "truediv", "eq", "ne", "lt", "le", "gt", "ge")
} | {"torch.sym_max": max, "torch.sym_min": min, "torch.sym_not": operator.not_, "torch.sym_float": float}


#: They do nothing in evaluation; whether a file says that it is one is never asked.
_DROPOUTS = frozenset({"dropout", "dropout_", "feature_dropout"})

#: Arguments of other operators by which a file could make its answers depend on chance, and on what is asked together.
_FORCED: dict[str, Any] = {"dropout_p": 0.0, "train": False, "training": False}


def find_operator(target: str) -> Callable[..., Any] | None:
    """The function that a graph's target names, as in evaluation; None if the target isn't on the list.

    A target is compared with the list as a whole and never resolved attribute by attribute, as torch does:
    "torch.serialization.os.system" is a function that torch.export.load would find, and call.
    """
    if target in _ARITHMETIC:
        return _ARITHMETIC[target]
    parts = target.split(".")
    if len(parts) != 5 or parts[:3] != ["torch", "ops", "aten"]:
        return None
    name, overload = parts[3:]
    if name in _CHECKS:
        return _nothing
    if name not in _ATEN or overload.endswith("out"):  # these write into an argument
        return None
    packet = getattr(torch.ops.aten, name, None)
    if packet is None or overload not in packet.overloads():
        return None
    return _first if name in _DROPOUTS else _in_evaluation(getattr(packet, overload))


def _in_evaluation(function: Any) -> Callable[..., Any]:
    """The operator without training and chance, told by the places of its arguments: their names are the file's."""
    names = [argument.name for argument in function._schema.arguments]
    forced = {name: value for name, value in _FORCED.items() if name in names}

    def call(*args: Any, **kwargs: Any) -> Any:
        placed = [forced.get(name, value) for name, value in zip(names, args, strict=False)]
        later = {name: value for name, value in forced.items() if name not in names[: len(args)]}
        return function(*placed, **(kwargs | later))

    return call if forced else function


def _first(input: Any, *_args: Any, **_kwargs: Any) -> Any:
    return input


def _nothing(*_args: Any, **_kwargs: Any) -> None:
    return None
