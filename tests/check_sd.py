"""Does diffusers load the Stable Diffusion files that we write, and does it draw the same from them?

    python3 tests/check_sd.py            (torch, diffusers, transformers; build/test_sd, build/dreambooth)

`build/test_sd FOLDER` leaves the files of its tests in FOLDER: directories and single files, saved and converted there
and back. Their pictures are compared with those in golden/pipelines/sd; the tensors of the single file with a real
model's layout (four levels, two layers) go through diffusers' own converter and are compared name by name."""
import json, os, subprocess, sys, tempfile
import numpy as np, torch, diffusers
from PIL import Image
from safetensors.torch import load_file, save_file
from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "golden"))
from make_networks import fill
from make_sd import numbers

passed = failed = 0


def report(name, ok, note):
    global passed, failed
    passed, failed = passed + ok, failed + (not ok)
    print(f"{'ok' if ok else 'FAIL'} {name}: {note}")


PROMPTS = ["a photo of a dog", "Zwei Katzen, 3 cups"]


def pictures(pipe):
    """7 steps of DDIM from make_sd.py's latents."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    return torch.from_numpy(pipe(PROMPTS, negative_prompt=["blurry"] * 2, latents=numbers("pipeline.latents", (2, 4, 8, 12), 1.7).float(),
                                 num_inference_steps=7, guidance_scale=3.0, height=16, width=24, output_type="np").images)


def draw(name, pipe):
    error = (pictures(pipe) - load_file(os.path.join(HERE, "golden/pipelines/sd/golden.safetensors"))["ddim"]).abs().max().item()
    report(name, error <= 1e-4, f"largest difference of a value in [0, 1]: {error:.1e}")


def compare(name, model, converted):
    fill(model)
    own = model.state_dict()
    wrong = [k for k in own if k not in converted or not torch.equal(own[k], converted[k].reshape(own[k].shape))]
    report(name, not wrong and len(own) == len(converted), f"{len(own)} tensors, {len(wrong)} differ, {len(converted)} in the file")


with tempfile.TemporaryDirectory() as d:
    subprocess.run(["build/test_sd", d], check=True, stdout=subprocess.DEVNULL)
    draw("a saved directory", diffusers.StableDiffusionPipeline.from_pretrained(f"{d}/saved"))
    draw("a single file as a directory again", diffusers.StableDiffusionPipeline.from_pretrained(f"{d}/back"))
    draw("a single file", diffusers.StableDiffusionPipeline.from_single_file(f"{d}/ldm.safetensors", config=f"{d}/saved", local_files_only=True, torch_dtype=torch.float32,
                                                                             safety_checker=None, feature_extractor=None))
    file = load_file(f"{d}/bare.safetensors")
    unet = diffusers.UNet2DConditionModel.from_config(json.load(open(f"{d}/unet.json")))
    compare("U-Net tensors by diffusers' converter", unet, convert_ldm_unet_checkpoint(dict(file), config=unet.config))
    vae = diffusers.AutoencoderKL.from_config(json.load(open(f"{d}/vae.json")))
    compare("autoencoder tensors by diffusers' converter", vae, convert_ldm_vae_checkpoint(dict(file), config=vae.config))
    # what `train` wrote, network and text encoder changed: diffusers draws our pictures from it
    tool = ["build/dreambooth"]
    common = ["--quiet", "--threads", "1", "--pretrained_model_name_or_path"]
    subprocess.run(tool + ["train", *common, f"{d}/saved", "--instance_data_dir", "examples/world/subjects/dog1", "--instance_prompt", "a zxk dog", "--train_text_encoder",
                           "--resolution", "16", "--train_batch_size", "1", "--max_train_steps", "20", "--learning_rate", "1e-3", "--output_dir", f"{d}/tuned"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    save_file({"latents": numbers("pipeline.latents", (2, 4, 8, 12), 1.7).float().contiguous()}, f"{d}/tuned.latents")
    subprocess.run(tool + ["generate", *common, f"{d}/tuned", "--prompt", *PROMPTS, "--negative_prompt", "blurry", "--latents", f"{d}/tuned.latents", "--scheduler", "ddim",
                           "--num_inference_steps", "7", "--guidance_scale", "3", "--height", "16", "--width", "24", "--output_dir", f"{d}/drawn"],
                   check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ours = torch.stack([torch.from_numpy(np.array(Image.open(f"{d}/drawn/{k:05}.png"), dtype=np.float32) / 255) for k in range(2)])
    theirs = pictures(diffusers.StableDiffusionPipeline.from_pretrained(f"{d}/tuned", torch_dtype=torch.float32))
    untrained = load_file(os.path.join(HERE, "golden/pipelines/sd/golden.safetensors"))["ddim"]
    error, change = (theirs - ours).abs().max().item() * 255, (theirs - untrained).abs().max().item() * 255
    report("a trained directory", error <= 2 and change > 10, f"largest difference {error:.2f} of 255; training changed {change:.0f}")
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
