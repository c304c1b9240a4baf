"""zoo: efficient sequence models in JAX and Flax NNX.

Names are imported when they are first used, so that `import zoo` is instant.
"""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_EXPORTS = {
    "Axial": "zoo.mixers.axial",
    "AxialTransformer": "zoo.models.axial_transformer",
    "CausalLM": "zoo.models.causal_lm",
    "DeltaNet": "zoo.mixers.deltanet",
    "Encoder": "zoo.encoder",
    "EncoderConfig": "zoo.encoder",
    "Flowformer": "zoo.mixers.flowformer",
    "GLA": "zoo.mixers.gla",
    "GatedDeltaNet": "zoo.mixers.gated_deltanet",
    "ITransformer": "zoo.models.itransformer",
    "ITransformerForecaster": "zoo.models.itransformer_forecaster",
    "Informer": "zoo.mixers.informer",
    "InformerForecaster": "zoo.models.informer_forecaster",
    "LinearAttention": "zoo.mixers.linear_attention",
    "Mamba": "zoo.mixers.mamba",
    "Mamba2": "zoo.mixers.mamba2",
    "Nystromformer": "zoo.mixers.nystromformer",
    "NystromformerEncoder": "zoo.models.nystromformer_encoder",
    "RetNet": "zoo.mixers.retnet",
    "SequenceClassifier": "zoo.models.sequence_classifier",
    "Softmax": "zoo.mixers.softmax",
    "Spec": "zoo.registry",
    "create_mixer": "zoo.factory",
    "create_model": "zoo.factory",
    "forecast": "zoo.forecasting",
    "generate": "zoo.generation",
    "get": "zoo.registry",
    "init_apply": "zoo.interop",
    "list_specs": "zoo.registry",
    "load_pretrained": "zoo.weights",
    "load_run": "zoo.training.run",
    "register_mixer": "zoo.registry",
    "register_model": "zoo.registry",
    "register_task": "zoo.registry",
    "sample_images": "zoo.sampling",
    "save_pretrained": "zoo.weights",
    "spec": "zoo.registry",
    "to_linen": "zoo.interop",
}
__all__ = ["__version__", *sorted(_EXPORTS)]  # pyright: ignore[reportUnsupportedDunderAll]

if TYPE_CHECKING:
    from zoo.encoder import Encoder as Encoder
    from zoo.encoder import EncoderConfig as EncoderConfig
    from zoo.factory import create_mixer as create_mixer
    from zoo.factory import create_model as create_model
    from zoo.forecasting import forecast as forecast
    from zoo.generation import generate as generate
    from zoo.interop import init_apply as init_apply
    from zoo.interop import to_linen as to_linen
    from zoo.mixers.axial import Axial as Axial
    from zoo.mixers.deltanet import DeltaNet as DeltaNet
    from zoo.mixers.flowformer import Flowformer as Flowformer
    from zoo.mixers.gated_deltanet import GatedDeltaNet as GatedDeltaNet
    from zoo.mixers.gla import GLA as GLA
    from zoo.mixers.informer import Informer as Informer
    from zoo.mixers.linear_attention import LinearAttention as LinearAttention
    from zoo.mixers.mamba import Mamba as Mamba
    from zoo.mixers.mamba2 import Mamba2 as Mamba2
    from zoo.mixers.nystromformer import Nystromformer as Nystromformer
    from zoo.mixers.retnet import RetNet as RetNet
    from zoo.mixers.softmax import Softmax as Softmax
    from zoo.models.axial_transformer import AxialTransformer as AxialTransformer
    from zoo.models.causal_lm import CausalLM as CausalLM
    from zoo.models.informer_forecaster import InformerForecaster as InformerForecaster
    from zoo.models.itransformer import ITransformer as ITransformer
    from zoo.models.itransformer_forecaster import ITransformerForecaster as ITransformerForecaster
    from zoo.models.nystromformer_encoder import NystromformerEncoder as NystromformerEncoder
    from zoo.models.sequence_classifier import SequenceClassifier as SequenceClassifier
    from zoo.registry import Spec as Spec
    from zoo.registry import get as get
    from zoo.registry import list_specs as list_specs
    from zoo.registry import register_mixer as register_mixer
    from zoo.registry import register_model as register_model
    from zoo.registry import register_task as register_task
    from zoo.registry import spec as spec
    from zoo.sampling import sample_images as sample_images
    from zoo.training.run import load_run as load_run
    from zoo.weights import load_pretrained as load_pretrained
    from zoo.weights import save_pretrained as save_pretrained


def __getattr__(name: str) -> Any:
    if name not in _EXPORTS:
        raise AttributeError(f"module 'zoo' has no attribute {name!r}")
    value = getattr(importlib.import_module(_EXPORTS[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
