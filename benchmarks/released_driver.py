"""The other side of against_release.py: times the released PyTorch code of HDLM, on a processor.

    python benchmarks/released_driver.py FOLDER THREADS SHAPE

Runs in an interpreter that has torch. Answers requests, a JSON list [name, settings] a line, with
the seconds that each took. None of the released code is here: its modules are imported from FOLDER
as they are, and get three things that they expect of a machine with a GPU, or of their vocabulary:

- flash_attn: its cross-entropy becomes torch's. Their model has products and a softmax of its own
  for attention, and rotary positions in TorchScript for where flash_attn is missing;
- device="cuda", which their samplers name, becomes the processor;
- the token of the mask, 50257 in their loss, becomes that of the vocabulary at hand.
"""

import builtins
import functools
import json
import os
import platform
import sys
import time
import types
import warnings
from pathlib import Path


class OnProcessor:
    """The module torch for samplers that name a GPU."""

    def __init__(self, torch):
        self.torch = torch

    def __getattr__(self, name):
        return getattr(self.torch, name)

    def linspace(self, *arguments, device):
        return self.torch.linspace(*arguments)

    def rand_like(self, values, dtype, device=None):
        return self.torch.rand_like(values, dtype=dtype)


class Released:
    """The released model, its training step and its samplers; requests return what is to be timed.

    Args:
      shape: layers, width, heads and vocab_size of the model.
    """

    def __init__(self, folder, threads, shape):
        import torch
        from accelerate import Accelerator
        from diffusers.training_utils import EMAModel
        from omegaconf import OmegaConf

        names = ["flash_attn", "flash_attn.losses", "flash_attn.losses.cross_entropy"]
        sys.modules.update({name: types.ModuleType(name) for name in names})
        sys.modules[names[-1]].CrossEntropyLoss = torch.nn.CrossEntropyLoss
        sys.path.insert(0, folder)
        from hdlm import utils
        from hdlm.epsilon_hybrid import losses, sample
        from hdlm.model.diffusion_lm import HDLM

        torch.manual_seed(0)
        self.torch, self.sample, self.mask = torch, sample, shape["vocab_size"]
        sample.torch = OnProcessor(torch)
        configs = Path(folder, "configs")
        config = OmegaConf.load(configs / "epsilon_hdlm.yaml")
        config.model = OmegaConf.load(configs / "model" / "epsilon_hdlm.yaml")
        config.model.n_blocks, config.model.n_heads = shape["layers"], shape["heads"]
        config.model.hidden_size, config.model.dropout = shape["width"], 0.0
        config.tokenizer.tokens = shape["vocab_size"]
        config.training.loss_type = "standard"  # of masking alone

        # As their run_train does, in float32 and without accumulation.
        model = HDLM(config)
        optimizer = utils.get_optimizer(config, model.parameters())
        scheduler = utils.get_scheduler(config, optimizer, eta_min=utils.SCHEDULER_ETA_MIN_EPSILON)
        accelerator = Accelerator(cpu=True)
        model, optimizer, scheduler = accelerator.prepare(model, optimizer, scheduler)
        ema = EMAModel(model.parameters(), decay=config.training.ema, update_after_step=2000)
        losses.get_loss_fn = functools.partial(losses.get_loss_fn, mask_index=self.mask)
        step = losses.get_step_fn(
            config, accelerator, True, metaschedule=None, annealing=config.annealing, type="aligned"
        )
        state = dict(model=model, optimizer=optimizer, scheduler=scheduler, ema=ema, step=0)
        self.model, self.step = model, functools.partial(step, state)
        torch.set_num_threads(threads)

    def _records(self, batch, length):
        tokens = self.torch.randint(0, self.mask, (batch, length))
        return {"input_ids": tokens, "positions": self.torch.arange(length).expand(batch, -1)}

    def product(self, size):
        a = self.torch.randn(size, size)
        return lambda: a @ a

    def train(self, batch, length, steps):
        records = self._records(batch, length)
        self.step(records)  # the first is slow
        return lambda: [self.step(records) for _ in range(steps)]

    def forward(self, batch, length, passes):
        model, records = self.model.eval(), self._records(batch, length).values()

        @self.torch.no_grad()
        def run():
            for _ in range(passes):
                model(*records)

        run()
        return run

    def full(self, numbers, **settings):
        """The calls of these numbers."""
        return self._sampling(self.sample.full_diff, {1: numbers}, **settings)

    def blocks(self, numbers, width, **settings):
        """All calls of the blocks of these numbers."""
        chosen = {3: [width * number for number in numbers]}
        return self._sampling(self.sample.semi_diff, chosen, block_size=width, **settings)

    def _sampling(self, sampler, chosen, batch, length, calls, **settings):
        """A sampler whose loop over a range of so many bounds takes the chosen turns alone."""
        self.forward(batch, length, passes=1)  # the first is slow
        self.sample.range = lambda *bounds: chosen.get(len(bounds), builtins.range(*bounds))
        return functools.partial(
            sampler, self.model.eval(), batch_size=batch, context_length=length, steps=calls,
            dim=self.mask, device="cpu", **settings,
        )  # fmt: skip


def main():
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # the released code prints
    warnings.simplefilter("ignore")  # it asks for a GPU's 16 bits in every call
    try:
        released = Released(sys.argv[1], int(sys.argv[2]), json.loads(sys.argv[3]))
    except ModuleNotFoundError as error:
        print(json.dumps({"missing": error.name}), file=answers)
        return
    versions = f"Python {platform.python_version()}, torch {released.torch.__version__}"
    print(json.dumps({"versions": versions}), file=answers)
    for line in sys.stdin:
        name, settings = json.loads(line)
        run = getattr(released, name)(**settings)
        begun = time.perf_counter()
        run()
        print(json.dumps(time.perf_counter() - begun), file=answers)


if __name__ == "__main__":
    main()
