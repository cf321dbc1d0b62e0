"""The torch engine on a GPU: no start-up to wait for, a CUDA graph per token, and bits that repeat."""

from collections.abc import Mapping

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.engines.device_weights import DeviceWeights
from actors.engines.torch_engine import EngineSpec, TorchEngine
from actors.gpu_model import to_bf16
from actors.weight_slots import Shapes


class GpuTorchEngine(TorchEngine):
    """As on a CPU, with a decoder for GPUs and weights copied from the trainer's buffer on the same card."""

    def __init__(self, spec: EngineSpec) -> None:
        from actors.engines.graph_decoding import GraphDecoder  # loads transformers' models, as the driver need not

        torch.set_num_threads(spec.threads)
        self._spec = spec
        model = AutoModelForCausalLM.from_pretrained(spec.model_path, dtype=torch.bfloat16).eval().to("cuda")
        self._model = to_bf16(model)
        self._tokenizer = AutoTokenizer.from_pretrained(spec.model_path)
        self._decoder = GraphDecoder(self._model, self._end_tokens(), spec.seed)
        self._weights = DeviceWeights(spec.weights_file, spec.num_slots, spec.published)

    def receive_weights(self, weight_version: int) -> int:
        """Makes a published version available to requests; returns its checksum as read from the trainer's buffer."""
        return self._weights.receive(weight_version)

    def _load(self, weight_version: int) -> None:
        if self._weights.loaded != weight_version:
            self._weights.load(weight_version, self._own)

    def _own(self, shapes: Shapes) -> Mapping[str, Tensor]:
        return {name: parameter.data for name, parameter in self._model.named_parameters()}
