"""Keys and headers of the files that we write, name by name."""

from safetensors import safe_open
from safetensors.torch import load_file

from diffusion_peft.formats import kohya
from tests.diffusion_peft.files import TEXT, adapted, export, lora
from tests.diffusion_peft.test_counts import unet


def test_names_of_kohya_files(tmp_path):
    pipeline = adapted("sd15", lora(), lora(TEXT["attention"]))
    with safe_open(export(pipeline, tmp_path, "kohya"), "pt") as file:
        keys, header = set(file.keys()), file.metadata()
        down = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q.lora_down.weight"
        assert (
            file.get_tensor(down).shape == (3, 16) and file.get_tensor(down.replace("lora_down.weight", "alpha")) == 5
        )
        conv = "lora_unet_down_blocks_0_resnets_0_conv1"
        assert file.get_tensor(f"{conv}.lora_down.weight").shape == (3, 16, 3, 3)
        assert file.get_tensor(f"{conv}.lora_up.weight").shape == (16, 3, 1, 1)
    assert "lora_te_text_model_encoder_layers_0_self_attn_q_proj.lora_up.weight" in keys
    assert header["ss_network_module"] == "networks.lora" and header["ss_network_dim"] == "3"
    assert header["ss_network_alpha"] == "5.0" and header["ss_base_model_version"] == "sd_v1"


def test_names_of_sdxl_kohya_files(tmp_path):
    pipeline = adapted("sdxl", lora(), lora(TEXT["attention"]))
    names = {key.partition(".")[0] for key in load_file(export(pipeline, tmp_path, "kohya"))}
    for name in (
        "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_q", "lora_unet_input_blocks_3_0_op",
        "lora_unet_input_blocks_1_0_in_layers_2", "lora_unet_input_blocks_1_0_emb_layers_1",
        "lora_unet_input_blocks_4_0_skip_connection", "lora_unet_middle_block_1_proj_in",
        "lora_unet_middle_block_2_out_layers_3", "lora_unet_output_blocks_0_1_transformer_blocks_0_ff_net_0_proj",
        "lora_unet_output_blocks_2_2_conv", "lora_unet_time_embed_0", "lora_unet_label_emb_0_2",
        "lora_te1_text_model_encoder_layers_0_self_attn_out_proj", "lora_te2_text_model_encoder_layers_1_self_attn_v_proj",
    ):  # fmt: skip
        assert name in names
    assert not any(part in name for name in names for part in ("down_blocks", "mid_block", "up_blocks"))


def test_names_of_the_real_unets():
    names = set(kohya._names("unet", unet("sdxl"), sdxl=True))
    for name in (
        "input_blocks_8_1_transformer_blocks_9_attn2_to_k", "output_blocks_5_2_conv", "input_blocks_6_0_op",
        "output_blocks_3_1_transformer_blocks_1_ff_net_2", "output_blocks_8_0_in_layers_2", "middle_block_0_emb_layers_1",
    ):  # fmt: skip
        assert f"lora_unet_{name}" in names
    assert len(names) == 743 + 51
    names = set(kohya._names("unet", unet("sd15"), sdxl=False))
    assert "lora_unet_up_blocks_3_attentions_2_transformer_blocks_0_attn2_to_out_0" in names and len(names) == 184 + 98


def test_names_of_diffusers_files(tmp_path):
    keys = set(load_file(export(adapted("sd15", lora(), lora(TEXT["mlp"])), tmp_path, "diffusers_lora")))
    assert "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q.lora_A.weight" in keys
    assert "text_encoder.text_model.encoder.layers.1.mlp.fc2.lora_linear_layer.up.weight" in keys
