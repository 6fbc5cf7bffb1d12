//! What two lists say: the folders that ComfyUI's `extra_model_paths.yaml` names, and what a folder's own
//! `.comfy-farm-private` gives to nobody.
//!
//! Of the first only what ComfyUI's own example uses is understood: sections of `key: value` lines, where a value may
//! be a block of several lines (`|`). Not here: which files in them are models.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The list of what is never served.
pub(crate) const PRIVATE: &str = ".comfy-farm-private";
/// The longest such file that is read, in bytes.
const MAX_FILE: u64 = 1 << 20;

/// Whether this is a list of folders by its name.
pub(super) fn is_list(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}

/// Whether more may appear in it: a folder, or a list of folders.
pub(crate) fn is_folder_or_list(path: &Path) -> bool {
    path.is_dir() || is_list(path)
}

/// The folders that are meant: those that a list names, or the folder or file itself.
pub(crate) fn folders_of(root: &Path) -> io::Result<Vec<PathBuf>> {
    if is_list(root) { model_folders(root) } else { Ok(vec![root.to_owned()]) }
}

/// The folders that the file names and that exist.
fn model_folders(file: &Path) -> io::Result<Vec<PathBuf>> {
    let mut folders: Vec<PathBuf> = listed_folders(file)?
        .into_iter()
        .filter_map(|folder| fs::canonicalize(folder.path).ok())
        .filter(|folder| folder.is_dir())
        .collect();
    folders.sort();
    // What lies in another one is found there.
    folders.dedup_by(|later, earlier| later.starts_with(earlier));
    Ok(folders)
}

/// The folders that ComfyUI's `extra_model_paths.yaml` names, each with its kind, whether they exist or not.
pub fn listed_folders(file: &Path) -> io::Result<Vec<ModelFolder>> {
    if fs::metadata(file)?.len() > MAX_FILE {
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, "a list of paths has at most 1 MiB"));
    }
    let text = fs::read_to_string(file)?;
    let here = file.parent().unwrap_or(Path::new("/"));
    let home = std::env::home_dir();
    Ok(sections(&text).into_iter().flat_map(|section| section.folders(here, home.as_deref())).collect())
}

/// The files and folders in a folder of models that its owner gives to nobody.
pub fn private_paths(root: &Path) -> io::Result<Vec<PathBuf>> {
    let text = match fs::read_to_string(root.join(PRIVATE)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        text => text?,
    };
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(|line| root.join(line.trim_end_matches('/'))).collect())
}

/// A folder of models of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModelFolder {
    /// What ComfyUI calls the kind, such as `checkpoints`.
    pub kind: String,
    /// Where it lies.
    pub path: PathBuf,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct Section {
    base: Option<String>,
    /// Kinds and paths.
    paths: Vec<(String, String)>,
}

impl Section {
    fn folders(self, here: &Path, home: Option<&Path>) -> Vec<ModelFolder> {
        let expand = |path: &str| match (path.strip_prefix("~/"), home) {
            (Some(rest), Some(home)) => home.join(rest),
            _ => PathBuf::from(path),
        };
        // A relative base is relative to the file, as ComfyUI has it.
        let base = here.join(self.base.as_deref().map_or_else(PathBuf::new, expand));
        let folder = |(kind, path): (String, String)| ModelFolder { kind, path: base.join(expand(&path)) };
        self.paths.into_iter().map(folder).collect()
    }
}

fn sections(text: &str) -> Vec<Section> {
    let mut sections: Vec<Section> = Vec::new();
    // Deeper lines than this belong to the block that was begun there.
    let mut block: Option<(usize, String)> = None;
    for line in text.lines() {
        let content = line.split(" #").next().unwrap_or_default().trim();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        if let (Some((begun, kind)), Some(section)) = (&block, sections.last_mut())
            && depth > *begun
        {
            section.paths.push((kind.clone(), unquote(content).to_owned()));
            continue;
        }
        block = None;
        let Some((key, value)) = content.split_once(':') else { continue };
        let value = unquote(value.trim());
        if depth == 0 {
            sections.push(Section::default());
            continue;
        }
        let Some(section) = sections.last_mut() else { continue };
        match (key.trim(), value) {
            ("is_default", _) => {}
            ("base_path", value) => section.base = Some(value.to_owned()),
            (kind, "" | "|" | ">" | "|-") => block = Some((depth, kind.to_owned())),
            (kind, path) => section.paths.push((kind.to_owned(), path.to_owned())),
        }
    }
    sections
}

fn unquote(text: &str) -> &str {
    let quoted = |quote: char| text.strip_prefix(quote).and_then(|text| text.strip_suffix(quote));
    quoted('"').or_else(|| quoted('\'')).unwrap_or(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_with_blocks_comments_and_quotes_are_understood() {
        let text = "# models elsewhere\ncomfyui:\n    base_path: /srv/models # shared\n    is_default: true\n    \
                    checkpoints: 'check points/'\n    text_encoders: |\n        clip/\n        text_encoders/\n    \
                    vae: /other/vae\nsecond:\n    loras: loras\n";
        let found: Vec<_> = sections(text)
            .into_iter()
            .flat_map(|section| section.folders(Path::new("/here"), None))
            .collect();
        let expected = [
            ("checkpoints", "/srv/models/check points/"),
            ("text_encoders", "/srv/models/clip/"),
            ("text_encoders", "/srv/models/text_encoders/"),
            ("vae", "/other/vae"),
            ("loras", "/here/loras"),
        ];
        let expected =
            expected.map(|(kind, path)| ModelFolder { kind: kind.to_owned(), path: PathBuf::from(path) });
        assert_eq!(found, expected);
    }
}
