"""A file that is written over in place while what was read from it is in use.

What a map of the file holds is then gone, and asking for it ends the process (SIGBUS): every case
is a process of its own.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from lora_files import glora, matrices, save
from weights import seeded

pytestmark = pytest.mark.skipif(os.name == "nt", reason="Windows does not let a mapped file shrink")

REPOSITORY = Path(__file__).resolve().parents[2]
LAYERS = [f"blocks.{block}.self_attn" for block in range(3)]
# One layer for each kind of patch, each an object of its own in core.
WEIGHTS = {
    **matrices(f"{LAYERS[0]}.q"),
    f"{LAYERS[0]}.q.dora_scale": seeded("lengths", (32, 1)).abs() + 0.5,
    **glora(f"{LAYERS[0]}.k"),
    **{f"{LAYERS[1]}.q.hada_w{i}_{x}": seeded(f"{i}{x}", (32, 32)) for i in (1, 2) for x in "ab"},
    **{f"{LAYERS[1]}.k.lokr_w{i}": seeded(str(i), (4, 4) if i == 1 else (8, 8)) for i in (1, 2)},
    f"{LAYERS[2]}.q.oft_blocks": seeded("blocks", (8, 4, 4)),
    f"{LAYERS[2]}.k.diff": seeded("diff", (32, 32)),
    f"{LAYERS[2]}.k.diff_b": seeded("bias", (32,)),
    f"{LAYERS[2]}.v.set_weight": seeded("set", (32, 32)),
}

LOAD_THEN_SAMPLE = """
import os, sys
import find_comfyui
find_comfyui.import_comfy(None)
find_comfyui.import_extension()
from pathlib import Path
import comfy.sample, folder_paths, torch
from comfyui_ovi.nodes.latents import OviLatent
from comfyui_ovi.nodes.load import OviLoraLoader
from comfyui_ovi.ovi_model import core_patches
from goldens import small_patcher
core_patches.install()
path = Path(sys.argv[1])
folder_paths.folder_names_and_paths["loras"] = [str(path.parent)], {".safetensors"}
latent = OviLatent.execute(64, 64, 5, 1).result[0]["samples"]
text = [[torch.ones(1, 16, 32), {}]]

def sample(model):
    noise = comfy.sample.prepare_noise(latent, 1)
    made = comfy.sample.sample(model, noise, 1, 1.0, "euler", "simple", text, text, latent)
    return torch.cat([stream.flatten() for stream in made.unbind()])

def load():
    return OviLoraLoader.execute(small_patcher(), path.name, 1.0, 1.0, 1.0).result[0]

plain, whole, changed = small_patcher(), load(), load()
expected = sample(whole)
os.truncate(path, 0)
assert torch.equal(sample(changed), expected)
assert not torch.equal(sample(plain), expected)
print("the same")
"""


def test_a_lora_goes_on(tmp_path):
    folders = (REPOSITORY / folder for folder in ("tools", "tests/support"))
    ended = subprocess.run(
        [sys.executable, "-c", LOAD_THEN_SAMPLE, save(tmp_path, WEIGHTS)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, folders))},
        capture_output=True,
        text=True,
    )
    assert ended.stdout.endswith("the same\n"), (ended.returncode, ended.stderr[-2000:])
