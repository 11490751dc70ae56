"""Does diffusers load the Stable Diffusion files that we write, and does it draw the same from them?

    python3 tests/check_sd.py   (torch, diffusers, transformers, peft; build/test_sd, build/test_lora, build/dreambooth)

`build/test_sd FOLDER` leaves the files of its tests in FOLDER: directories and single files, saved and converted there
and back. Their pictures are compared with those in golden/pipelines/sd; the tensors of the single file with a real
model's layout (four levels, two layers) go through diffusers' own converter and are compared name by name. Then the other
way round, through `build/dreambooth`: what `generate` draws from given latents, what `probe` computes (values, losses,
gradients), and what `convert` writes, for Stable Diffusion and for the shipped IF base."""
import json, os, subprocess, sys, tempfile
import numpy as np, torch, diffusers, transformers
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


def tool(command, model, *args):
    subprocess.run(["build/dreambooth", command, "--quiet", "--pretrained_model_name_or_path", model, *map(str, args)], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def same_pictures(name, d, model, theirs, prompts, latents, *args):
    """Ours from the same latents, at most 2 of 255 from `theirs`, pictures in [0, 1]."""
    save_file({"latents": latents.contiguous()}, f"{d}/in.safetensors")
    tool("generate", model, "--prompt", *prompts, "--latents", f"{d}/in.safetensors", "--output_dir", f"{d}/drawn", *args)
    ours = np.stack([np.asarray(Image.open(f"{d}/drawn/{k:05d}.png"), np.float64) for k in range(len(prompts))])
    error = np.abs(ours - 255 * theirs.astype(np.float64)).max() if ours.shape == theirs.shape else np.inf
    report(f"generate, {name}", error <= 2, f"{ours.shape}, at most {error:.2f} of 255 apart, spread {theirs.std() * 255:.0f}")


def generate_sd(d, model):
    pipe = diffusers.StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    config = pipe.scheduler.config
    prompts = ["a photo of a dog", "Zwei Katzen, 3 cups", "a dog"]
    for kind, name, steps, guidance, size, prediction in (("DDIMScheduler", "ddim", 12, 4.0, (12, 8), "epsilon"), ("DPMSolverMultistepScheduler", "dpmsolver++", 20, 7.5, (4, 16), "epsilon"),
                                                          ("DDIMScheduler", "ddim", 9, 2.0, (8, 8), "v_prediction"), ("DPMSolverMultistepScheduler", "dpmsolver++", 11, 3.0, (8, 8), "v_prediction")):
        pipe.scheduler = getattr(diffusers, kind).from_config(config, prediction_type=prediction)
        path = model
        if prediction != "epsilon":
            path = f"{d}/{prediction}"
            pipe.save_pretrained(path)
            scheduler = json.load(open(f"{model}/scheduler/scheduler_config.json")) | {"prediction_type": prediction}
            json.dump(scheduler, open(f"{path}/scheduler/scheduler_config.json", "w"))
        latents = torch.randn(3, 4, *size)
        theirs = pipe(prompts, negative_prompt=["blurry"] * 3, latents=latents, num_inference_steps=steps, guidance_scale=guidance, height=2 * size[0], width=2 * size[1], output_type="np").images
        same_pictures(f"{name}, {steps} steps, guidance {guidance}, {prediction}", d, path, theirs, prompts, latents, "--negative_prompt", "blurry", "--scheduler", name,
                      "--num_inference_steps", steps, "--guidance_scale", guidance)


def generate_if(d, model):
    """IF's pipeline takes no latents; they are put where it draws them."""
    pipe = diffusers.IFPipeline.from_pretrained(model, safety_checker=None, feature_extractor=None, watermarker=None, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a red dog on the beach", "a blue teapot in the snow"]
    for kind, name, steps, guidance, size in (("DDIMScheduler", "ddim", 6, 3.0, (32, 48)), ("DPMSolverMultistepScheduler", "dpmsolver++", 8, 5.0, (48, 32))):
        pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config)
        latents = torch.randn(2, 3, *size)
        pipe.prepare_intermediate_images = lambda *args: latents.clone()
        theirs = pipe(prompts, negative_prompt=["blurry"] * 2, num_inference_steps=steps, guidance_scale=guidance, height=size[0], width=size[1], output_type="np").images
        same_pictures(f"IF, {name}, {steps} steps, guidance {guidance}", d, model, theirs, prompts, latents, "--negative_prompt", "blurry", "--scheduler", name,
                      "--num_inference_steps", steps, "--guidance_scale", guidance)


def probe(d, model, part, network, run, inputs):
    """Output, loss and every gradient of `network`; `run` gives its output."""
    network = network.double()
    out = run(network, {k: v.double() if v.is_floating_point() else v for k, v in inputs.items()})
    target = torch.randn(out.shape)
    loss = ((out - target) ** 2).mean()
    loss.backward()
    save_file({k: v.contiguous() for k, v in (inputs | {"target": target}).items()}, f"{d}/in.safetensors")
    tool("probe", model, "--part", part, "--in", f"{d}/in.safetensors", "--out", f"{d}/out.safetensors", "--grads", f"{d}/grads.safetensors")
    ours, grads = load_file(f"{d}/out.safetensors"), load_file(f"{d}/grads.safetensors")
    name = {"vae_encoder": "moments", "text_encoder": "last_hidden_state"}.get(part, "sample")
    error = (ours[name] - out).abs().max().item() / out.abs().max().item()
    loss_error = abs(ours["loss"].item() - loss.item()) / loss.item()
    theirs = {k: p.grad for k, p in network.named_parameters() if p.grad is not None}
    same = theirs.keys() == grads.keys()
    if not same:  # saved with the prefix, loaded without
        theirs = {"text_model." + k: v for k, v in theirs.items()}
        same = theirs.keys() == grads.keys()
    zero = [k for k, v in theirs.items() if v.abs().max() < 1e-8]  # in theory, as of an attention key's bias
    worst = max(((grads[k] - v).abs().max() / (1e-4 if k in zero else v.abs().max())).item() for k, v in theirs.items()) if same else np.inf
    report(f"probe {part} of {os.path.basename(model)}", error <= 1e-4 and loss_error <= 1e-4 and worst <= 1e-3,
           f"output {error:.1e}, loss {loss_error:.1e}, {len(theirs)} gradients {worst:.1e}; zero in theory: {' '.join(zero) or 'none'}")


def probes(d, model):
    unet = diffusers.UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    width = unet.config.encoder_hid_dim or unet.config.cross_attention_dim
    probe(d, model, "unet", unet, lambda n, t: n(t["sample"], t["timestep"], t["encoder_hidden_states"]).sample,
          {"sample": torch.randn(2, unet.config.in_channels, 16, 24), "timestep": torch.tensor([731.0, 4.0]), "encoder_hidden_states": torch.randn(2, 7, width)})
    if os.path.exists(f"{model}/vae"):
        vae = lambda: diffusers.AutoencoderKL.from_pretrained(model, subfolder="vae")
        probe(d, model, "vae_encoder", vae(), lambda n, t: n.encode(t["sample"]).latent_dist.parameters, {"sample": torch.randn(2, 3, 10, 14)})
        probe(d, model, "vae_decoder", vae(), lambda n, t: n.decode(t["sample"]).sample, {"sample": torch.randn(2, 4, 5, 3)})
    kind = transformers.CLIPTextModel if os.path.exists(f"{model}/vae") else transformers.T5EncoderModel
    text = kind.from_pretrained(model, subfolder="text_encoder", dtype=torch.float32).eval()
    ids = torch.randint(0, text.config.vocab_size, (2, 9), dtype=torch.int32)
    mask = (torch.arange(9)[None] < torch.tensor([[9], [5]])).int()
    probe(d, model, "text_encoder", text, lambda n, t: n(input_ids=t["input_ids"], attention_mask=t["attention_mask"]).last_hidden_state, {"input_ids": ids, "attention_mask": mask})


torch.manual_seed(1)


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
    generate_sd(d, f"{d}/saved")
    generate_if(d, "examples/world/base")
    probes(d, f"{d}/saved")
    probes(d, "examples/world/base")
    for dtype, limit in (("f32", 0), ("f16", 1e-3), ("bf16", 1e-2)):
        tool("convert", f"{d}/saved", "--output_dir", f"{d}/{dtype}.safetensors", "--dtype", dtype)
        tool("convert", f"{d}/{dtype}.safetensors", "--output_dir", f"{d}/{dtype}", "--dtype", dtype)
        a, b = (diffusers.UNet2DConditionModel.from_pretrained(x, subfolder="unet", torch_dtype=torch.float32).state_dict() for x in (f"{d}/saved", f"{d}/{dtype}"))
        error = max((a[k] - b[k]).abs().max().item() / a[k].abs().max().item() for k in a)
        report(f"converted to one file and back in {dtype}", error <= limit, f"{len(a)} tensors of the U-Net, {error:.1e}")
    # what `train` wrote, network and text encoder changed: diffusers draws our pictures from it
    tool("train", f"{d}/saved", "--threads", 1, "--instance_data_dir", "examples/world/subjects/dog1", "--instance_prompt", "a zxk dog", "--train_text_encoder",
         "--resolution", 16, "--train_batch_size", 1, "--max_train_steps", 20, "--learning_rate", 1e-3, "--output_dir", f"{d}/tuned")
    latents, untrained = numbers("pipeline.latents", (2, 4, 8, 12), 1.7).float(), load_file(os.path.join(HERE, "golden/pipelines/sd/golden.safetensors"))["ddim"]
    theirs = pictures(diffusers.StableDiffusionPipeline.from_pretrained(f"{d}/tuned", torch_dtype=torch.float32))
    same_pictures("a trained directory", d, f"{d}/tuned", theirs.numpy(), PROMPTS, latents, "--negative_prompt", "blurry", "--scheduler", "ddim", "--num_inference_steps", 7,
                  "--guidance_scale", 3)
    report("training changed the pictures", (theirs - untrained).abs().max() * 255 > 10, f"by {(theirs - untrained).abs().max() * 255:.0f} of 255")
    subprocess.run(["build/test_lora", d], check=True, stdout=subprocess.DEVNULL)
    lora(d, "sd_a", diffusers.StableDiffusionPipeline)
    lora(d, "if1_a", diffusers.IFPipeline)
print(f"{passed} passed, {failed} failed")
sys.exit(failed != 0)
