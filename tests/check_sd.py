"""Does diffusers load the Stable Diffusion files that we write, and does it draw the same from them?

    python3 tests/check_sd.py            (torch, diffusers, transformers, peft; build/test_sd, build/test_lora)

`build/test_sd FOLDER` leaves the files of its tests in FOLDER: directories and single files, saved and converted there
and back. Their pictures are compared with those in golden/pipelines/sd; the tensors of the single file with a real
model's layout (four levels, two layers) go through diffusers' own converter and are compared name by name."""
import json, os, subprocess, sys, tempfile
import torch, diffusers, transformers
from safetensors.torch import load_file
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


def draw(name, pipe):
    """7 steps of DDIM from make_sd.py's latents."""
    pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config)
    pipe.set_progress_bar_config(disable=True)
    out = pipe(["a photo of a dog", "Zwei Katzen, 3 cups"], negative_prompt=["blurry"] * 2, latents=numbers("pipeline.latents", (2, 4, 8, 12), 1.7).float(),
               num_inference_steps=7, guidance_scale=3.0, height=16, width=24, output_type="np").images
    error = (torch.from_numpy(out) - load_file(os.path.join(HERE, "golden/pipelines/sd/golden.safetensors"))["ddim"]).abs().max().item()
    report(name, error <= 1e-4, f"largest difference of a value in [0, 1]: {error:.1e}")


def compare(name, model, converted):
    fill(model)
    own = model.state_dict()
    wrong = [k for k in own if k not in converted or not torch.equal(own[k], converted[k].reshape(own[k].shape))]
    report(name, not wrong and len(own) == len(converted), f"{len(own)} tensors, {len(wrong)} differ, {len(converted)} in the file")


def golden(folder, name, file="golden.safetensors"):
    return load_file(os.path.join(HERE, "golden", folder, name, file) if file else os.path.join(HERE, "golden", folder, name + ".safetensors"))


def relative(ours, theirs):
    return ((ours - theirs).abs().max() / theirs.abs().max()).item()


def lora(folder, name, kind):
    """The golden LoRA as we wrote it, through load_lora_weights: the outputs that build/test_lora holds ours to."""
    unet = diffusers.UNet2DConditionModel.from_config(json.load(open(os.path.join(HERE, f"golden/networks/{name}/config.json"))))
    parts = dict(unet=unet, tokenizer=None, text_encoder=None, scheduler=diffusers.DDPMScheduler(steps_offset=1, clip_sample=False), safety_checker=None, feature_extractor=None, requires_safety_checker=False)
    if name == "sd_a":
        text = transformers.CLIPTextModel(transformers.CLIPTextConfig(**json.load(open(os.path.join(HERE, "golden/networks/clip_a/config.json"))))).eval()
        fill(text, "" if hasattr(text, "text_model") else "text_model.")
        parts |= dict(vae=None, text_encoder=text)
    else:
        parts |= dict(watermarker=None)
    fill(unet)
    pipe = kind(**parts)
    pipe.load_lora_weights(f"{folder}/{name}")
    t = golden("networks", name)
    with torch.no_grad():
        out = unet(t["in.sample"], t["in.timestep"], t["in.encoder_hidden_states"]).sample
        report(f"a LoRA for {name} by diffusers", relative(out, golden("lora", name, None)["out"]) <= 1e-4, f"output off by {relative(out, golden('lora', name, None)['out']):.1e}")
        if name == "sd_a":
            t = golden("networks", "clip_a")
            mask = t["in.attention_mask"].long() if "in.attention_mask" in t else None
            error = relative(text(input_ids=t["in.input_ids"].long(), attention_mask=mask).last_hidden_state, golden("lora", "clip_a", None)["out"])
            report("a LoRA for clip_a by diffusers", error <= 1e-4, f"output off by {error:.1e}")


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
    subprocess.run(["build/test_lora", d], check=True, stdout=subprocess.DEVNULL)
    lora(d, "sd_a", diffusers.StableDiffusionPipeline)
    lora(d, "if1_a", diffusers.IFPipeline)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
