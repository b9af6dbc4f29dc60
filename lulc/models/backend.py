"""Keras and its framework (tensorflow, jax or torch).

Importing this module imports Keras with the framework of ``KERAS_BACKEND`` (by default tensorflow). Modules
import Keras from here (``from lulc.models.backend import keras``), so that it logs little and has its
channels last whatever the user's settings of Keras are.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# TensorFlow bundles another ZSTD, which would replace this one if loaded first and change the bytes of maps.
import numcodecs.zstd  # noqa: F401
import numpy as np

from lulc.core.schema import InputError
from lulc.models.finishing import Finish

BACKENDS = {"tensorflow": "cpu", "jax": "jax", "torch": "torch"}
"""Extra of this package that installs each framework."""

Predict = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to float32 (n, y, x, class)."""

_Planes = Callable[[np.ndarray], np.ndarray]
"""float32 (n, y, x, band) to planes (n, class or band of a map, y, x)."""

_Finish = Callable[[Any, Any], Any]
"""Tensors of the network's result (n, y, x, class) and input to planes."""

INSTRUCTIONS = {
    "bfloat16": {"avx512_bf16", "amx_bf16", "bf16"},
    "float16": {"avx512_fp16", "amx_fp16", "asimdhp"},
}
"""Instructions that multiply in each precision, as named by Linux on x86 and ARM."""

os.environ.setdefault("KERAS_BACKEND", "tensorflow")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("GLOG_minloglevel", "3")

if os.environ["KERAS_BACKEND"] not in BACKENDS:
    raise InputError(
        f"cannot use the backend '{os.environ['KERAS_BACKEND']}', expected one of {', '.join(BACKENDS)}",
        "Set KERAS_BACKEND=tensorflow, or unset it.",
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what native code writes to standard error inside, unless the block fails."""
    sys.stderr.flush()
    standard_error = os.dup(2)
    with tempfile.TemporaryFile() as output:
        os.dup2(output.fileno(), 2)
        try:
            yield
        except BaseException:
            output.seek(0)
            os.write(standard_error, output.read())
            raise
        finally:
            os.dup2(standard_error, 2)
            os.close(standard_error)


try:
    with _quiet():
        import keras
except ModuleNotFoundError as error:
    wanted = os.environ["KERAS_BACKEND"]
    hint = (
        f"Install it in the folder of this project with: pip install '.[{BACKENDS[wanted]}]', or set "
        "KERAS_BACKEND to an installed one."
    )
    if wanted == "tensorflow" and sys.version_info >= (3, 14):
        hint = (
            "TensorFlow has no package for Python 3.14 and newer: use Python 3.11 to 3.13, or type pip "
            "install '.[jax]' in the folder of this project and set KERAS_BACKEND=jax."
        )
    raise InputError(
        f"cannot use the backend '{wanted}', since the Python package '{error.name}' is not installed", hint
    ) from error

keras.config.set_image_data_format("channels_last")
keras.config.set_floatx("float32")


def name() -> str:
    """Return the name of the framework in use: tensorflow, jax or torch."""
    return str(keras.backend.backend())


def versions() -> dict[str, str]:
    """Return the versions of Keras and of the framework, for cards and tags."""
    return {"keras": str(keras.__version__), name(): str(_framework().__version__).split("+")[0]}


def device_name() -> str:
    """Return the name of the first GPU, or ``CPU`` without one."""
    framework = _framework()
    if name() == "tensorflow":
        gpus = framework.config.list_physical_devices("GPU")
        if not gpus:
            return "CPU"
        return str(framework.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    if name() == "jax":
        device = framework.devices()[0]
        return "CPU" if device.platform == "cpu" else str(device.device_kind)
    return str(framework.cuda.get_device_name(0)) if framework.cuda.is_available() else "CPU"


@contextlib.contextmanager
def precision(name: str) -> Iterator[None]:
    """Make layers inside compute in ``float32``, ``bfloat16`` or ``float16``."""
    before = keras.config.dtype_policy()
    # With float16 Keras scales the loss by itself.
    keras.config.set_dtype_policy(name if name == "float32" else f"mixed_{name}")
    try:
        yield
    finally:
        keras.config.set_dtype_policy(before)


def computes_in(precision: str, described: Path = Path("/proc/cpuinfo")) -> bool:
    """Return True if the device multiplies in a precision; a processor that doesn't is many times slower.

    Parameters
    ----------
    described
        Linux's description of the processor; True without it.
    """
    if precision not in INSTRUCTIONS or device_name() != "CPU" or not described.is_file():
        return True
    return not INSTRUCTIONS[precision].isdisjoint(described.read_text().split())


def exact_float32() -> None:
    """Make this process compute in float32; by default GPUs round factors to 10 bits (TF32)."""
    framework = _framework()
    if name() == "tensorflow":
        framework.config.experimental.enable_tensor_float_32_execution(False)
    elif name() == "jax":
        framework.config.update("jax_default_matmul_precision", "highest")
    else:
        framework.backends.cudnn.allow_tf32 = framework.backends.cuda.matmul.allow_tf32 = False


def cache_programs() -> None:
    """Make JAX cache the programs that it compiles for a GPU, which takes a minute for a training step.

    The folder is ``lulc/jax`` in ``$XDG_CACHE_HOME``, or that of ``JAX_COMPILATION_CACHE_DIR``.
    """
    if name() != "jax" or device_name() == "CPU" or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    _framework().config.update("jax_compilation_cache_dir", os.path.join(base, "lulc", "jax"))


def compile_predict(
    model: keras.Model, shape: tuple[int, int, int] | None = None, finish: Finish | None = None
) -> Predict:
    """Compile the forward pass of `model` as a function from arrays to arrays.

    Parameters
    ----------
    model
        Network with one input (n, y, x, band) and one output.
    shape
        (n, y, x) of every call, if all are equal; a static shape lets the framework plan its memory.
    finish
        Computation of a map's bands from probabilities.

    Returns
    -------
    Predict
        float32 (n, y, x, band) to float32 (n, y, x, class), or with `finish` to the bands of a map. Planes
        are contiguous, since they are processed class by class. The weights are those at the time of the
        call on TensorFlow and PyTorch, those at the time of compilation on JAX.
    """

    def ending(y: Any, x: Any) -> Any:
        p = keras.ops.moveaxis(keras.ops.cast(y, "float32"), -1, 1)
        return finish(keras.ops, p, x) if finish else p

    compilers = {"tensorflow": _compile_tensorflow, "jax": _compile_jax, "torch": _compile_torch}
    planes = compilers[name()](model, shape, ending)
    # Keras on PyTorch lacks uint16.
    dtype = np.dtype(finish.dtype if finish else "float32")
    return lambda x: np.moveaxis(planes(x).astype(dtype, copy=False), 1, -1)


def _compile_tensorflow(model: keras.Model, shape: tuple[int, int, int] | None, finish: _Finish) -> _Planes:
    tensorflow = _framework()
    signature = tensorflow.TensorSpec((*(shape or (None,) * 3), model.input_shape[-1]), "float32")

    @tensorflow.function(input_signature=[signature], autograph=False)
    def forward(x: Any) -> Any:
        return finish(model(x, training=False), x)

    concrete = forward.get_concrete_function()
    return lambda x: np.asarray(concrete(tensorflow.constant(x, "float32")))


def _compile_jax(model: keras.Model, shape: tuple[int, int, int] | None, finish: _Finish) -> _Planes:
    jax = _framework()
    trainable = [v.value for v in model.trainable_variables]
    fixed = [v.value for v in model.non_trainable_variables]

    @jax.jit
    def forward(trainable: Any, fixed: Any, x: Any) -> Any:
        return finish(model.stateless_call(trainable, fixed, x, training=False)[0], x)

    return lambda x: np.asarray(forward(trainable, fixed, np.asarray(x, "float32")))


def _compile_torch(model: keras.Model, shape: tuple[int, int, int] | None, finish: _Finish) -> _Planes:
    torch = _framework()

    def forward(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            tensor = keras.ops.convert_to_tensor(x, "float32")
            planes = finish(model(tensor, training=False), tensor).contiguous()
        return np.asarray(keras.ops.convert_to_numpy(planes))

    return forward


def _framework() -> Any:
    if name() == "tensorflow":
        import tensorflow as framework
    elif name() == "jax":
        import jax as framework
    else:
        import torch as framework
    return framework
