//! The files that a run left: which of them another machine would have to fetch again, and where they are from.
//!
//! Not here: their hashes.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use percent_encoding::{percent_decode_str, utf8_percent_encode};
use protocol::{HttpsUrl, ModelPath, URL_PART};

use super::super::hub::{self, HUGGING_FACE};
use super::super::sources::without_token;
use super::tree::{LISTENER_FOLDER, Tree};

/// The folders that a run writes in anyhow, and what is not ours.
const OF_EVERY_RUN: [&str; 5] = ["input", "output", "temp", "user", LISTENER_FOLDER];
/// What programs keep to be faster the next time, and what they would not give to others.
const NEVER: [&str; 15] = [
    "home/.cache/fontconfig",
    "home/.cache/matplotlib",
    "home/.cache/mesa_shader_cache",
    "home/.cache/pip",
    "home/.cache/torch_extensions",
    "home/.cache/uv",
    "home/.config/matplotlib",
    "home/.netrc",
    "home/.nv",
    "home/.triton",
    "home/huggingface/stored_tokens",
    "home/huggingface/token",
    "home/huggingface/hub/.locks",
    "home/huggingface/xet",
    "home/torch/kernels",
];
/// Files by the ends of their names that say how a download went, and what was compiled.
const ENDINGS: [&str; 6] = [".incomplete", ".lock", ".log", ".part", ".pyc", ".tmp"];
/// The largest file that is looked into for a path of the run's folder, in bytes.
const MAX_SETTINGS: u64 = 1 << 20;
/// How much is read of what a process said, in bytes.
const MAX_LOG: u64 = 16 << 20;

/// A file that is to be recorded.
#[derive(Debug)]
pub(super) struct Appeared {
    /// Where it goes in a workspace.
    pub(super) path: ModelPath,
    /// Where it lies.
    pub(super) file: PathBuf,
    /// Where it can be fetched from, as far as was seen.
    pub(super) sources: Vec<HttpsUrl>,
}

/// What a run left.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) files: Vec<Appeared>,
    /// The programs that it called, each by its path.
    pub(super) called: BTreeSet<PathBuf>,
    /// What is not recorded although another machine would lack it, in words.
    pub(super) left_out: Vec<String>,
}

impl Findings {
    /// What is in a slot's folders after a run, and was not in the tree before. What has one of the `secrets` in it is
    /// nobody else's.
    pub(super) fn after(slot: &Path, tree: &Tree, secrets: &[Vec<u8>]) -> io::Result<Self> {
        let mut walk = Walk { slot, tree, secrets, asked: asked(slot, secrets)?, found: Self::default() };
        walk.enter(&slot.join("ComfyUI"), "")?;
        walk.enter(&slot.join("home"), "home")?;
        let called = heard(&slot.join("ComfyUI").join(LISTENER_FOLDER).join("called"))?;
        walk.found.called = called.lines().map(PathBuf::from).collect();
        Ok(walk.found)
    }
}

/// The addresses that a process asked for, or told of, without secrets. What still has one in it, as in its path, leads
/// nobody else to the file.
fn asked(slot: &Path, secrets: &[Vec<u8>]) -> io::Result<BTreeSet<String>> {
    let mut asked = BTreeSet::new();
    for file in [slot.join("ComfyUI").join(LISTENER_FOLDER).join("asked"), slot.with_extension("log")] {
        let ends = |c: char| c.is_whitespace() || "\"'`<>()[],;".contains(c);
        let text = heard(&file)?;
        let addresses = text.split(ends).filter(|word| word.starts_with("https://"));
        // No server sees what comes after a `#`.
        let addresses = addresses.filter_map(|word| word.trim_end_matches(['.', ':']).split('#').next());
        let is_open = |address: &String| {
            !has_any(address.as_bytes(), secrets)
                && !has_any(&percent_decode_str(address).collect::<Vec<u8>>(), secrets)
        };
        asked.extend(addresses.map(without_token).filter(is_open));
    }
    Ok(asked)
}

/// What was written down in the course of a run; empty where nothing was.
fn heard(file: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    match fs::File::open(file) {
        Ok(file) => drop(file.take(MAX_LOG).read_to_end(&mut bytes)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Walk<'a> {
    slot: &'a Path,
    tree: &'a Tree,
    secrets: &'a [Vec<u8>],
    asked: BTreeSet<String>,
    found: Findings,
}

impl Walk<'_> {
    /// Looks at what is in a folder; `place` is where it is in a workspace.
    fn enter(&mut self, folder: &Path, place: &str) -> io::Result<()> {
        let mut entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let path = entry.path();
            let Ok(name) = entry.file_name().into_string() else {
                self.found.left_out.push(format!("`{}`: its name is no text", path.display()));
                continue;
            };
            let place = if place.is_empty() { name.clone() } else { format!("{place}/{name}") };
            if self.is_passed_over(&place, &name) {
                continue;
            }
            let seen = entry.file_type().and_then(|kind| match kind.is_dir() {
                true => self.enter(&path, &place),
                false => self.take(&path, &place),
            });
            match seen {
                // What the run started elsewhere may remove its own files still.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                seen => seen?,
            }
        }
        Ok(())
    }

    fn is_passed_over(&self, place: &str, name: &str) -> bool {
        let is_blob_of_hub =
            place.starts_with("home/huggingface/hub/") && name == "blobs" && place.split('/').count() == 5;
        OF_EVERY_RUN.contains(&place)
            || NEVER.contains(&place)
            || name == "__pycache__"
            || name == ".git"
            || is_blob_of_hub
            || ENDINGS.iter().any(|ending| name.ends_with(ending))
    }

    fn take(&mut self, file: &Path, place: &str) -> io::Result<()> {
        let was_there = |folder: &Path| folder.join(place).symlink_metadata().is_ok();
        if was_there(&self.tree.comfyui) || was_there(&self.tree.files) {
            return Ok(());
        }
        // A link of a cache leads to the bytes; one that leads nowhere, or to a folder, is none of ours.
        let Ok(metadata) = fs::metadata(file) else { return Ok(()) };
        if !metadata.is_file() {
            return Ok(());
        }
        if metadata.len() <= MAX_SETTINGS {
            let bytes = fs::read(file)?;
            // A setting that holds on this machine alone.
            if contains(&bytes, self.slot.as_os_str().as_encoded_bytes()) {
                return Ok(());
            }
            if has_any(&bytes, self.secrets) {
                let words = "which the run wrote: it has a token or password of this machine in it";
                self.found.left_out.push(format!("`{place}`, {words}"));
                return Ok(());
            }
        }
        match place.parse::<ModelPath>() {
            Ok(path) => {
                let sources = self.sources(place);
                self.found.files.push(Appeared { path, file: file.to_owned(), sources });
            }
            Err(_) => self.found.left_out.push(format!(
                "`{place}`, which the run fetched or wrote: code, and files beside ComfyUI's own, cannot be recorded"
            )),
        }
        Ok(())
    }

    /// Where a file is from: a place in the hub's cache tells that, and of others an address that ends in its name.
    fn sources(&self, place: &str) -> Vec<HttpsUrl> {
        let endpoint = HUGGING_FACE.parse().expect("it is one");
        let of_hub = hub::of_snapshot(Path::new(place));
        if let Some(url) =
            of_hub.and_then(|file| file.repository.address(&endpoint, &file.commit, &file.path))
        {
            return vec![url];
        }
        let name = utf8_percent_encode(place.rsplit('/').next().unwrap_or_default(), &URL_PART).to_string();
        let is_it = |url: &&String| {
            let (path, query) = url.split_once(['?', '#']).unwrap_or((url, ""));
            // A signed address is good for minutes.
            let is_signed = query.to_ascii_lowercase().contains("sig");
            !is_signed
                && path
                    .rsplit('/')
                    .next()
                    .is_some_and(|last| utf8_percent_encode(last, &hub::ESCAPED_PART).to_string() == name)
        };
        self.asked.iter().filter(is_it).filter_map(|url| url.parse().ok()).collect()
    }
}

fn has_any(bytes: &[u8], secrets: &[Vec<u8>]) -> bool {
    secrets.iter().any(|secret| contains(bytes, secret))
}

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    bytes.windows(wanted.len()).any(|window| window == wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_another_machine_would_fetch_is_found_with_where_it_is_from() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let at = |path: &str| folder.path().join(path);
        let write = |path: &str, text: &str| {
            fs::create_dir_all(at(path).parent().expect("a folder")).expect("own folder");
            fs::write(at(path), text).expect("own folder");
        };
        let commit = "ca457f7ba1ff33bd0d724cd7324131509efcf3ec";
        let hub = "slot-0/home/huggingface/hub/models--a--b";
        let own_settings = format!("weights: {}", at("slot-0/home/x").display());
        for (path, text) in [
            // What was there before.
            ("tree/main.py", "run"),
            ("slot-0/ComfyUI/main.py", "run"),
            ("files/models/vae/known.safetensors", "known"),
            ("slot-0/ComfyUI/models/vae/known.safetensors", "known"),
            // What every run leaves.
            ("slot-0/ComfyUI/output/x.png", "made"),
            ("slot-0/ComfyUI/custom_nodes/a/__pycache__/a.pyc", "compiled"),
            ("slot-0/home/.cache/matplotlib/fontlist.json", "{}"),
            ("slot-0/home/huggingface/token", "secret"),
            ("slot-0/home/.config/own.yaml", &own_settings),
            ("slot-0/home/.config/login.json", "hf_secret"),
            // What it fetched.
            ("slot-0/ComfyUI/models/faces/face v1.onnx", "a face"),
            ("slot-0/ComfyUI/custom_nodes/a/w.json", "weights"),
            (&format!("{hub}/blobs/1111"), "settings"),
            (&format!("{hub}/snapshots/{commit}/sub/config.json"), "settings"),
            (&format!("{hub}/refs/main"), commit),
            // What has no place.
            ("slot-0/home/torch/hub/a_b_main/hubconf.py", "code"),
            ("slot-0/ComfyUI/comfy/extra.bin", "beside"),
        ] {
            write(path, text);
        }
        let told = "fetching https://example.org/face%20v1.onnx?token=x to /x, see https://example.org/docs.
            https://example.org/hf_secret/face%20v1.onnx https://example.org/%68f_secret/face%20v1.onnx
            https://example.org/face%20v1.onnx?access_token=x#y https://example.org/face%20v1.onnx?by=hf_secret";
        write("slot-0.log", told);
        write(
            &format!("slot-0/ComfyUI/{LISTENER_FOLDER}/asked"),
            "https://cdn.example.org/1/w.json\nhttps://cdn.example.org/2/w.json?X-Amz-Signature=1\n",
        );
        let tree = Tree { comfyui: at("tree"), files: at("files") };
        let found = Findings::after(&at("slot-0"), &tree, &[b"hf_secret".to_vec()]).expect("read");
        let sources = |file: &Appeared| file.sources.iter().map(ToString::to_string).collect::<Vec<_>>();
        let files: Vec<_> =
            found.files.iter().map(|file| (file.path.as_str(), sources(file).join(" "))).collect();
        let hub = "home/huggingface/hub/models--a--b";
        let expected = [
            ("custom_nodes/a/w.json", "https://cdn.example.org/1/w.json".to_owned()),
            ("models/faces/face v1.onnx", "https://example.org/face%20v1.onnx".to_owned()),
            (&format!("{hub}/refs/main"), String::new()),
            (
                &format!("{hub}/snapshots/{commit}/sub/config.json"),
                format!("https://huggingface.co/a/b/resolve/{commit}/sub/config.json"),
            ),
        ];
        assert_eq!(files, expected);
        let left_out = found.left_out.join("\n");
        assert!(left_out.contains("hubconf.py") && left_out.contains("comfy/extra.bin"), "{left_out}");
        assert!(left_out.contains("login.json") && !left_out.contains("hf_secret"), "{left_out}");
        assert_eq!(found.left_out.len(), 3, "{left_out}");
    }
}
