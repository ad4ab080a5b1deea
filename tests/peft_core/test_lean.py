"""What is left out for a quick start comes when it is asked for; in a process of its own, as that has the compiler yet."""

import subprocess
import sys

SCRIPT = """
import sys
import torch
from torch import nn
from peft_core.jobs.runs import lean

lean.own_process = True
lean.leave_out_compiler()
model = nn.Linear(2, 2)
adam = torch.optim.AdamW(model.parameters(), lr=0.1)
before, x = model.weight.clone(), torch.ones(1, 2)

def step():
    adam.zero_grad()
    model(x).sum().backward()
    adam.step()

step()
from torch._dynamo import OptimizedModule
from torch._dynamo.utils import is_compile_supported
assert not torch.equal(model.weight, before) and not isinstance(model, OptimizedModule)
assert lean.compiler() is None and "sympy" not in sys.modules

import torch._dynamo.config as config  # a module inside brings the whole
assert lean.compiler() is torch._dynamo and lean.Inside not in sys.meta_path
assert config is torch._dynamo.config and config.__spec__.origin and torch._dynamo.utils.counters is not None
compiled = torch.compile(model, backend="eager")
torch.testing.assert_close(compiled(x), model(x))
assert isinstance(compiled, OptimizedModule) and isinstance(compiled, torch._dynamo.OptimizedModule)
assert not isinstance(model, OptimizedModule) and is_compile_supported("cpu")
before = model.weight.clone()
step()
assert not torch.equal(model.weight, before)
"""


def test_the_compiler_comes_when_something_is_compiled() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
