//! ComfyUI and its custom nodes: which repository each is of, at which commit, and whether it is as that has
//! it.
//!
//! Not here: the Python packages that they need.

use std::fs;
use std::path::Path;

use protocol::{CustomNode, GitPin, GitUrl, ParseTextError};
use serde::Deserialize;

use super::{Fault, Findings, LockError, some_of};
use crate::workspace::git::{Difference, LocalRepository};
use crate::workspace::plan::folder_of;

/// What people call ComfyUI, for messages.
const COMFYUI: &str = "ComfyUI";
/// The folders of ComfyUI that are its user's: what differs there is no other ComfyUI.
const OF_THE_USER: [&str; 8] =
    ["models/", "input/", "output/", "temp/", "user/", "custom_nodes/", "venv/", ".venv/"];
/// The endings of code: a new file of another kind changes nothing that runs.
const CODE: [&str; 5] = [".py", ".so", ".pyd", ".cu", ".js"];
/// Where ComfyUI-Manager keeps what it switched off.
const SWITCHED_OFF: &str = ".disabled";
/// How many differing files are named.
const NAMED: usize = 3;

/// The commit of ComfyUI itself.
pub(super) fn comfyui(folder: &Path, findings: &mut Findings) -> Option<GitPin> {
    match LocalRepository::open(folder) {
        Ok(Some(repository)) => {
            let is_own = |path: &str| !OF_THE_USER.iter().any(|folder| path.starts_with(folder));
            pin(COMFYUI, &repository, is_own, findings)
        }
        Ok(None) => {
            findings.faults.push(Fault::NoRepository);
            None
        }
        Err(fault) => {
            findings.faults.push(Fault::Git { what: COMFYUI.to_owned(), fault });
            None
        }
    }
}

/// All that is in `custom_nodes`, but what comes with ComfyUI's own commit.
pub(super) fn custom_nodes(comfyui: &Path, findings: &mut Findings) -> Result<Vec<CustomNode>, LockError> {
    let folder = comfyui.join("custom_nodes");
    // Where it cannot be opened, that is told already.
    let repository = LocalRepository::open(comfyui).ok().flatten();
    let comes_along =
        |name: &str| repository.as_ref().is_some_and(|own| own.has(&format!("custom_nodes/{name}")));
    let mut nodes = Vec::new();
    for name in names(&folder)? {
        let path = folder.join(&name);
        let is_python = path.is_dir() || name.ends_with(".py") || name.ends_with(".py.disabled");
        if name.starts_with('.') || name == "__pycache__" || !is_python || comes_along(&name) {
            continue;
        }
        match name.strip_suffix(".disabled") {
            Some(name) => nodes.extend(disabled(name, &path, findings)),
            None => nodes.extend(enabled(&name, &path, findings)),
        }
    }
    let folder = folder.join(SWITCHED_OFF);
    if folder.is_dir() {
        for name in names(&folder)? {
            nodes.extend(disabled(&name, &folder.join(&name), findings));
        }
    }
    Ok(without_doubles(nodes))
}

/// The names in a folder, in order; those that are no text are of no use to ComfyUI either.
fn names(folder: &Path) -> Result<Vec<String>, LockError> {
    let entries = fs::read_dir(folder).map_err(|source| LockError::io(folder, source))?;
    let mut names: Vec<String> =
        entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    Ok(names)
}

fn enabled(name: &str, path: &Path, findings: &mut Findings) -> Option<CustomNode> {
    let what = format!("custom node `{name}`");
    if path.is_file() {
        findings.lacking.push(format!(
            "{what}: it is a single file, which a bundle does not carry; make it a git repository, or rename it to \
             `{name}.disabled` where the workflow does not need it"
        ));
        return kept(&what, name.parse(), findings).map(|name| CustomNode::File { name, disabled: false });
    }
    match LocalRepository::open(path) {
        Err(fault) => {
            findings.faults.push(Fault::Git { what, fault });
            None
        }
        Ok(Some(repository)) => {
            let GitPin { url, commit } = pin(&what, &repository, |_| true, findings)?;
            let rebuilt = folder_of(url.as_str());
            if rebuilt != name {
                findings
                    .notes
                    .push(format!("{what} becomes `custom_nodes/{rebuilt}`, as `git clone` names it"));
            }
            Some(CustomNode::Git { url, commit, disabled: false })
        }
        Ok(None) => of_registry(&what, name, path, findings),
    }
}

/// A folder that ComfyUI-Manager installed from the registry: it leaves a list of its files.
fn of_registry(what: &str, name: &str, path: &Path, findings: &mut Findings) -> Option<CustomNode> {
    let project = fs::read_to_string(path.join("pyproject.toml")).ok();
    let project = project.and_then(|text| toml::from_str::<PyProject>(&text).ok());
    let Some(project) = project.filter(|_| path.join(".tracking").is_file()) else {
        // ComfyUI loads no folder without it.
        if path.join("__init__.py").is_file() {
            findings.faults.push(Fault::BareFolder { name: name.to_owned() });
        }
        return None;
    };
    let Project { name, version, urls } = project.project;
    let id = kept(what, name.trim().to_lowercase().parse(), findings)?;
    let version = kept(what, version.parse(), findings)?;
    let repository = urls.repository.map_or_else(|| "its repository".to_owned(), |url| format!("`{url}`"));
    findings.lacking.push(format!(
        "{what}: {id} {version} comes from the Comfy registry, from which nodes of a farm do not rebuild; `git clone` \
         {repository} in its place"
    ));
    Some(CustomNode::Registry { id, version })
}

/// What is switched off is recorded as far as a lockfile can, and never stands in the way.
fn disabled(name: &str, path: &Path, findings: &mut Findings) -> Option<CustomNode> {
    let recorded = if path.is_file() {
        name.parse().ok().map(|name| CustomNode::File { name, disabled: true })
    } else {
        let repository = LocalRepository::open(path).ok().flatten();
        repository.and_then(|repository| {
            let url = repository.remote()?.parse().ok()?;
            let commit = repository.commit().ok()??;
            Some(CustomNode::Git { url, commit, disabled: true })
        })
    };
    if recorded.is_none() {
        findings.notes.push(format!("custom node `{name}` is switched off and left out"));
    }
    recorded
}

/// The upstream and commit of a repository, all of whose own files are as the commit has them.
fn pin(
    what: &str,
    repository: &LocalRepository,
    is_own: impl Fn(&str) -> bool,
    findings: &mut Findings,
) -> Option<GitPin> {
    let unreadable = |fault| Fault::Git { what: what.to_owned(), fault };
    let what_ = || what.to_owned();
    let url = match repository.remote() {
        Some(url) => kept::<GitUrl>(what, url.parse(), findings),
        None => {
            findings.faults.push(Fault::NoRemote { what: what_() });
            None
        }
    };
    let commit = match repository.commit() {
        Ok(commit) => commit,
        Err(fault) => {
            findings.faults.push(unreadable(fault));
            return None;
        }
    };
    let Some(commit) = commit else {
        findings.faults.push(Fault::NoCommit { what: what_() });
        return None;
    };
    match repository.differences() {
        Ok(differences) => {
            let own: Vec<_> = differences.into_iter().filter(|difference| is_own(&difference.path)).collect();
            findings.faults.extend(changed(what, &own));
        }
        Err(fault) => findings.faults.push(unreadable(fault)),
    }
    let url = url?;
    if !url.is_public() {
        findings.lacking.push(format!("{what}: `{url}` is no https address that everybody reaches"));
    }
    if !repository.is_published() {
        findings.notes.push(format!(
            "{what} is at a commit that no branch of `{url}` is known to have here: nodes can fetch it only if it is \
             pushed"
        ));
    }
    Some(GitPin { url, commit })
}

/// The fault of files that change what runs.
fn changed(what: &str, differences: &[Difference]) -> Option<Fault> {
    let is_code = |path: &str| CODE.iter().any(|ending| path.ends_with(ending));
    let files: Vec<String> = differences
        .iter()
        .filter(|difference| !difference.is_new || is_code(&difference.path))
        .map(|difference| format!("`{}`", difference.path))
        .collect();
    (!files.is_empty()).then(|| Fault::Changed { what: what.to_owned(), files: some_of(files, NAMED) })
}

/// A text that was checked, or the fault that it is none.
fn kept<T>(what: &str, parsed: Result<T, ParseTextError>, findings: &mut Findings) -> Option<T> {
    parsed.map_err(|fault| findings.faults.push(Fault::Text { what: what.to_owned(), fault })).ok()
}

/// Of one upstream that is there twice, what is switched on counts.
fn without_doubles(nodes: Vec<CustomNode>) -> Vec<CustomNode> {
    let is_on = |wanted: &GitUrl| {
        let on =
            |node: &CustomNode| matches!(node, CustomNode::Git { url, disabled: false, .. } if url == wanted);
        nodes.iter().any(on)
    };
    let is_double =
        |node: &CustomNode| matches!(node, CustomNode::Git { url, disabled: true, .. } if is_on(url));
    nodes.iter().filter(|node| !is_double(node)).cloned().collect()
}

/// What a `pyproject.toml` says of a custom node.
#[derive(Deserialize)]
struct PyProject {
    project: Project,
}

#[derive(Deserialize)]
struct Project {
    name: String,
    version: String,
    #[serde(default)]
    urls: Urls,
}

#[derive(Default, Deserialize)]
struct Urls {
    #[serde(rename = "Repository")]
    repository: Option<String>,
}
