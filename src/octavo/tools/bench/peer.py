"""`transformers` as the other side of `octavo bench throughput`. Optional; loads torch into this
process.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.core.assets import model_folder
from octavo.core.config import EngineConfig
from octavo.core.errors import ConfigError
from octavo.core.gguf import is_gguf

if TYPE_CHECKING:
    from octavo.layers.quant.base import Init


class TransformersPeer:
    """The same model in transformers: same folder, type and threads; greedy, full length.

    Raises:
        ConfigError: transformers is not installed.
    """

    def __init__(self, config: EngineConfig, dtype: str) -> None:
        try:
            import torch  # lazy: only this comparison needs it in this process
            import transformers as library  # lazy: an optional dependency

            from octavo.layers.build import Weight  # lazy: loads torch
            from octavo.models.facts import read_facts  # lazy: only for this comparison
            from octavo.models.weights import fill_dummy  # lazy: loads torch
        except ImportError as error:
            raise ConfigError(
                f"--compare-transformers needs transformers: {error}.",
                code="E-DEP-01",
                fix="Run `pip install transformers`.",
            ) from error
        if is_gguf(model_folder(config.model)):
            raise ConfigError(
                f"--compare-transformers takes a folder with config.json, not {config.model}.",
                fix="Leave it out, or measure the model's folder.",
            )
        transformers: Any = library
        transformers.utils.logging.disable_progress_bar()
        torch.set_num_threads(config.threads or len(os.sched_getaffinity(0)))
        self._torch: Any = torch
        self._device = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
        folder = str(model_folder(config.model))
        model_type = transformers.AutoModelForCausalLM
        torch_dtype = getattr(torch, dtype)
        if config.load_format == "dummy":
            loaded = transformers.AutoConfig.from_pretrained(folder, local_files_only=True)
            model = model_type.from_config(loaded, dtype=torch_dtype)
            fill_dummy(
                {name: Weight(p.data, _init(name, p.ndim)) for name, p in model.named_parameters()},
                config.seed,
                dtype=getattr(torch, read_facts(Path(folder)).dtype),
            )
        else:
            model = model_type.from_pretrained(folder, dtype=torch_dtype, local_files_only=True)
        self._model: Any = model.to(self._device).eval()
        self._config: Any = transformers.GenerationConfig
        # The folder's own would be merged into ours: it stops at end tokens and may carry penalties.
        self._model.generation_config = self._config()

    def generate(self, prompts: list[list[int]], output_len: int) -> list[list[int]]:
        """Greedy continuations of prompts of equal length, as one batch."""
        ids = self._torch.tensor(prompts, device=self._device)
        config = self._config(do_sample=False, max_new_tokens=output_len, pad_token_id=0)
        with self._torch.inference_mode():
            output = self._model.generate(
                ids, attention_mask=self._torch.ones_like(ids), generation_config=config
            )
        continuations: list[list[int]] = output[:, ids.shape[1] :].tolist()
        return continuations


def _init(name: str, num_dimensions: int) -> Init:
    """How this project fills a dummy weight of that name and shape; the same here makes the same model."""
    if name.endswith("bias"):
        return "zeros"
    return "ones" if num_dimensions == 1 else "normal"
