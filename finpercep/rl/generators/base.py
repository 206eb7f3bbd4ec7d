"""What generators that are trained here share: the reference, what is trained, and files."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from finpercep.io.files import atomic_write, write_json
from finpercep.io.fingerprints import weights_fingerprint
from finpercep.io.reasons import one_line
from finpercep.rl.batch import Batch
from finpercep.rl.coordinates import Steps

FILES = ("config.json", "model.safetensors")


class GeneratorModule(nn.Module):
    """A generator (see `Generator`) that the loop can train: inherit, and write the four methods that follow.

    `encode` is the fifth where photos are to serve the training. Everything else has a default: the reference is a
    frozen copy, all parameters that ask for a gradient are trained, and files are config.json and model.safetensors.
    """

    scale: int
    channels: int
    stride: int
    config: dict[str, Any] = {}  # noqa: RUF012 - what is JSON-able of the constructor's arguments
    _reference: tuple[GeneratorModule, ...] = ()  # in a tuple: no part of the weights

    def condition(self, batch: Batch) -> Any:
        """What `velocity` needs to know of a batch; the same whenever it is asked for the same batch."""
        raise _missing(self, "condition(batch)")

    def velocity(self, x: Tensor, s: Tensor, condition: Any) -> Tensor:
        """v at x (B,C,h,w) and noise levels s (B,)."""
        raise _missing(self, "velocity(x, s, condition)")

    def decode(self, x0: Tensor, condition: Any) -> Tensor:
        """Images (B,3,H,W), float32 in [0, 1], of x0; differentiable."""
        raise _missing(self, "decode(x0, condition)")

    def steps(self, count: int) -> Steps:
        """Noise levels of a sampler with that many steps."""
        raise _missing(self, "steps(count)")

    def encode(self, photo: Tensor, condition: Any) -> Tensor:
        """x0 of photos (B,3,H,W) in [0, 1].

        Raises:
            NotImplementedError: the generator has none, so that photos cannot serve the training.
        """
        raise NotImplementedError(
            f"{type(self).__name__} has no encode(photo, condition), which training on photos needs; without "
            "it, algorithm.pretrain=false (ReFL) or algorithm.photo_weight=0"
        )

    def prepare(self, batch: Batch) -> Batch:
        """The batch with what is costly in `condition`, made once; nothing by default."""
        return batch

    def networks(self) -> list[nn.Module]:
        """What of it `torch.compile` and FSDP may take, called as modules are: by default each of its parts."""
        return list(self.children())

    def compile_networks(self) -> None:
        """Compile them and those of the reference, in place, for any number of rows."""
        for network in self.networks():
            network.compile(dynamic=True)
        for kept in self._reference:
            kept.compile_networks()

    def keep_reference(self) -> None:
        """From now on the reference is what the generator is at this moment; what is not trained is shared with it.

        Raises:
            ValueError: it cannot be copied.
        """
        self._reference = ()
        shared: dict[int, Any] = {id(p): p for p in self.parameters() if not p.requires_grad}
        try:
            self._reference = (copy.deepcopy(self, shared).requires_grad_(False).eval(),)
        except RuntimeError as error:  # of tensors that are computed, as torch.nn.utils.weight_norm has them
            raise ValueError(
                f"{type(self).__name__}: expected a generator that copy.deepcopy copies, got {one_line(error)}; "
                "torch.nn.utils.parametrizations.weight_norm can be copied"
            ) from error

    @property
    def has_copy(self) -> bool:
        """Whether the reference is a copy of its own."""
        return bool(self._reference)

    @torch.no_grad()
    def reference_velocity(self, x: Tensor, s: Tensor, condition: Any) -> Tensor:
        """The same as `velocity` by the generator that `keep_reference` kept.

        Raises:
            RuntimeError: none was kept.
        """
        if not self._reference:
            raise RuntimeError("reference: call keep_reference() on the generator before it is trained")
        return self._reference[0].velocity(x, s, condition)

    def trainable_parameters(self) -> list[nn.Parameter]:
        """What an optimizer is given."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def trained_state(self) -> dict[str, Tensor]:
        """The trained weights and the buffers that are saved, by name: all that can differ from what was loaded."""
        frozen = {
            name for name, parameter in self.named_parameters(remove_duplicate=False) if not parameter.requires_grad
        }
        return {name: tensor for name, tensor in self.state_dict().items() if name not in frozen}

    @torch.no_grad()
    def load_trained_state(self, state: dict[str, Tensor]) -> None:
        """Take back what `trained_state` gave.

        Raises:
            ValueError: other names or shapes.
        """
        own = self.trained_state()
        if {n: t.shape for n, t in own.items()} != {n: t.shape for n, t in state.items()}:
            odd = sorted(n for n in own.keys() | state.keys() if n not in own or n not in state)
            raise ValueError(
                f"generator: expected the state of {len(own)} trained tensors, got {len(state)} that do not fit"
                f"{', such as ' + odd[0] if odd else ' in shape'}"
            )
        for name, tensor in own.items():
            tensor.copy_(state[name])

    @property
    def fingerprint(self) -> str:
        """16 hex digits of configuration and weights."""
        return weights_fingerprint(self.config, self.state_dict())

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write config.json and model.safetensors, in the types of the weights or in one."""
        from safetensors.torch import save

        write_json(Path(folder) / FILES[0], self.config)
        weights = {  # copies: tied weights share memory, which the format refuses
            name: tensor.to(dtype or tensor.dtype, copy=True).contiguous() for name, tensor in self.state_dict().items()
        }
        with atomic_write(Path(folder) / FILES[1]) as file:
            file.write(save(weights))

    def load_weights(self, folder: str | Path) -> None:
        """Take model.safetensors of a folder.

        Raises:
            ValueError: weights that do not fit.
        """
        from safetensors.torch import load_file

        path = Path(folder) / FILES[1]
        own = self.state_dict()
        try:
            self.load_state_dict({n: t.to(own[n].dtype) if n in own else t for n, t in load_file(path).items()})
        except RuntimeError as error:
            raise ValueError(f"{path}: does not fit {FILES[0]}: {error}") from error


def _missing(generator: GeneratorModule, method: str) -> NotImplementedError:
    return NotImplementedError(f"{type(generator).__name__} has no {method}, which every generator needs")


def read_config(folder: str | Path) -> dict[str, Any]:
    """config.json of a folder.

    Raises:
        ValueError: no JSON object.
    """
    path = Path(folder) / FILES[0]
    if not path.is_file() and (run := path.parent / "generator").is_dir():
        raise ValueError(f"{path.parent}: expected a generator, got a run's folder; did you mean {run}?")
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected the configuration of a generator, got {error}") from error
    if not isinstance(config, dict):
        raise ValueError(f"{path}: expected the configuration of a generator, got {type(config).__name__}")
    return config
