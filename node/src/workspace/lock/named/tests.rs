//! Made-up folders of models, and workflows that name what is in them.

use std::fs;

use serde_json::json;
use tempfile::TempDir;

use super::*;
use crate::workspace::git::tests::Upstream;

struct Folder(TempDir);

impl Folder {
    fn new(files: &[&str]) -> Self {
        let folder = Self(tempfile::tempdir().expect("a temporary folder"));
        fs::create_dir(folder.0.path().join("models")).expect("own folder");
        files.iter().for_each(|path| folder.write(path));
        folder
    }

    fn write(&self, path: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().expect("a folder")).expect("own folder");
        fs::write(path, "bytes").expect("own folder");
    }

    /// The models that a workflow of this op names, the inputs, and what is told of it.
    fn named(&self, class: &str, inputs: &Value) -> (Vec<String>, Vec<String>, Findings) {
        let ops = json!({"1": {"class_type": class, "inputs": inputs}});
        let workflow = Workflow::parse(ops.to_string().as_bytes()).expect("a workflow");
        let folders = ModelFolders::of(self.0.path(), &[]).expect("read");
        let mut findings = Findings::default();
        let NamedFiles { models, inputs } =
            files(&workflow, &folders, &self.0.path().join("input"), &mut findings);
        let models = models.into_keys().map(|path| path.to_string()).collect();
        (models, inputs.into_keys().collect(), findings)
    }

    /// Checks the models, and what begins the words of each that is lacking.
    fn check(&self, class: &str, inputs: Value, models: &[&str], lacking: &[&str]) {
        let (found, _, findings) = self.named(class, &inputs);
        assert_eq!(found, models, "{inputs}");
        let told = findings.lacking.iter().zip(lacking).all(|(words, begin)| words.starts_with(begin));
        assert!(told && findings.lacking.len() == lacking.len(), "{inputs}: {:?}", findings.lacking);
    }
}

#[test]
fn embeddings_of_a_prompt_are_models_and_missing_ones_are_told() {
    let folder = Folder::new(&[
        "models/embeddings/EasyNegative.safetensors",
        "models/embeddings/sd15/hands.pt",
        "models/embeddings/comma,.bin",
        "models/loras/other.safetensors",
    ]);
    let check = |text: &str, models: &[&str], lacking: &[&str]| {
        folder.check("CLIPTextEncode", json!({"text": text}), models, lacking);
    };
    let easy = "models/embeddings/EasyNegative.safetensors";
    check("embedding:EasyNegative", &[easy], &[]);
    check("ugly, (embedding:EasyNegative.safetensors:1.2), bad", &[easy], &[]);
    check("ugly embedding:EasyNegative, bad", &[easy], &[]);
    check("embedding:hands embedding:sd15/hands", &["models/embeddings/sd15/hands.pt"], &[]);
    check("embedding:comma, x", &["models/embeddings/comma,.bin"], &[]);
    check(
        "a cat embedding:gone, x",
        &[],
        &["embedding `gone`, which op `1` (CLIPTextEncode) names for `text`"],
    );
    check("embedding:other", &[], &["embedding `other`"]);
    check("embedding:../loras/other", &[], &["embedding `../loras/other`"]);
}

#[test]
fn file_in_a_folder_of_models_is_one_whatever_its_ending() {
    let folder = Folder::new(&[
        "models/insightface/inswapper_128.onnx",
        "models/annotators/lvminthe/net.weights",
        "models/x/a",
        "input/cat.png",
        "input/latents.npz",
    ]);
    let check = |text: &str, models: &[&str], lacking: &[&str]| {
        folder.check("Swap", json!({"model": text}), models, lacking);
    };
    check("inswapper_128.onnx", &["models/insightface/inswapper_128.onnx"], &[]);
    check(r"lvminthe\net.weights", &["models/annotators/lvminthe/net.weights"], &[]);
    for missing in ["yolox_l.onnx", "vae.engine", "gone.pkl"] {
        check(missing, &[], &[&format!("model `{missing}`, which op `1` (Swap) names for `model`")]);
    }
    check("a", &[], &[]);
    check("a photo of a cat. It is 3.5 years old", &[], &[]);
    check("16:9 and/or 4:3", &[], &[]);
    folder.check("LoadImage", json!({"image": "dog.png"}), &[], &["input `dog.png`"]);
    for input in ["cat.png", "latents.npz"] {
        let (models, inputs, findings) = folder.named("LoadImage", &json!({"image": input}));
        assert_eq!((models, inputs), (Vec::new(), vec![input.to_owned()]));
        assert!(findings.lacking.is_empty(), "{:?}", findings.lacking);
    }
    let listed = json!({"loras": [{"on": true, "lora": "inswapper_128.onnx"}], "image": ["2", 0]});
    folder.check("Stack", listed, &["models/insightface/inswapper_128.onnx"], &[]);
}

#[test]
fn folder_that_is_a_model_is_recorded_with_all_its_files() {
    let folder = Folder::new(&[
        "models/LLM/Florence-2-base/config.json",
        "models/LLM/Florence-2-base/pytorch_model.bin",
        "models/LLM/Florence-2-base/.cache/huggingface/x.lock",
        "models/LLM/Florence-2-base/LICENSE",
        "models/diffusers/sd/model_index.json",
        "models/diffusers/sd/unet/weights.safetensors",
        "models/insightface/models/buffalo_l/det.onnx",
        "models/loras/anime/one.safetensors",
        "models/text_encoders/gemma/config.json",
        "models/text_encoders/gemma/model.safetensors",
        "models/LLM/empty/readme.txt",
    ]);
    let check = |text: &str, models: &[&str]| folder.check("Load", json!({"model": text}), models, &[]);
    let florence = ["models/LLM/Florence-2-base/config.json", "models/LLM/Florence-2-base/pytorch_model.bin"];
    check("Florence-2-base", &florence);
    check("microsoft/Florence-2-base", &florence);
    check("sd", &["models/diffusers/sd/model_index.json", "models/diffusers/sd/unet/weights.safetensors"]);
    check("buffalo_l", &["models/insightface/models/buffalo_l/det.onnx"]);
    check(
        "gemma",
        &["models/text_encoders/gemma/config.json", "models/text_encoders/gemma/model.safetensors"],
    );
    for no_model in ["anime", "loras", "LLM", "empty", "insightface/models/../models", ""] {
        check(no_model, &[]);
    }
    let (_, _, findings) = folder.named("Load", &json!({"model": "Florence-2-base"}));
    assert_eq!(
        findings.notes,
        [
            "op `1` (Load) names the folder `Florence-2-base`: all its 2 files are models of the workflow, 10 B together"
        ]
    );
}

#[test]
fn vae_of_two_files_needs_both() {
    let folder = Folder::new(&[
        "models/vae_approx/taesd_decoder.safetensors",
        "models/vae_approx/taesd_encoder.pth",
        "models/vae_approx/taesdxl_decoder.pth",
    ]);
    let both = ["models/vae_approx/taesd_decoder.safetensors", "models/vae_approx/taesd_encoder.pth"];
    folder.check("VAELoader", json!({"vae_name": "taesd"}), &both, &[]);
    folder.check(
        "VAELoader",
        json!({"vae_name": "taesdxl"}),
        &["models/vae_approx/taesdxl_decoder.pth"],
        &["model `taesdxl_encoder`, which op `1` (VAELoader) names for `vae_name`: it is not in `models/vae_approx`"],
    );
    folder.check("CLIPTextEncode", json!({"text": "taesd"}), &[], &[]);
}

#[test]
fn what_comes_with_comfyuis_commit_is_no_model() {
    let (folder, upstream) = (tempfile::tempdir().expect("a temporary folder"), Upstream::new());
    let pin = upstream.commit(&[("models/configs/v1-inference.yaml", 0o100644, "a\n")]);
    git2::Repository::clone(pin.url.as_str(), folder.path().join("ComfyUI")).expect("cloned");
    let comfyui = folder.path().join("ComfyUI");
    fs::write(comfyui.join("models/configs/own.yaml"), "b\n").expect("own folder");
    let folders = ModelFolders::of(&comfyui, &[]).expect("read");
    assert!(folders.find("v1-inference.yaml").is_empty());
    assert_eq!(folders.find("own.yaml").len(), 1);
}
