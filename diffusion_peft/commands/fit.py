"""`diffusion_peft fit`: from a few pictures to a trained adapter, its samples and its report."""

from __future__ import annotations

from typing import Any, Literal

from peft_data.options import arguments, takes

from diffusion_peft.commands.checks import absolute, check_offload, check_slider, check_val
from diffusion_peft.commands.ranges import Denoising, Side, Vectors
from diffusion_peft.commands.task import task_of
from diffusion_peft.control.options import ControlOptions, check_control, is_control
from diffusion_peft.data.concepts import Concept, read_concepts
from diffusion_peft.data.films import WORLD
from diffusion_peft.data.fingerprint import fingerprint
from diffusion_peft.data.masks import ALPHA, BESIDE, OFF, check_where
from diffusion_peft.data.pictures import check_place
from diffusion_peft.data.shares import share_of
from diffusion_peft.editing.options import EditOptions, check_edit, is_edit, looks_paired
from diffusion_peft.personalize.slider_options import SliderOptions
from diffusion_peft.training.flow_options import FlowOptions
from diffusion_peft.training.needs import needs_of
from peft_core.config_files import list_configs
from peft_core.errors import PeftError
from peft_core.jobs.cli.command import command
from peft_core.jobs.cli.options import MethodChoice, check_unused
from peft_core.jobs.cli.shared import MACHINE, RUN, TRAINING, training
from peft_core.jobs.hub.precision import Quantize
from peft_core.jobs.runs.folder import RunFolder, run_name, run_once
from peft_core.jobs.runs.optimizers import check_optimizer
from peft_core.jobs.runs.saying import Row
from peft_core.values import Count, NotNegative, Positive, Rate, Share, Whole


def recipe_of(settings: dict[str, Any]) -> str:
    """The recipe that suits the options."""
    if settings["slider"].options:
        return "concept_slider"
    name = settings["method"].build().name
    if name in list_configs("recipe", "diffusion"):
        return name
    if is_control(settings):
        return "control"
    if is_edit(settings) or looks_paired(settings["data"]):
        return "edit"
    return "dreambooth" if settings["prompt"] else "text_to_image"


@command("diffusion", recipe_of, {
    RUN: "data base method recipe prompt steps epochs",
    "a subject or a new word": "class_prompt prior_count placeholder initializer text_method",
    "sliders, controls, edits, flows": "slider control edit flow",
    TRAINING: "lr batch_size optimizer resolution",
    "samples": "sample_prompts sample_count sample_every guidance",
    MACHINE: "out seed overwrite dtype quantize trainer",
})  # fmt: skip
@takes(training, lr=1e-4, weight_decay=1e-2, final_lr=1.0)
def fit(
    *,
    data: str | None = None,
    base: str = "reference",
    quantize: Quantize = "none",
    offload: Literal["none", "blocks"] = "none",
    method: MethodChoice = "lora",  # type: ignore[assignment]
    text_method: MethodChoice | None = None,
    prompt: str | None = None,
    frames: Count = 1,
    class_prompt: str | None = None,
    prior: str | None = None,
    prior_count: Count = 100,
    prior_weight: NotNegative = 1.0,
    placeholder: str | None = None,
    initializer: str | None = None,
    vectors: Vectors = 1,
    slider: SliderOptions = None,  # type: ignore[assignment]
    control: ControlOptions = None,  # type: ignore[assignment]
    edit: EditOptions = None,  # type: ignore[assignment]
    flow: FlowOptions = None,  # type: ignore[assignment]
    caption_prefix: str = "",
    caption_dropout: Rate = 0.0,
    masks: str | None = None,
    mask_outside: Share = 0.0,
    steps: Count = 500,
    epochs: Whole = 0,
    optimizer: Literal["adamw", "sgd", "adamw8bit", "paged_adamw", "prodigy", "schedule_free"] = "adamw",
    text_lr: Positive | None = None,
    warmup: Rate = 0.0,
    snr_gamma: NotNegative = 0.0,
    noise_offset: NotNegative = 0.0,
    ema: Rate = 0.0,
    clip_skip: Whole = 0,
    resolution: Side | None = None,
    buckets: bool = True,
    flip: bool = False,
    dtype: Literal["float32", "bfloat16", "float16"] = "float32",
    gradient_checkpointing: bool = False,
    compile: bool = False,
    cache: str = "auto",
    sample_prompts: list[str] | None = None,
    sample_count: Whole = 4,
    sample_every: Whole | None = None,
    sample_steps: Denoising = 30,
    guidance: float | None = None,
    keep_every: Whole = 0,
    val: str | None = None,
    val_every: Count | None = None,
    patience: Whole = 0,
    **common: Any,
) -> dict[str, Any]:
    """Teach a Stable Diffusion model, or another diffusion model, a subject, a style or a word, and write a run folder.

    Args:
        data: A folder of pictures (captions as .txt beside them or metadata.jsonl), a drawn subject world/subjects/0, or a
            list of concepts in a .json file. Of controls: images/, conditions/ and captions/, or world/control/canny; of
            edits: source/, target/ and instructions/; of both a metadata.jsonl (.csv for edits) or hf/<repo>.
        base: `reference`, a diffusers folder or hub id (Stable Diffusion 1 to 3, Flux, Z-Image, Qwen-Image, Sana, PixArt,
            Lumina 2), and of Stable Diffusion 1.x to XL FILE.safetensors or CONFIG_FOLDER@FILE.safetensors.
        quantize: Bits of the denoiser's frozen linears: nf4 (bitsandbytes), int8, int4, int2; adapters are trained beside them.
        offload: blocks: the denoiser's frozen weights stay on disk and are read a block at a time, on a processor.
        method: A method or preset for the UNet or transformer (`list methods`); textual_inversion trains new tokens alone.
        text_method: A method for the text encoders, which stay frozen without one.
        recipe: A name (`list recipes`) or a YAML's path; by default dreambooth with a prompt, else text_to_image.
        prompt: What every picture is called, in place of captions.
        frames: Frames of a clip, on Wan: --data is then a folder of videos, or world/motion/direction.
        class_prompt: What the class is called; pictures of it are drawn from the base and trained on besides.
        prior: A folder with such pictures.
        prior_count: How many of them.
        prior_weight: Weight of their loss.
        placeholder: A new token for the concept, e.g. "<toy>".
        initializer: The word that the new token starts as.
        vectors: Vectors a new token.
        slider: Prompts of a concept slider, e.g. --slider.positive "a large toy"; or --data with folders low and high.
        control: What a control method (controlnet, t2i_adapter, …) trains on, e.g. --control.condition canny.
        edit: What edits, pairs of source and target with an instruction, are trained on, e.g. --edit.drop 0.05.
        flow: How bases trained by flow matching (Stable Diffusion 3, Flux, Sana, …) are, e.g. --flow.density logit_normal.
        caption_prefix: Put before every caption.
        caption_dropout: Share of captions that are left empty.
        masks: Where the pictures' masks are, whose white parts alone are learnt: beside (photo-masklabel.png, the default), alpha
            (the pictures' alpha channels), a folder of masks with the pictures' names, or off.
        mask_outside: Weight of what a mask leaves out.
        out: The run folder; by default runs/DATA-BASE-METHOD-SEED.
        seed: Of the adapter, the order of the pictures, noise, and all chance in training.
        steps: Optimiser steps.
        epochs: Passes over the pictures, in place of steps, where above 0.
        batch_size: Pictures a step, over all devices; as many prior pictures come on top.
        optimizer: AdamW, SGD with momentum 0.9, or bitsandbytes' 8-bit AdamW, or its AdamW that pages out of a full GPU; prodigy,
            which finds its rate (give --lr 1), or schedule_free AdamW, whose weights' mean is what is kept.
        text_lr: That of text encoders and new tokens; lr where not given.
        warmup: Share of the steps over which the learning rate rises to lr.
        final_lr: Where the cosine ends, as a share of lr; 1 keeps it constant.
        snr_gamma: min-SNR weighting with this γ, usually 5; 0 weighs all times alike.
        noise_offset: Offset noise, usually 0.05.
        ema: Decay of a running mean of the adapter, which is then what is saved; 0 saves the last values.
        clip_skip: Layers of the text encoder left out at its end.
        resolution: Side in pixels; the base's own by default.
        buckets: Keep each picture's shape, in buckets of about resolution²; else cut the central square.
        flip: Train on mirrored pictures too.
        dtype: Of the frozen weights; what trains is float32.
        gradient_checkpointing: Compute activations again in the backward pass, for less memory.
        compile: Compile the denoiser with torch.compile.
        cache: Where latents, embeddings and prior pictures are kept: auto (the user's cache folder), a folder, or off (in
            memory, but for prior pictures).
        sample_prompts: Prompts of the sample grids; by default the training prompt.
        sample_count: Pictures a prompt, with seeds 0, 1, …; 0 draws none.
        sample_every: Steps between sample grids during training, drawn at the end of an epoch; by default a quarter of all; 0:
            none.
        sample_steps: Denoising steps of a sample.
        guidance: Guidance of samples and of prior pictures; by default that of the base's pipeline.
        keep_every: Steps between adapters that are kept as runs of their own, snapshots/step500 …, which sample, evaluate
            and export take; 0 keeps the last adapter alone.
        val: A share of the pictures, e.g. 0.1, or a folder of others, that are not trained on: their loss is looked at on the
            way, at the same times and with the same noise, and the best adapter is kept in snapshots/best.
        val_every: Steps between two such looks; by default a twentieth of all.
        patience: Stop when so many looks in a row were no better than the best; 0 trains to the end.
        trainer: Lightning's own flags, e.g. --trainer.precision bf16-mixed.
    """
    settings = arguments(locals())
    concepts = check(settings)
    what = data or str(settings["slider"].options.get("positive")).replace(" ", "_")
    name = run_name(what, base.rpartition("/")[2], method.name, f"seed{settings['seed']}")
    folder = RunFolder(settings["out"] or name, "diffusion_peft fit", fit.defaults(settings))

    def work(config: dict[str, Any]) -> dict[str, Any]:
        from diffusion_peft.training.job import run

        return run(folder, task_of(settings, concepts), config)

    places = [settings["data"], settings["prior"], *(place for c in concepts for place in (c.data, c.prior, c.masks))]
    if share_of(settings["val"]) is None:
        places.append(settings["val"])
    return run_once(folder, settings, work, headline, found=found(settings, concepts), fingerprint=fingerprint(places))


def found(settings: dict[str, Any], concepts: list[Concept]) -> list[Row]:
    """What a run is to be taught with, before its pictures are opened."""
    places = [concept.data for concept in concepts] or [settings["data"] or ""]
    return [("data", ", ".join(dict.fromkeys(places)))]


def check(settings: dict[str, Any]) -> list[Concept]:
    """The concepts of a run; its paths in `settings` become absolute.

    Raises:
        PeftError: options that do not go together.
    """
    for key in ("data", "prior", "base"):
        settings[key] = absolute(settings[key])
    if settings["masks"] not in (None, BESIDE, ALPHA, OFF):
        settings["masks"] = absolute(settings["masks"])
    if is_control(settings) or settings["slider"].options:
        for flag in ("masks", "val"):
            if settings[flag]:
                raise PeftError(
                    f"--{flag} is for training on captioned pictures, not for controls and sliders: leave it out."
                )
    if not is_control(settings):
        check_unused(settings, {"control": "control methods (controlnet, t2i_adapter, …)"})
    if is_control(settings) or settings["slider"].options:
        check_unused(settings, {"edit": "pairs of source and target, not for controls and sliders"})
    check_val(settings)
    check_offload(settings)
    check_optimizer(settings["optimizer"], settings["lr"])
    if settings["optimizer"] == "schedule_free" and settings["ema"]:
        raise PeftError("schedule_free keeps a mean of the weights by itself: leave --ema out.")
    if is_control(settings):
        return check_control(settings)
    if settings["slider"].options:
        return check_slider(settings)
    if looks_paired(settings["data"]):
        settings["edit"].options.setdefault("drop", None)
    if is_edit(settings):
        return check_edit(settings)
    if settings["data"] is None:
        raise PeftError(
            "fit needs --data: a folder of pictures, world/subjects/0, or a list of concepts in a .json file."
        )
    concepts = read_concepts(settings)
    if "words" in needs_of(settings["method"]) and any(c.placeholder is None for c in concepts):
        raise PeftError(
            f'{settings["method"].name} needs --placeholder "<toy>" and --initializer toy: what trains is a new token.'
        )
    if settings["frames"] > 1 and settings["masks"] not in (None, OFF):
        raise PeftError("--masks is for pictures, and --frames trains on clips: leave --masks out.")
    for concept in concepts:
        for place in filter(None, (concept.data, concept.prior)):
            if settings["frames"] == 1 and place.startswith(WORLD):
                raise PeftError(
                    f"{place} are clips: give --frames, e.g. --frames 5, and a base that draws films (Wan)."
                )
            if not place.startswith(WORLD):
                check_place(place)
        check_where(concept.masks or BESIDE)
        if concept.prior is not None and concept.class_prompt is None:
            raise PeftError("--prior needs --class_prompt: what its pictures are called.")
    return concepts


def headline(results: dict[str, Any]) -> str:
    count = results["parameters"]["inserted"]
    return (
        f"loss {results['loss']:.4f} after {results['steps']:,} steps, {count:,} trained parameters in "
        f"{results['adapter_bytes'] / 2**20:.2f} MiB"
    )
